"""The EViT reducer, the model around it and its keep rates."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vitalk.errors import UserError
from vitalk.vision.tokens import Attended, TokenReducer, Tokens, Trunk, require_plain, take


class KeepAttentive(TokenReducer):
    """Keeps the patches with the highest class attention (arXiv 2202.07800, section 3.2).

    keep_rate: share of the patches that stay, in (0, 1]; 1 changes nothing, whatever ``rate`` is set to later.
    fuse: append one token, the sum of the others weighted by their class attention (eq. 4). The weights are not
    normalised: they sum to less than one, as in the paper.
    prefix: leading tokens that are never ranked.
    count: patches that stay, an absolute number that overrides both rates; as many as there are changes nothing.

    ``rate`` is the share in force, ``keep_rate`` until ``set_keep_rate`` changes it.
    Raises UserError for rates outside (0, 1] and for counts below one or above the patches that come in.
    """

    def __init__(self, keep_rate: float, fuse: bool = True, prefix: int = 1, count: int | None = None):
        super().__init__()
        self.keep_rate = self.rate = valid_rate(keep_rate)
        if count is not None and count < 1:
            raise UserError(f"the number of tokens to keep must be at least 1, got {count}")
        self.fuse, self.prefix, self.count = fuse, prefix, count

    @property
    def needs(self) -> frozenset[str]:
        """Class attention, and nothing while every patch stays."""
        active = self.count is not None or (self.keep_rate < 1 and self.rate < 1)
        return frozenset({"class_attention"}) if active else frozenset()

    def rank(self, attention: Tensor) -> Tensor:
        """Class attention [batch, patches] -> scores of the same shape; the highest stay."""
        return attention

    def forward(self, tokens: Tokens, seen: Attended) -> Tokens:
        """[prefix, kept patches in descending attention, fused token], or the same tokens where all stay."""
        if not self.needs:
            return tokens
        attention = seen.class_attention[:, self.prefix :]
        keep = self._to_keep(attention.shape[1])
        if keep == attention.shape[1]:
            return tokens
        index = self.rank(attention).topk(keep, dim=1).indices
        weight = attention.scatter(1, index, 0.0)[:, None] if self.fuse else None  # zero for those that stay

        def reduce(x: Tensor | None) -> Tensor | None:
            if x is None:
                return None
            head, patches = x[:, : self.prefix], x[:, self.prefix :]
            parts = [head, take(patches, index)]
            return torch.cat(parts if weight is None else [*parts, weight.to(x.dtype) @ patches], dim=1)

        return replace(tokens, features=reduce(tokens.features), source=reduce(tokens.source))

    def _to_keep(self, patches: int) -> int:
        if self.count is None:
            return math.ceil(self.rate * patches)
        if self.count > patches:
            raise UserError(f"{self.count} tokens are to be kept where only {patches} come in; ask for fewer")
        return self.count

    def extra_repr(self) -> str:
        """What the printed module shows."""
        kept = f"rate={self.rate}" if self.count is None else f"count={self.count}"
        return f"{kept}, fuse={self.fuse}, prefix={self.prefix}"


def evit(
    vit: VisionTransformer,
    keep_rate: float = 0.7,
    blocks: Sequence[int] = (3, 6, 9),
    fuse: bool = True,
    tokens: int | Sequence[int] | None = None,
) -> Trunk:
    """The model ``vit`` with its tokens reorganised in the given blocks (0-based; 3, 6, 9 in the paper).

    tokens: absolute numbers of patches to keep, one for all of ``blocks`` or one each, in place of the rate; the
    fused token comes on top, and counts as a patch in the next of these blocks.
    The model must classify from its class token: nothing else has an attention row that says what it looks at,
    and a mean over patches would change when patches go. Distillation and register tokens always stay.

    Raises UserError for models of another kind, blocks that do not exist, rates and numbers that mean nothing.
    """
    require_plain(vit)
    if not vit.has_class_token:
        raise UserError("EViT ranks patches by the class token's attention; this model has no class token")
    if vit.global_pool != "token":
        raise UserError(
            f"EViT needs a model that classifies from its class token; this one pools with {vit.global_pool!r}: "
            "create it with global_pool='token' or choose another reduction"
        )
    if missing := [block for block in blocks if not 0 <= block < len(vit.blocks)]:
        raise UserError(f"blocks {missing} do not exist: the model has {len(vit.blocks)}, counted from 0")
    counts = list(tokens) if isinstance(tokens, Sequence) else [tokens] * len(blocks)
    if len(counts) != len(blocks):
        raise UserError(f"{len(counts)} token counts were given for {len(blocks)} blocks; give one number or one each")
    prefix = vit.num_prefix_tokens
    chosen = {b: KeepAttentive(keep_rate, fuse, prefix, n) for b, n in zip(blocks, counts, strict=True)}
    valid_rate(keep_rate)
    return Trunk(vit, [chosen.get(block, TokenReducer()) for block in range(len(vit.blocks))])


def set_keep_rate(model: nn.Module, rate: float) -> None:
    """Put another keep rate in force, in a model or anything that contains it.

    The double guard of the official code: only blocks that were built to reduce (a configured rate below 1, no
    absolute count) follow, all others keep every token. 1 switches the reduction off.
    """
    for reducer in attentive(model):
        reducer.rate = valid_rate(rate)


def attentive(model: nn.Module) -> list[KeepAttentive]:
    """The reducers of ``model`` that rank by class attention, in the order of the blocks."""
    return [module for module in model.modules() if isinstance(module, KeepAttentive)]


def valid_rate(rate: float) -> float:
    """``rate``, where it is a share in (0, 1]. Raises UserError otherwise."""
    if not 0 < rate <= 1:
        raise UserError(f"keep_rate must be in (0, 1], got {rate}")
    return rate


def keep_rate_at(step: int, final: float, warm: int, length: int) -> float:
    """Keep rate for training from scratch: 1 for ``warm`` steps, then down a half cosine to ``final`` in ``length``."""
    if step < warm:
        return 1.0
    if step >= warm + length:
        return final
    return final + (1 - final) * (1 + math.cos(math.pi * (step - warm) / length)) / 2
