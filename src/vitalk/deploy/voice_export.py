"""Voices as files: an acoustic model and a vocoder as one ONNX graph that ``vitalk.speech.voice.Voice`` opens."""

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitalk.errors import UserError
from vitalk.files import write_whole
from vitalk.speech.mel import MelSpec

OPSET = 20


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
) -> Path:
    """Write a voice file, whole or not at all, after checking it against torch in onnxruntime.

    acoustic: see ``Speaking``. speakers: their names, where the model knows several. symbols: those that it has
    learnt, all where empty; others are spoken as the nearest of them.
    Weights are stored in half precision, to which the networks' own are rounded first, and computed with in single.
    Raises UserError for vocoders without a spectrum, and where the file says something else than torch by more than
    a thousandth of the largest value.
    """
    import onnx

    module = _rounded(Speaking(acoustic, vocoder).eval())
    many = speakers is not None and len(speakers) > 1
    # Three tensors of their own: the exporter takes one that is given thrice for one input.
    example: dict[str, Any] = {"ids": torch.randint(1, 60, (1, 12)), **{k: torch.ones(1) for k in FACTORS}}
    if many:
        example["speaker"] = torch.zeros(1, dtype=torch.int64)
    program = torch.onnx.export(
        module, (), kwargs=example, dynamo=True, verbose=False, opset_version=OPSET, external_data=False,
        input_names=list(example), output_names=["real", "imag", "durations"],
        dynamic_shapes={k: {1: torch.export.Dim("text", min=2, max=4096)} if k == "ids" else None for k in example},
    )  # fmt: skip
    about = {"name": name, "lang": lang, "rate": spec.rate, "n_fft": spec.n_fft, "hop": spec.hop,
             "speakers": speakers if many else [], "symbols": symbols, "licence": licence}  # fmt: skip
    proto = program.model_proto
    _store_halves(proto.graph)
    onnx.helper.set_model_props(proto, {"vitalk.voice": json.dumps(about)})
    content = proto.SerializeToString()
    _check(module, content, example)
    return write_whole(Path(path), content)


FACTORS = ("speed", "pitch", "energy")
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


@torch.inference_mode()
def _check(module: Speaking, content: bytes, example: dict[str, Tensor]) -> None:
    import numpy as np
    import onnxruntime as ort

    session = ort.InferenceSession(content, providers=["CPUExecutionProvider"])
    for length, factors in ((5, (1.0, 1.0, 1.0)), (40, (1.3, 0.8, 1.2))):
        ids = torch.randint(1, 60, (1, length), generator=torch.Generator().manual_seed(length))
        fed = {**example, "ids": ids, **{k: torch.tensor([v]) for k, v in zip(FACTORS, factors, strict=True)}}
        expected = [value.numpy() for value in module(**fed)]
        got = session.run(["real", "imag", "durations"], {k: v.numpy() for k, v in fed.items()})
        if expected[0].shape != got[0].shape:
            raise UserError(f"the exported voice gives {got[0].shape[2]} frames, torch {expected[0].shape[2]}")
        worst = max(float(np.abs(a - b).max()) for a, b in zip(expected[:2], got[:2], strict=True))
        if worst > 1e-3 * max(float(np.abs(a).max()) for a in expected[:2]):
            raise UserError(
                f"the exported voice differs from torch by {worst:.2g}; report this with the versions in use"
            )
