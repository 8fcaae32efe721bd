"""Voices as files: an acoustic model and a vocoder as one ONNX graph that ``vitalk.speech.voice.Voice`` opens."""

import json
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitalk.deploy.onnx_export import refusal
from vitalk.errors import UserError
from vitalk.files import write_whole
from vitalk.nn.quant import OMSE, Policy, QuantConv1d, UniformQuantizer, place, sites
from vitalk.nn.quant.calibrate import fit_in_one_pass
from vitalk.nn.quant.export import TRANSLATIONS, fold_weights
from vitalk.speech.mel import MelSpec
from vitalk.speech.vocoder.generators import output_rate

OPSET = 20
FACTORS = ("speed", "pitch", "energy")


class Speaking(nn.Module):
    """Symbols to the spectrum of their waveform.

    acoustic: maps (ids [1, text], speaker [1] or None, speed, pitch, energy, each [1]) to a log-mel
    [1, mels, frames] and durations [1, text]. vocoder: a generator with ``spectrum``, such as ``Vocos``.
    """

    def __init__(self, acoustic: Callable[..., tuple[Tensor, Tensor]], vocoder: nn.Module):
        super().__init__()
        if not hasattr(vocoder, "spectrum"):
            raise UserError(f"{type(vocoder).__name__} has no spectrum to export; voices are made with vocos")
        self.acoustic, self.vocoder = acoustic, vocoder

    def forward(
        self, ids: Tensor, speed: Tensor, pitch: Tensor, energy: Tensor, speaker: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(real, imag), each [1, bins, frames], and durations [1, text] in frames."""
        mel, durations = self.acoustic(ids, speaker, speed, pitch, energy)
        return *self.vocoder.spectrum(mel), durations


def export_voice(
    acoustic: nn.Module,
    vocoder: nn.Module,
    spec: MelSpec,
    path: Path,
    name: str,
    lang: str,
    speakers: list[str] | None = None,
    licence: str = "",
    symbols: str = "",
    bits: tuple[int, int] | None = None,
    texts: Sequence[list[int]] = (),
    follows: Sequence[str] = FACTORS,
) -> Path:
    """Write a voice file, whole or not at all, after checking it against torch in onnxruntime.

    acoustic: see ``Speaking``. speakers: their names, where the model knows several. symbols: those that it has
    learnt, all where empty; others are spoken as the nearest of them.
    Weights are stored in half precision, to which the networks' own are rounded first, and computed with in single.
    bits: (of weights, of activations), to quantize the voice (``quantize``); texts: symbol ids of the sentences that it
    is calibrated with. follows: the factors that the acoustic model heeds.
    Raises UserError for vocoders without a spectrum, and where the file says something else than torch by more than
    a thousandth of the largest value.
    """
    import onnx

    module = Speaking(acoustic, vocoder).eval()
    module = _rounded(module if bits is None else quantize(module, *bits, texts))
    many = speakers is not None and len(speakers) > 1
    # Three tensors of their own: the exporter takes one that is given thrice for one input.
    example: dict[str, Any] = {"ids": torch.randint(1, 60, (1, 12)), **{k: torch.ones(1) for k in FACTORS}}
    if many:
        example["speaker"] = torch.zeros(1, dtype=torch.int64)
    length = {1: torch.export.Dim("text", min=2, max=4096)}
    try:
        program = torch.onnx.export(
            module, (), kwargs=example, dynamo=True, verbose=False, opset_version=OPSET, external_data=False,
            custom_translation_table=TRANSLATIONS, input_names=list(example),
            output_names=["real", "imag", "durations"],
            dynamic_shapes={name: length if name == "ids" else None for name in example},
        )  # fmt: skip
    except Exception as error:
        raise refusal(error) from None
    about = {"name": name, "lang": lang, "rate": output_rate(vocoder, spec), "n_fft": vocoder.n_fft, "hop": vocoder.hop,
             "speakers": speakers if many else [], "symbols": symbols, "licence": licence,
             "follows": list(follows)}  # fmt: skip
    proto = program.model_proto if bits is None else fold_weights(program.model_proto)
    _store_halves(proto.graph)
    onnx.helper.set_model_props(proto, {"vitalk.voice": json.dumps(about)})
    content = proto.SerializeToString()
    _check(module, content, example, bits is not None)
    return write_whole(Path(path), content)


FLIPS = 0.05  # relative distance of quantized files from torch: rounding steps may fall the other way
LARGE = 256  # values from which on a tensor is stored in half precision


def _rounded(module: nn.Module) -> nn.Module:
    """A copy whose large weights are those that half precision can hold."""
    module = deepcopy(module)
    for weight in module.parameters():
        if weight.numel() >= LARGE:
            weight.data = weight.data.half().to(weight.dtype)
    return module


def _store_halves(graph: Any) -> None:
    """Large single-precision weights of an ONNX graph that half precision holds exactly -> halves and their Casts.

    onnxruntime folds the Casts when it loads the file, so that they cost nothing afterwards.
    """
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for weight in graph.initializer:
        if weight.data_type != TensorProto.FLOAT or np.prod(weight.dims) < LARGE:
            continue
        values = numpy_helper.to_array(weight)
        with np.errstate(over="ignore"):
            halves = values.astype(np.float16)
        if not np.array_equal(halves.astype(np.float32), values):
            continue
        name = weight.name
        weight.CopyFrom(numpy_helper.from_array(halves, f"{name}.half"))
        casts.append(helper.make_node("Cast", [weight.name], [name], f"{name}.cast", to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    for node in nodes:  # where in the source a node comes from takes more room than a small network
        del node.metadata_props[:]
    del graph.node[:]
    graph.node.extend(nodes)


BREATH = 600  # symbols that calibration says in one go, at most


def quantize(speaking: Speaking, weight_bits: int, act_bits: int, texts: Sequence[list[int]]) -> Speaking:
    """A copy of ``speaking`` whose linear layers and dense convolutions are quantized, attention products not.

    Symmetric weights, a scale a row; whole zero points, a scale a tensor, ranges of least squared error: RepQ-ViT's
    deployed form without its fold. Depthwise convolutions, for which runtimes have no integer kernel without a
    quantizer behind them, stay in float. texts: symbol ids of sentences, which are said in one breath.
    Raises UserError where there are none.
    """
    if not texts:
        raise UserError("a voice is calibrated with sentences, and there are none; give some with --texts")
    policy = Policy(partial(UniformQuantizer, axis=0, symmetric=True), partial(UniformQuantizer, ranges=OMSE), None)
    quantized = place(speaking, weight_bits, act_bits, policy)
    for site in sites(quantized).values():
        if isinstance(site, QuantConv1d) and not site.is_product:
            site.weight_quantizer = site.input_quantizer = None
    said = [symbol for text in texts for symbol in text][:BREATH]
    one = torch.ones(1)
    fit_in_one_pass(quantized, lambda: quantized(torch.tensor([said]), one, one, one, torch.zeros(1, dtype=torch.long)))
    return quantized


@torch.inference_mode()
def _check(module: Speaking, content: bytes, example: dict[str, Tensor], quantized: bool) -> None:
    import numpy as np
    import onnxruntime as ort

    session = ort.InferenceSession(content, providers=["CPUExecutionProvider"])
    for length, factors in ((5, (1.0, 1.0, 1.0)), (40, (1.3, 0.8, 1.2))):
        ids = torch.randint(1, 60, (1, length), generator=torch.Generator().manual_seed(length))
        fed = {**example, "ids": ids, **{k: torch.tensor([v]) for k, v in zip(FACTORS, factors, strict=True)}}
        expected = [value.numpy() for value in module(**fed)]
        got = session.run(["real", "imag", "durations"], {k: v.numpy() for k, v in fed.items()})
        if expected[0].shape != got[0].shape:
            if quantized and abs(got[0].shape[2] / expected[0].shape[2] - 1) < FLIPS:
                continue  # a rounding step that fell the other way made a symbol a frame longer or shorter
            raise UserError(f"the exported voice gives {got[0].shape[2]} frames, torch {expected[0].shape[2]}")
        distances = [float(np.abs(a - b).max() / np.abs(a).max()) for a, b in zip(expected[:2], got[:2], strict=True)]
        if quantized:
            pairs = zip(expected[:2], got[:2], strict=True)
            distances = [float(np.linalg.norm(a - b) / np.linalg.norm(a)) for a, b in pairs]
        if max(distances) > (FLIPS if quantized else 1e-3):
            raise UserError(
                f"the exported voice differs from torch by {max(distances):.2g}; report this with the versions in use"
            )
