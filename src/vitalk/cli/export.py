"""``vitalk export``: a model, or a voice, as one ONNX file."""

from pathlib import Path
from typing import Annotated, Any

import typer

from vitalk.errors import UserError


def export(
    model: Annotated[str, typer.Argument(help="A timm name, a checkpoint file, hf-hub:NAME, or an acoustic model.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The .onnx file.")],
    labels: Annotated[Path | None, typer.Option(help="JSON list of class names, where the model has none.")] = None,
    random_weights: Annotated[bool, typer.Option(help="A timm model with random weights.")] = False,
    vocoder: Annotated[Path | None, typer.Option(help="For a voice: model.safetensors of a vocoder.")] = None,
    name: Annotated[str | None, typer.Option(help="For a voice: its name [the file's].")] = None,
    licence: Annotated[str, typer.Option(help="For a voice: the licence that is told with it.")] = "",
    bits: Annotated[
        str | None, typer.Option(help="For a voice: quantize it, e.g. w8a8. Classifiers: vitalk compress.")
    ] = None,
    texts: Annotated[
        Path | None, typer.Option(help="With --bits: sentences to calibrate with, one a line, 20 are enough.")
    ] = None,
) -> None:
    """Write a classifier as ONNX with its preprocessing and labels, or an acoustic model and a vocoder as a voice.

    Examples: vitalk export deit_small_patch16_224 -o deit.onnx;
    vitalk export runs/fastspeech2-cpu/model.safetensors --vocoder runs/vocoder-cpu/model.safetensors -o voice.onnx
    """
    from rich.console import Console

    from vitalk.trained import slug_of

    if (bits is None) != (texts is None):
        raise UserError("--bits and --texts go together: a quantized voice is calibrated with sentences")
    if not output.parent.is_dir():
        raise UserError(f"there is no folder {output.parent}; create it or choose another with -o")
    slug = slug_of(model)
    with Console(stderr=True).status(f"exporting {model}"):
        if slug is not None:
            told = _voice(slug, model, output, vocoder, name or output.stem, licence, bits, texts)
        else:
            if vocoder is not None or bits is not None:
                wrong = "--vocoder" if vocoder is not None else "--bits"
                raise UserError(f"{model} is no acoustic model, so {wrong} does not go with it; leave it out")
            told = _classifier(model, output, labels, random_weights)
    print(f"{output}: {output.stat().st_size / 1e6:.2f} MB, {told}, agrees with torch")


def _classifier(model: str, output: Path, labels: Path | None, random_weights: bool) -> str:
    import json

    from vitalk.deploy.load import load_model
    from vitalk.deploy.onnx_export import export_onnx

    loaded = load_model(model, pretrained=not random_weights)
    names = loaded.labels or [str(i) for i in range(loaded.model.num_classes)]
    if labels is not None:
        try:
            names = json.loads(labels.read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{labels} is not a JSON list of class names ({error})") from None
    export_onnx(loaded.model, output, loaded.preprocess, names, name=loaded.name)
    return f"{len(names)} classes"


def _voice(
    slug: str, model: str, output: Path, vocoder: Path | None, name: str, licence: str, bits: str | None,
    texts: Path | None,
) -> str:  # fmt: skip
    from importlib import import_module

    from vitalk.catalog import find
    from vitalk.deploy.voice_export import export_voice
    from vitalk.nn.quant import parse_bits
    from vitalk.speech.acoustic.training import read_trained
    from vitalk.speech.mel import mel_spec
    from vitalk.speech.vocoder.generators import load_vocoder

    if vocoder is None:
        raise UserError(f"{model} makes spectrograms; name the vocoder that turns them into sound with --vocoder")
    if read_trained(model)[0]["format"] != f"vitalk {slug}":
        raise UserError(f"{model} makes waveforms itself and speaks in torch only: vitalk speak --voice {model}")
    acoustic, about = import_module(f"{find(slug).package}.training").load_for_voice(model)
    generator, mel = load_vocoder(vocoder)
    if mel != about["mel"]:
        raise UserError(f"{vocoder} hears mels of preset {mel}, {model} makes {about['mel']}; train one for the other")
    quantized: dict[str, Any] = {}
    if bits is not None:
        quantized = {"bits": parse_bits(bits), "texts": _sentences(texts, about["lang"], about["symbols"])}
    export_voice(
        acoustic, generator, mel_spec(mel), output, name, about["lang"], about["speakers"], licence, about["symbols"],
        follows=about["follows"], **quantized,
    )  # fmt: skip
    return f"the voice {name}"


def _sentences(texts: Path, lang: str, symbols: str) -> list[list[int]]:
    """The sentences of a text file, a line each, as symbol ids."""
    from vitalk.speech.text.front import Front
    from vitalk.speech.text.symbols import SYMBOLS, adapted, utterance_ids

    try:
        text = texts.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"{texts} cannot be read as text ({error})") from None
    front = Front(lang)
    spoken = [utterance for line in text.splitlines() if line.strip() for utterance in front.utterances(line)]
    return [utterance_ids(adapted(u.phonemes, symbols or SYMBOLS)) for u in spoken if u.ids]
