"""From a trained ViT to shifts and additions."""

import copy
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from timm.models.pvt_v2 import Attention as ReducedAttention
from timm.models.pvt_v2 import PyramidVisionTransformerV2
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from vitalk.errors import UserError
from vitalk.vision.tokens import require_plain

from .attention import AngularAttention, Statistics
from .checkpoint import checkpoint_filter_fn
from .experts import ALPHA, MoELinear
from .shift import SHIFTS

AttentionKind = Literal["keep", "msa", "linear", "binary", "hash"]
LinearKind = Literal["mult", "shift", "shift-q", "sp2", "moe"]
ATTENTION_LINEARS = ("qkv", "q", "kv", "to_qk", "to_v", "proj")


def shiftadd(
    model: VisionTransformer | PyramidVisionTransformerV2,
    attention: AttentionKind = "binary",
    linears: LinearKind | Sequence[LinearKind] = "moe",
    statistics: Statistics = "sample",
    hash_bits: int = 16,
    anchors: int = 25,
    sparse: bool = False,
    shift_bits: int = 5,
    alpha: Sequence[float] = ALPHA,
    weighted: bool = True,
) -> nn.Module:
    """A copy of a trained timm ViT, DeiT or PVTv2 whose products are additions and shifts (arXiv 2306.06446).

    attention: "keep" leaves it; "msa" drops the spatial reduction of PVTv2 (stage 1 of the training); "linear",
    "binary" and "hash" are ``AngularAttention`` (stage 2), in all blocks but those of PVTv2's last stage, which get
    "msa". linears: "mult" leaves them; "shift" (DeepShift-PS), "shift-q", "sp2" or "moe" (``MoELinear``, stage 3);
    one for all, or a pair: the projections of attention, and the MLPs. The softmax attention that is left over in the
    last stage of a PVTv2 keeps its dense projections, as in the release; so do patch embedding, head and depth-wise
    convolutions. The stages may follow one another: ``shiftadd(tuned, "keep", "moe")``.
    statistics, hash_bits, anchors, sparse: of ``AngularAttention``; shift_bits: of the shifts; alpha, weighted: of
    ``MoELinear``.

    The result is a timm model of the same class, with ``checkpoint_filter_fn`` for official and dense weights.
    Raises UserError for other models, attention that was converted before, and options that do not exist.
    """
    if attention not in ("keep", "msa", "linear", "binary", "hash"):
        raise UserError(f"there is no attention {attention!r}; choose keep, msa, linear, binary or hash")
    kinds = [linears] * 2 if isinstance(linears, str) else list(linears)
    if len(kinds) != 2 or (wrong := [kind for kind in kinds if kind not in ("mult", "moe", *SHIFTS)]):
        bad = kinds if len(kinds) != 2 else wrong[0]
        raise UserError(f"linears are mult, shift, shift-q, sp2 or moe, one for all or (attention, MLP); got {bad!r}")
    _check(model, attention)
    model = copy.deepcopy(model)
    options = {"statistics": statistics, "bits": hash_bits, "anchors": anchors, "sparse": sparse}
    for block, last in blocks(model):
        if attention != "keep":
            _convert_attention(block, "msa" if last else attention, options)
    angular = any(isinstance(module, AngularAttention) for module in model.modules())
    for block, last in blocks(model):
        if not (last and (angular or attention != "keep")):
            _convert_linears(block.attn, ATTENTION_LINEARS, kinds[0], shift_bits, alpha, weighted)
        _convert_linears(block.mlp, ("fc1", "fc2"), kinds[1], shift_bits, alpha, weighted)
    model.checkpoint_filter_fn = checkpoint_filter_fn
    return model


def blocks(model: nn.Module) -> Iterator[tuple[nn.Module, bool]]:
    """The blocks of a ViT or PVTv2 in order, and whether each belongs to the last stage of a PVTv2."""
    if isinstance(model, PyramidVisionTransformerV2):
        for stage in model.stages:
            yield from ((block, stage is model.stages[-1]) for block in stage.blocks)
    else:
        yield from ((block, False) for block in model.blocks)


def _check(model: nn.Module, attention: str) -> None:
    if not isinstance(model, (VisionTransformer, PyramidVisionTransformerV2)):
        raise UserError(f"{type(model).__name__} is neither a timm ViT nor a PVTv2; choose a vit_*, deit* or pvt_v2_*")
    if isinstance(model, VisionTransformer) and attention != "keep":
        require_plain(model)
    for block, _ in blocks(model):
        if not (hasattr(block, "attn") and hasattr(block, "mlp") and hasattr(block.mlp, "fc2")):
            raise UserError(f"{type(block).__name__} has no attention and MLP of its own; choose a plain ViT or PVTv2")
        if isinstance(model, PyramidVisionTransformerV2) and attention != "keep":
            if not isinstance(block.attn, ReducedAttention):
                raise UserError("the attention of this PVTv2 was converted before; use attention='keep'")
            if block.attn.pool is not None:
                raise UserError("PVTv2 with pooled attention (pvt_v2_b2_li) is not supported; choose pvt_v2_b0 to b5")


def _convert_attention(block: nn.Module, kind: str, options: dict[str, Any]) -> None:
    if kind != "msa":
        block.attn = AngularAttention(block.attn, kind, **options)
    elif isinstance(block.attn, ReducedAttention):
        block.attn.sr = block.attn.norm = None


def _convert_linears(
    parent: nn.Module, names: Sequence[str], kind: str, bits: int, alpha: Sequence[float], weighted: bool
) -> None:
    for name in names:
        linear = getattr(parent, name, None)
        if kind == "mult" or linear is None:
            continue
        if type(linear) is not nn.Linear:
            raise UserError(f"{name} is a {type(linear).__name__}, no dense linear layer; it was converted before")
        new = MoELinear(linear, bits, alpha, weighted) if kind == "moe" else SHIFTS[kind].from_linear(linear, bits)
        setattr(parent, name, new)
