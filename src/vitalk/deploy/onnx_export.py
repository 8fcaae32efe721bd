"""One ONNX file a model, which runs without vitalk and loses nothing on the way: preprocessing and labels go along."""

import contextlib
import io
import json
import logging
import os
import re
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from vitalk.deploy.preprocess import Preprocess
from vitalk.errors import UserError
from vitalk.nn.quant import expose, fold_batch_norms
from vitalk.nn.quant.export import TRANSLATIONS, check_exportable, fold_weights
from vitalk.nn.quant.packing import pack_weights
from vitalk.nn.quant.sites import copied

OPSET = 20
AGREE = 2e-3  # relative distance between the file and torch
ROUNDED = 0.05  # of the median picture in quantized networks, where a step may fall the other way, and others with it


def export_onnx(
    model: nn.Module,
    path: str | Path,
    preprocess: Preprocess,
    labels: list[str],
    name: str = "",
    pack: bool = False,
) -> Path:
    """Write ``model`` (a timm model, a ``Trunk``, quantized or not) as ONNX.

    Input "image" [batch, 3, height, width] float32, normalised; output "logits" [batch, classes]; any batch size.
    The metadata ``vitalk.preprocess`` and ``vitalk.labels`` (JSON) say how pictures are prepared and what the
    classes are called. The file is run against torch before it gets its name.
    pack: store linear weights of at most 4 bits in 4 bits; a smaller file, whose products run in float.

    Raises UserError for weights that are not finite, a wrong number of labels, and a file that disagrees with torch.
    """
    path = Path(path)
    for key, value in model.named_parameters():
        if not value.isfinite().all():
            raise UserError(f"the weight {key} holds NaN or infinite values; use an intact checkpoint")
    check_exportable(model)
    # Attention in the open, its three inputs split along the last axis, is the form that runtimes fuse.
    images = torch.randn(2, 3, *preprocess.size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode(False):
        folded = fold_batch_norms(copied(model).eval(), images[:1])
    opened = expose(folded)
    graph = fold_weights(_trace(opened, images))
    if pack:
        graph = pack_weights(graph)
    if (classes := _classes(graph)) is not None and classes != len(labels):
        raise UserError(f"the model has {classes} classes, but {len(labels)} labels were given")
    onnx.helper.set_model_props(
        graph,
        {"vitalk.preprocess": preprocess.to_json(), "vitalk.labels": json.dumps(labels), "vitalk.model": name},
    )
    onnx.checker.check_model(graph)
    unfinished = path.with_name(path.name + ".writing")
    try:
        onnx.save(graph, unfinished)
        _compare(model, unfinished, torch.randn(8, 3, *preprocess.size, generator=torch.Generator().manual_seed(1)))
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def _trace(model: nn.Module, images: Tensor) -> onnx.ModelProto:
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                model, (images,), dynamo=True, dynamic_shapes=({0: torch.export.Dim("batch")},), opset_version=OPSET,
                input_names=["image"], output_names=["logits"], custom_translation_table=TRANSLATIONS, verbose=False,
            )  # fmt: skip
    except Exception as error:  # the exporter wraps whatever stopped it
        raise refusal(error) from None
    finally:
        log.setLevel(level)
    return program.model_proto


def refusal(error: BaseException) -> UserError:
    """What stopped the exporter, in a sentence: the model's own refusal, or the operator that it cannot express."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    if (refused := next((e for e in chain if isinstance(e, UserError)), None)) is not None:
        return refused
    told = " ".join(str(e) for e in chain)
    named = re.search(r"op='([\w.]+)'", told) or re.search(r"\b(aten(?:::|\.)\w+)", told)
    what = f"the operator {named[1]}" if named else f"something in it ({str(chain[-1]).strip().splitlines()[0][:120]})"
    return UserError(f"this model cannot be written as ONNX: {what} has no form there; run it in torch, simulated")


def _classes(graph: onnx.ModelProto) -> int | None:
    dims = graph.graph.output[0].type.tensor_type.shape.dim
    return dims[-1].dim_value or None if dims else None


def _compare(model: nn.Module, file: Path, images: Tensor) -> None:
    from vitalk.deploy.runtime import open_engine

    with torch.inference_mode():
        expected = model.eval()(images).numpy()
    run, _ = open_engine(file)
    got = run(images.numpy())
    try:
        alone = run(images[:1].numpy())
    except Exception as error:  # onnxruntime has an exception class for each kind of mismatch
        raise UserError(f"the exported file takes batches of {len(images)} only ({str(error)[:80]})") from None
    if alone.shape != got[:1].shape:
        raise UserError(f"the exported file answers a batch of one with {len(alone)} rows; its batch is fixed")
    distances = np.linalg.norm(got - expected, axis=-1) / np.maximum(np.linalg.norm(expected, axis=-1), 1e-12)
    rounding = any(True for m in model.modules() if hasattr(m, "weight_quantizer"))
    distance = float(np.median(distances) if rounding else np.max(distances))
    if distance > (ROUNDED if rounding else AGREE) or not np.isfinite(distance):
        raise UserError(f"the exported file differs from torch by {distance:.2g} (relative); please report this model")
