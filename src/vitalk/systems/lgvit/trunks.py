"""A timm ViT or Swin as a row of layers with a token map behind each, and where the exits go by default."""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

from timm.models.deit import VisionTransformerDistilled
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from vitalk.errors import UserError

# Kinds of head from shallow to deep (arXiv 2308.00255, section 3.2 and the release's lists).
ORDER = ("lph3", "lph3", "lph1", "lph1", "gah2", "gah2", "gah3", "gah3")
ORDER_OF_SIX = ("lph3", "lph1", "gah2", "gah2", "gah3", "gah3")
SWIN_ORDER = ("lph3", "lph1", "lph1", "gah1", "gah1", "gah2")  # of the last stage but one
NORM = partial(nn.LayerNorm, eps=1e-6)
SWIN_BASE = (2, 2, 18, 2), (4, 7, 10, 13, 16, 19, 22, 23)  # depths, and the layers with exits


class PlainTrunk(nn.Module):
    """A VisionTransformer, plain or distilled, of any size.

    depth: its layers. dims: width after each. special: tokens that the classifier reads, 1 with a class token, 2 with
    a distillation token too, else 0; registers are none of them, and no head looks at them.
    """

    def __init__(self, vit: VisionTransformer):
        super().__init__()
        if type(vit).forward_features is not VisionTransformer.forward_features:
            raise UserError(f"{type(vit).__name__} has a forward pass of its own, which early exits would skip")
        if not isinstance(vit.patch_drop, nn.Identity):
            raise UserError("patch_drop_rate leaves holes in the token map that the exits read; set it to 0")
        self.vit, self.depth = vit, len(vit.blocks)
        self.dims = (vit.embed_dim,) * self.depth
        self.special = 2 if isinstance(vit, VisionTransformerDistilled) else int(vit.has_class_token)

    def embed(self, images: Tensor) -> Tensor:
        """images [batch, channels, height, width] -> tokens [batch, tokens, dim]."""
        return self.vit.norm_pre(self.vit._pos_embed(self.vit.patch_embed(images)))

    def layer(self, index: int, x: Tensor) -> Tensor:
        """What leaves layer ``index`` (0-based)."""
        return self.vit.blocks[index](x)

    def split(self, x: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
        """The map of patches [batch, rows, columns, dim] and the special tokens [batch, special, dim], if any.

        size: height and width of the picture in pixels.
        """
        rows, columns = self.vit.patch_embed.dynamic_feat_size(size)
        patches = x[:, self.vit.num_prefix_tokens :]
        grid = patches.reshape(x.shape[0], rows, columns, x.shape[-1])  # not len(x), which would fix an exported batch
        return grid, x[:, : self.special] if self.special else None

    def classify(self, x: Tensor) -> Tensor:
        """What leaves the last layer -> logits [batch, classes]."""
        return self.vit.forward_head(self.vit.norm(x))

    def default_layers(self, count: int | None) -> tuple[int, ...]:
        """Evenly spread between a third of the depth and the last layer but one: 4 to 11 for eight exits of twelve.

        The paper places eight exits in twelve layers; other counts and depths are ours. count: None for eight, or as
        many as there is room for.
        """
        return spread(max(1, round(self.depth / 3)), self.depth - 1, count)

    def order(self, layers: Sequence[int]) -> tuple[str, ...]:
        """The kinds of head at ``layers``: the paper's for 2, 4, 6 and 8, else its eight stretched (ours)."""
        return ORDER_OF_SIX if len(layers) == 6 else stretched(ORDER, len(layers))

    def encoder_layer(self, index: int) -> Block:
        """A further layer like those of the trunk, for the head of ViT-EE at layer ``index`` (0-based)."""
        first, dim = self.vit.blocks[0], self.dims[index]
        return Block(dim, first.attn.num_heads, first.mlp.fc1.out_features / dim, qkv_bias=True, norm_layer=NORM)


class SwinTrunk(nn.Module):
    """A SwinTransformer; layers are counted through its stages, and patch merging belongs to the layer after it."""

    special = 0

    def __init__(self, vit: SwinTransformer):
        super().__init__()
        self.vit, self.depths = vit, tuple(len(stage.blocks) for stage in vit.layers)
        self.depth = sum(self.depths)
        self.places = [(s, b) for s, depth in enumerate(self.depths) for b in range(depth)]
        self.dims = tuple(vit.layers[s].blocks[b].dim for s, b in self.places)

    def embed(self, images: Tensor) -> Tensor:
        """images [batch, channels, height, width] -> map [batch, rows, columns, dim]."""
        return self.vit.patch_embed(images)

    def layer(self, index: int, x: Tensor) -> Tensor:
        """What leaves layer ``index`` (0-based), after the patch merging where a stage begins."""
        s, b = self.places[index]
        stage = self.vit.layers[s]
        return stage.blocks[b](stage.downsample(x) if b == 0 else x)

    def split(self, x: Tensor, size: tuple[int, int]) -> tuple[Tensor, None]:
        """The map itself; there are no special tokens."""
        return x, None

    def classify(self, x: Tensor) -> Tensor:
        """What leaves the last layer -> logits [batch, classes]."""
        return self.vit.forward_head(self.vit.norm(x))

    def default_layers(self, count: int | None) -> tuple[int, ...]:
        """The paper's eight for Swin-S and -B; others (ours) evenly from the end of the second stage."""
        if (self.depths, count or 8) == (SWIN_BASE[0], 8):
            return SWIN_BASE[1]
        return spread(min(sum(self.depths[:2]), self.depth - 1), self.depth - 1, count)

    def order(self, layers: Sequence[int]) -> tuple[str, ...]:
        """LPH3 in the first stages, GAH2 in the last, and the paper's six, stretched to the number, in between."""
        last = len(self.depths) - 1
        stages = [self.places[layer - 1][0] for layer in layers]
        middle = iter(stretched(SWIN_ORDER, stages.count(last - 1)))
        return tuple("gah2" if s == last else next(middle) if s == last - 1 else "lph3" for s in stages)

    def encoder_layer(self, index: int) -> Block:
        """A plain transformer layer over the whole map, with 8 heads and the release's 3072 units for 512 channels."""
        return Block(self.dims[index], 8, 6.0, qkv_bias=True, norm_layer=NORM)


def trunk_of(vit: nn.Module) -> PlainTrunk | SwinTrunk:
    """The layers of a timm model. Raises UserError for models that are neither VisionTransformer nor Swin."""
    kinds = {VisionTransformer: PlainTrunk, SwinTransformer: SwinTrunk}
    for kind, trunk in kinds.items():
        if isinstance(vit, kind):
            return trunk(vit)
    raise UserError(f"LGViT needs a timm vit_*, deit* or swin_* model; {type(vit).__name__} is none of them")


def spread(first: int, last: int, count: int | None) -> tuple[int, ...]:
    """``count`` layers, evenly from ``first`` to ``last``; None for eight, or as many as fit. Raises UserError."""
    room = last - first + 1
    count = min(8, room) if count is None else count
    if not 1 <= count <= room:
        raise UserError(f"{count} exits do not fit between layers {first} and {last}; ask for 1 to {max(room, 0)}")
    if count == 1:
        return ((first + last) // 2,)
    return tuple(int(first + i * (last - first) / (count - 1) + 0.5) for i in range(count))


def stretched(order: Sequence[str], count: int) -> tuple[str, ...]:
    """``order`` with entries repeated or left out, evenly, until there are ``count``."""
    return tuple(order[i * len(order) // count] for i in range(count))


def checked_layers(layers: Sequence[int | float], depth: int) -> tuple[int, ...]:
    """Layer numbers (from 1) or shares of the depth in (0, 1) as layer numbers. Raises UserError for bad places."""
    found = []
    for place in layers:
        if isinstance(place, float) and 0 < place < 1:
            place = min(max(int(place * depth + 0.5), 1), depth - 1)
        if isinstance(place, bool) or not isinstance(place, int) or not 1 <= place < depth:
            raise UserError(
                f"there is no exit after layer {place}: give layers from 1 to {depth - 1} of the model's {depth}, "
                "or shares of its depth between 0 and 1"
            )
        found.append(place)
    if not found or any(a >= b for a, b in pairwise(found)):
        raise UserError(f"exits must be at different layers in ascending order, at least one; got {list(layers)}")
    return tuple(found)
