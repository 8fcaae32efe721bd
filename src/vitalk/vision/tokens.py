"""Token sets, and the trunk that carries them through a vision transformer block by block."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from timm.models.vision_transformer import checkpoint_filter_fn as timm_filter
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vitalk.errors import UserError
from vitalk.nn.attention import SiteAttention, split_heads
from vitalk.nn.checkpoints import unwrapped

from .wrapper import Wrapper


@dataclass(frozen=True)
class Tokens:
    """Tokens between two blocks.

    features: [batch, tokens, dim], prefix tokens (class, distillation, registers) first.
    size: [batch, tokens], how many patches each token stands for; None where all stand for one.
    source: [batch, tokens, patches], the weight of each original patch in each token; None unless traced.
    """

    features: Tensor
    size: Tensor | None = None
    source: Tensor | None = None


@dataclass(frozen=True)
class Attended:
    """What a block's attention shows to the reducer that asked for it (see ``TokenReducer.needs``).

    keys: [batch, heads, tokens, head_dim], after the key norm.
    class_attention: [batch, tokens], the class token's attention row, averaged over heads.
    attention: [batch, heads, tokens, tokens], the whole map; asking for it gives up the fused kernel.
    """

    keys: Tensor | None = None
    class_attention: Tensor | None = None
    attention: Tensor | None = None


class TokenReducer(nn.Module):
    """Maps the tokens that leave a block's attention to the fewer tokens that enter its MLP; this one keeps all.

    needs: names of the ``Attended`` fields that ``forward`` reads. It is looked up in every forward pass, so a
    reducer that is switched off asks for nothing and its block costs what a plain one costs.
    proportional: whether keys weigh as much as their tokens are large (``attend``), once a reducer has set sizes.
    """

    needs: frozenset[str] = frozenset()
    proportional: bool = True

    def forward(self, tokens: Tokens, seen: Attended) -> Tokens:
        """The tokens that go on, prefix tokens first and unchanged."""
        return tokens

    def through(self, block: Block, tokens: Tokens) -> Tokens:
        """One pre-norm block: attention, then ``forward``, then the MLP on the tokens that it left.

        A reducer that acts at another place (before the values, after the MLP) has its own.
        """
        size = tokens.size if self.proportional else None
        mixed, seen = attend(block.attn, block.norm1(tokens.features), size, self.needs)
        return add_mlp(block, self(add_attention(block, tokens, mixed), seen))


class Trunk(Wrapper):
    """A timm VisionTransformer, run in the open, with one reducer a block; itself a timm backbone.

    The wrapped model stays as it is: with reducers that reduce nothing the logits are the model's bit for bit,
    and the state dict has the model's own keys (plus ``reducers.*`` where reducers hold weights), so checkpoints
    of one load into the other. There is no ``feature_info``: reduced tokens have left the grid.

    vit: the model, of any size, prefix tokens and patch embedding; only blocks of the plain pre-norm form are run.
    reducers: as many as blocks.
    trace: keep ``Tokens.source`` up to date (for pictures of what became of the patches; see ``survivors``).

    Raises UserError for models that do not have this form.
    """

    own = ("reducers.",)

    def __init__(self, vit: VisionTransformer, reducers: Sequence[TokenReducer], trace: bool = False):
        super().__init__()
        require_plain(vit)
        if len(reducers) != len(vit.blocks):
            raise UserError(f"{len(vit.blocks)} blocks need as many reducers, got {len(reducers)}")
        self.vit = vit
        self.reducers = nn.ModuleList(reducers)
        self.trace = trace

    def forward_tokens(self, images: Tensor) -> Tokens:
        """images [batch, channels, height, width] -> the final, normalised tokens with their sizes and sources."""
        tokens = deque(self.walk(images), maxlen=1).pop()  # holds on to the last ones only
        return replace(tokens, features=self.vit.norm(tokens.features))

    def walk(self, images: Tensor) -> Iterator[Tokens]:
        """The tokens that enter the first block, and those that leave each; not normalised.

        images: [batch, channels, height, width].
        """
        tokens = self.embed(images)
        yield tokens
        yield from self.onward(tokens)

    def embed(self, images: Tensor) -> Tokens:
        """images [batch, channels, height, width] -> the tokens that enter the first block."""
        vit = self.vit
        x = vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(images))))
        return Tokens(x, source=self._identity_source(x) if self.trace else None)

    def onward(self, tokens: Tokens) -> Iterator[Tokens]:
        """The tokens that leave each block, given those that enter the first."""
        vit = self.vit
        for block, reducer in zip(vit.blocks, self.reducers, strict=True):
            if vit.grad_checkpointing and torch.is_grad_enabled():
                tokens = checkpoint(reducer.through, block, tokens, use_reentrant=False)
            else:
                tokens = reducer.through(block, tokens)
            yield tokens

    def forward_features(self, images: Tensor) -> Tensor:
        """images [batch, channels, height, width] -> normalised features [batch, tokens, dim], prefix first."""
        return self.forward_tokens(images).features

    def forward(self, images: Tensor) -> Tensor:
        """images [batch, channels, height, width] -> logits [batch, classes]."""
        return self.classify(self.forward_tokens(images))

    def classify(self, tokens: Tokens, pre_logits: bool = False) -> Tensor:
        """Normalised final tokens -> logits [batch, classes], or the pooled features before the head.

        Models that pool by the mean weigh each token by its size, so that merging like patches changes nothing
        (as in ToMe's code for MAE).
        """
        if tokens.size is None or self.vit.global_pool != "avg":
            return self.forward_head(tokens.features, pre_logits)
        pooled = 0 if self.vit.pool_include_prefix else self.num_prefix_tokens
        weight = tokens.size / tokens.size[:, pooled:].mean(1, keepdim=True)
        return self.forward_head(tokens.features * weight[..., None].to(tokens.features.dtype), pre_logits)

    def _identity_source(self, x: Tensor) -> Tensor:
        prefix = self.vit.num_prefix_tokens
        source = torch.eye(x.shape[1] - prefix, device=x.device, dtype=x.dtype)
        return F.pad(source, (0, 0, prefix, 0)).expand(x.shape[0], -1, -1)

    @property
    def num_prefix_tokens(self) -> int:
        """Leading tokens that are no patches."""
        return self.vit.num_prefix_tokens

    @staticmethod
    def checkpoint_filter_fn(state_dict: dict[str, Any], model: "Trunk") -> dict[str, Tensor]:
        """An official or timm checkpoint -> the trunk's own state dict.

        Takes the weights out of {"model": ...} or {"state_dict": ...}, drops "module." prefixes, and resizes patch
        and position embeddings to the model's grid; bicubically, without antialiasing, as DeiT and EViT do.
        """
        state = unwrapped(state_dict, averaged=False)
        state = {key.removeprefix("vit."): value for key, value in state.items()}
        own = getattr(model.vit, "checkpoint_filter_fn", None)
        return own(state, model.vit) if own else timm_filter(state, model.vit, True, antialias=False)


def require_plain(vit: nn.Module) -> None:
    """Raise UserError unless ``vit`` is a timm VisionTransformer (or subclass) of the form that ``Trunk`` runs."""
    if not isinstance(vit, VisionTransformer):
        raise UserError(f"{type(vit).__name__} is no timm VisionTransformer; choose a vit_*, deit* or t2t_vit_* model")
    if type(vit).forward_features is not VisionTransformer.forward_features:
        raise UserError(f"{type(vit).__name__} has a forward pass of its own, which token reduction would skip")
    for block in vit.blocks:
        if type(block).forward is not Block.forward:
            raise UserError(f"{type(block).__name__} is not a plain pre-norm block; choose a vit_* or deit* model")
        if type(block.attn).forward not in (Attention.forward, SiteAttention.forward):
            raise UserError(f"{type(block.attn).__name__} is not plain self-attention; choose a vit_* or deit* model")


def add_attention(block: Block, tokens: Tokens, mixed: Tensor) -> Tokens:
    """The tokens with what the block's attention made of them, ``mixed`` [batch, tokens, dim], added."""
    return replace(tokens, features=tokens.features + block.drop_path1(block.ls1(mixed)))


def add_mlp(block: Block, tokens: Tokens) -> Tokens:
    """The tokens after the second half of a block, its MLP."""
    x = tokens.features
    return replace(tokens, features=x + block.drop_path2(block.ls2(block.mlp(block.norm2(x)))))


def attend(attn: Attention, x: Tensor, size: Tensor | None, needs: frozenset[str]) -> tuple[Tensor, Attended]:
    """Self-attention, weighted by token size, that computes only what ``needs`` names beside its output.

    Where nothing is asked for, it is the module's own forward. The fused kernel serves the output otherwise, and
    the class token's row costs one extra row of the attention map; the whole map exists only where it is needed
    itself or where the module computes it anyway (``SiteAttention``, ``fused_attn`` off). What is shown is free of
    attention dropout.
    Proportional attention: ToMe, arXiv 2210.09461, eq. 1.

    x: [batch, tokens, dim] -> [batch, tokens, dim]. size: [batch, tokens], positive.
    """
    if size is None and not needs:
        return attn(x), Attended()
    batch, count, _ = x.shape
    q, k, v = split_heads(attn.qkv(x), attn.num_heads)
    q, k = attn.q_norm(q), attn.k_norm(k)
    bias = None if size is None else size.log().to(q.dtype)[:, None, None, :]
    row = whole = None
    if isinstance(attn, SiteAttention) or not attn.fused_attn or "attention" in needs:
        times = (attn.matmul1, attn.matmul2) if isinstance(attn, SiteAttention) else (torch.matmul, torch.matmul)
        whole = _softmax(times[0](q * attn.scale, k.transpose(-2, -1)), bias)
        out = times[1](attn.attn_drop(whole), v)
        row = whole[:, :, 0].mean(1)
    else:
        dropout = attn.attn_drop.p if attn.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout, scale=attn.scale)
        if "class_attention" in needs:
            row = _softmax((q[:, :, :1] * attn.scale) @ k.transpose(-2, -1), bias).mean(1).squeeze(1)
    out = attn.norm(out.transpose(1, 2).reshape(batch, count, attn.attn_dim))
    if (gate := getattr(attn, "gate", None)) is not None:
        out = out * gate(x).sigmoid()
    seen = {"keys": k, "class_attention": row, "attention": whole}
    return attn.proj_drop(attn.proj(out)), Attended(**{name: seen[name] for name in needs})


def _softmax(scores: Tensor, bias: Tensor | None) -> Tensor:
    return (scores if bias is None else scores + bias).softmax(-1)


def take(x: Tensor | None, index: Tensor) -> Tensor | None:
    """Rows ``index`` [batch, kept] of x [batch, tokens, ...]; None stays None.

    Rows of the flattened batch, which are copied whole: some six times as fast as ``gather`` on a CPU, and a plain
    Gather in an exported graph.
    """
    if x is None:
        return None
    if x.dim() == 2:
        return x.gather(1, index)
    return x.flatten(0, 1).index_select(0, flat(index, x.shape[1])).unflatten(0, index.shape)


def flat(index: Tensor, count: int) -> Tensor:
    """Positions [batch, chosen] among ``count`` tokens -> positions [batch * chosen] in the flattened batch."""
    if index.shape[0] == 1:  # an exported graph has the general form
        return index.flatten()
    return (index + count * torch.arange(index.shape[0], device=index.device)[:, None]).flatten()


def survivors(source: Tensor) -> Tensor:
    """Which patches still have a token that is theirs alone, for drawing the picture that the model still sees.

    source: ``Tokens.source`` of a traced trunk, [batch, tokens, patches] -> bool [batch, patches], in the order of
    the patch grid: reshape to ``vit.patch_embed.grid_size`` and enlarge by the patch size to mask the picture.
    """
    alone = (source != 0).sum(2, keepdim=True) == 1
    return (alone & (source == 1)).any(1)
