"""ViR: a vision transformer that reads its patches as a sequence and retains instead of attending."""

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain
from typing import Any, Literal

import torch
from timm.layers import resample_abs_pos_embed
from timm.models._features import feature_take_indices
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from vitalk.errors import UserError
from vitalk.nn.retention import GridState, LineState, Schedule

from .checkpoint import checkpoint_filter_fn
from .layers import Decay, Mix, Mixing, Mode, Post, RetentionBlock

Pool = Literal["token_last", "token", "avg", "final", ""]
States = list[LineState] | list[GridState]

# Where the class token stands for each way to pool; "avg" and "final" have none.
CLASS_TOKEN = {"token_last": "last", "": "last", "token": "first", "avg": None, "final": None}
WITHOUT_MEANING = {"patch_drop_rate", "attn_drop_rate", "qk_norm", "scale_attn_norm", "reg_tokens", "no_embed_class",
                   "class_token", "pos_embed", "pool_include_prefix"}  # fmt: skip


class VisionRetention(VisionTransformer):
    """Vision retention network (arXiv 2310.19731): timm's ``VisionTransformer`` with retention for attention.

    Positions belong to the patches alone. global_pool: "token_last" appends the class token, which so has seen all
    patches; "token" puts it first, where in 1-D it sees nothing but itself; "avg" and "final" (the last patch) do
    without one; "" gives the tokens.
    decay: "1d" along the raster sequence, "2d" (version 2) by rows and columns. schedule: of the decays, see
    ``vitalk.nn.retention.decays``. post: see ``post_layer``; without layer scale (``init_values=None``) outputs grow
    with the number of tokens, and "none" is a bad choice.
    bidirectional: the sequence is followed by its reversal, class token included, as in the release; what
    "token_last" and "final" pool is then the first patch read again, which has seen both directions. For "1d" only,
    as the papers define no reversal of a grid.
    mode, chunk_size: what ``forward`` computes where it is not told. "parallel", "recurrent" and "chunkwise" agree;
    "release_softmax" is what the release calls parallel (see ``retain_with_softmax``), for its weights alone.
    Further arguments are timm's. Raises UserError for designs and sizes that mean nothing.
    """

    checkpoint_filter_fn = staticmethod(checkpoint_filter_fn)

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        num_heads: int = 12,
        global_pool: Pool = "token_last",
        init_values: float | None = 1e-5,
        fc_norm: bool | None = None,
        decay: Decay = "1d",
        schedule: Schedule = "vir",
        post: Post = "none",
        bidirectional: bool = False,
        mode: Mode = "parallel",
        chunk_size: int = 64,
        **kwargs: Any,
    ) -> None:
        _check_pool(global_pool)
        if odd := sorted(WITHOUT_MEANING & kwargs.keys()):
            raise UserError(f"{odd[0]} means nothing to retention; leave it out")
        if bidirectional and decay == "2d":
            raise UserError("bidirectional reading is defined along a sequence only; choose decay='1d' for it")
        size, patch = ((n, n) if isinstance(n, int) else tuple(n) for n in (img_size, patch_size))
        if any(n < 1 or n % p for n, p in zip(size, patch, strict=True)):
            raise UserError(f"pictures of {_by(size)} pixels do not divide into patches of {_by(patch)}; resize them")
        token = CLASS_TOKEN[global_pool]
        super().__init__(
            img_size=size,
            patch_size=patch,
            num_heads=num_heads,
            global_pool="token" if token else "avg",
            class_token=token is not None,
            no_embed_class=True,
            init_values=init_values,
            fc_norm=global_pool == "avg" if fc_norm is None else fc_norm,
            block_fn=partial(RetentionBlock, post=post),
            **kwargs,
        )
        self.mixing = Mixing(num_heads, schedule, decay, token)
        self.mixing.form(mode, chunk_size, 1, (1, 1), torch.device("cpu"))  # refuses unknown modes and chunks
        self.global_pool, self.bidirectional, self.mode, self.chunk_size = global_pool, bidirectional, mode, chunk_size
        self.num_prefix_tokens = int(token == "first")

    # From pictures to logits.

    def forward(self, x: Tensor, mode: Mode | None = None, chunk_size: int | None = None) -> Tensor:
        """Images [batch, channels, height, width] -> logits [batch, classes]; see ``forward_features``."""
        return self.forward_head(self.forward_features(x, mode, chunk_size))

    def forward_features(self, x: Tensor, mode: Mode | None = None, chunk_size: int | None = None) -> Tensor:
        """Images [batch, channels, height, width] -> normalised tokens [batch, tokens, dim].

        mode, chunk_size: the form in which every layer computes; None for the model's own. All can be trained.
        Layer by layer, all tokens are held at once; ``stream`` holds no more than a chunk.
        """
        x, mix = self._embed(x, mode, chunk_size)
        for block in self.blocks:
            x = self._run(block, x, mix)
        return self.norm(x)

    def pool(self, x: Tensor, pool_type: str | None = None) -> Tensor:
        """Tokens [batch, tokens, dim] -> what the head sees [batch, dim]; the tokens themselves for ""."""
        kind = self.global_pool if pool_type is None else pool_type
        if kind in ("token_last", "final"):
            return x[:, -1]
        if kind == "token":
            return x[:, 0]
        return x if kind == "" else torch.cat(self._patches(x), dim=1).mean(1)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        attn_mask: None = None,
        mode: Mode | None = None,
        chunk_size: int | None = None,
    ) -> Any:
        """What blocks give, as timm's method of this name; maps are of the patches, wherever the class token is.

        A bidirectional model shows its second reading, which has seen both directions. With return_prefix_tokens
        each map comes with the class token [batch, 1, dim], or none [batch, 0, dim]. Raises UserError for an
        attention mask: the decays are one already.
        """
        if attn_mask is not None:
            raise UserError("retention has a mask of its own and takes no attn_mask; leave it out")
        taken, last = feature_take_indices(len(self.blocks), indices)
        height, width = self.patch_embed.dynamic_feat_size(x.shape[-2:])
        x, mix = self._embed(x, mode, chunk_size)
        found = []
        for i, block in enumerate(self.blocks[: last + 1] if stop_early else self.blocks):
            x = self._run(block, x, mix)
            if i in taken:
                tokens = self.norm(x) if norm else x
                patches = self._patches(tokens)[-1]
                if output_fmt == "NCHW":
                    patches = patches.transpose(1, 2).unflatten(2, (height, width)).contiguous()
                place = {"last": slice(-1, None), "first": slice(0, 1), None: slice(0, 0)}[self.mixing.class_token]
                found.append((patches, tokens[:, place]) if return_prefix_tokens else patches)
        return found if intermediates_only else (self.norm(x), found)

    def reset_classifier(self, num_classes: int, global_pool: Pool | None = None) -> None:
        """A new head, and another way to pool. Raises UserError where it needs a class token in another place."""
        if global_pool is not None:
            _check_pool(global_pool)
            wanted = CLASS_TOKEN[global_pool]
            if global_pool in ("token", "token_last") and wanted != self.mixing.class_token:
                raise UserError(f"this model has no class token for global_pool={global_pool!r}; build it with that")
            if global_pool == "final" and self.mixing.class_token == "last":
                raise UserError("the final token of this model is its class token; choose global_pool='token_last'")
            self.global_pool = global_pool
        super().reset_classifier(num_classes)

    def set_input_size(
        self, img_size: int | tuple[int, int] | None = None, patch_size: int | tuple[int, int] | None = None
    ) -> None:
        """Read pictures of another size; positions are resized. Raises UserError where they do not divide."""
        size, patch = ((n, n) if isinstance(n, int) else n for n in (img_size, patch_size))
        whole, piece = size or self.patch_embed.img_size, patch or self.patch_embed.patch_size
        if any(n < 1 or n % p for n, p in zip(whole, piece, strict=True)):
            raise UserError(f"pictures of {_by(whole)} pixels do not divide into patches of {_by(piece)}; resize them")
        super().set_input_size(size, patch)

    # Token by token, chunk by chunk, strip by strip.

    def start(self) -> States:
        """One empty state a layer, for ``step``. Raises UserError for models that need the whole sequence at once."""
        if self.bidirectional or self.mode == "release_softmax":
            kind = "a bidirectional model" if self.bidirectional else "the release's softmax form"
            raise UserError(f"{kind} needs the whole sequence at once and cannot stream; use forward")
        gamma = self.mixing.gamma(self.pos_embed.device)
        if self.mixing.decay == "1d":
            return [LineState(gamma) for _ in self.blocks]
        width, token = self.patch_embed.grid_size[1], self.mixing.class_token
        return [GridState(gamma, width, token) for _ in self.blocks]

    def step(self, x: Tensor, states: States) -> Tensor:
        """The next embedded tokens [batch, tokens, dim], one or more -> normalised tokens of the same shape.

        states: from ``start``; they go on in place. Grids go on by whole rows, the class token apart or with them.
        """
        for block, state in zip(self.blocks, states, strict=True):
            x = block(x, state)
        return self.norm(x)

    @torch.no_grad()
    def stream(self, chunks: Iterable[Tensor], states: States | None = None) -> Iterator[Tensor]:
        """Chunks of embedded tokens [batch, tokens, dim], of any sizes -> their normalised tokens, as they come.

        Nothing grows with the number of chunks: a layer keeps one state (on a grid, the states of one row). Raises
        UserError in training mode, where dropout would differ from chunk to chunk.
        """
        if self.training:
            raise UserError("a stream is read in eval mode; call model.eval() first")
        states = self.start() if states is None else states
        for chunk in chunks:
            yield self.step(chunk, states)

    @torch.no_grad()
    def embed_strips(self, strips: Iterable[Tensor]) -> Iterator[Tensor]:
        """Strips of one picture [batch, channels, rows of pixels, width], from top to bottom -> chunks for ``stream``.

        Class token included. Raises UserError for strips that are no whole rows of patches or do not add up to the
        height that the model reads (``set_input_size``).
        """
        (patch, _), (height, width) = self.patch_embed.patch_size, self.patch_embed.img_size
        per_row, row = self.patch_embed.grid_size[1], 0
        strips = iter(strips)
        if self.mixing.class_token == "first" and (top := next(strips, None)) is not None:
            yield self.norm_pre(self.cls_token.expand(top.shape[0], -1, -1))
            strips = chain([top], strips)
        for strip in strips:
            rows = strip.shape[2] // patch
            if strip.shape[2] % patch or strip.shape[3] != width or row + rows > height // patch:
                raise UserError(
                    f"a strip of {_by(strip.shape[2:])} pixels at row {row * patch} does not fit a picture of"
                    f" {_by((height, width))} in rows of {patch}; cut it there, or call set_input_size"
                )
            x = self.patch_embed.norm(self.patch_embed.proj(strip).flatten(2).transpose(1, 2))
            yield self.norm_pre(x + self.pos_embed[:, row * per_row : (row + rows) * per_row])
            row += rows
        if row * patch != height:
            raise UserError(f"the strips end at row {row * patch} of {height}; give the whole picture")
        if self.mixing.class_token == "last":
            yield self.norm_pre(self.cls_token.expand(strip.shape[0], -1, -1))

    @torch.no_grad()
    def classify_stream(self, chunks: Iterable[Tensor]) -> Tensor:
        """Chunks as in ``stream``, class token included where there is one -> logits [batch, classes]."""
        first = last = total = None
        count = 0
        for tokens in self.stream(chunks):
            first, last = tokens[:, :1] if first is None else first, tokens[:, -1:]
            total = tokens.sum(1, keepdim=True) if total is None else total + tokens.sum(1, keepdim=True)
            count += tokens.shape[1]
        if total is None:
            raise UserError("the stream holds no tokens; give at least one chunk")
        if self.global_pool == "":
            raise UserError("a model that pools nothing has no logits for a stream; use stream, or reset_classifier")
        if self.global_pool == "avg":
            beside = {"last": last, "first": first, None: None}[self.mixing.class_token]
            pooled = total / count if beside is None else (total - beside) / (count - 1)
        else:
            pooled = first if self.global_pool == "token" else last
        return self.head(self.head_drop(self.fc_norm(pooled[:, 0])))

    def _embed(self, images: Tensor, mode: Mode | None, chunk_size: int | None) -> tuple[Tensor, Mix]:
        """The sequence that the blocks read, and the form in which they do."""
        self._check(images)
        grid = tuple(self.patch_embed.dynamic_feat_size(images.shape[-2:]))
        x = self.norm_pre(self._pos_embed(self.patch_embed(images)))
        if self.bidirectional:
            x = torch.cat([x, x.flip(1)], dim=1)
        size = self.chunk_size if chunk_size is None else chunk_size
        return x, self.mixing.form(mode or self.mode, size, x.shape[1], grid, x.device)

    def _pos_embed(self, x: Tensor) -> Tensor:
        table = self.pos_embed
        if self.dynamic_img_size:
            table = resample_abs_pos_embed(table, x.shape[1:3], self.patch_embed.grid_size, num_prefix_tokens=0)
            x = x.flatten(1, 2)
        x = x + table
        if self.cls_token is not None:
            token = self.cls_token.expand(x.shape[0], -1, -1)  # len would fix the batch of exported graphs
            x = torch.cat([x, token] if self.mixing.class_token == "last" else [token, x], dim=1)
        return self.pos_drop(x)

    def _run(self, block: RetentionBlock, x: Tensor, mix: Mix) -> Tensor:
        if self.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, x, mix, use_reentrant=False)
        return block(x, mix)

    def _patches(self, x: Tensor) -> list[Tensor]:
        """The patches of each reading in raster order, [batch, patches, dim]."""
        readings = [x]
        if self.bidirectional:
            there, back = x.chunk(2, dim=1)
            readings = [there, back.flip(1)]
        kept = {"last": slice(0, -1), "first": slice(1, None), None: slice(None)}[self.mixing.class_token]
        return [reading[:, kept] for reading in readings]

    def _check(self, images: Tensor) -> None:
        size, embed = tuple(images.shape[-2:]), self.patch_embed
        if not self.dynamic_img_size and size != tuple(embed.img_size):
            raise UserError(
                f"the picture has {_by(size)} pixels, the model reads {_by(embed.img_size)}; resize the picture, or"
                " call set_input_size"
            )
        if not embed.dynamic_img_pad and any(n % p for n, p in zip(size, embed.patch_size, strict=True)):
            raise UserError(
                f"the picture has {_by(size)} pixels, which patches of {_by(embed.patch_size)} do not divide; resize it"
            )


def _check_pool(global_pool: str) -> None:
    if global_pool not in CLASS_TOKEN:
        raise UserError(f"there is no global_pool {global_pool!r}; choose token_last, token, avg, final or ''")


def _by(size: Iterable[int]) -> str:
    return " x ".join(map(str, size))
