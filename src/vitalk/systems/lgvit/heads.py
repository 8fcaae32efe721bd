"""The heads that classify from what leaves a layer: LGViT's two kinds, and those that it is compared with."""

from dataclasses import dataclass

from timm.layers import Attention, trunc_normal_
from timm.models.vision_transformer import Block
from torch import Tensor, cat, nn

from vitalk.errors import UserError

KINDS = ("lph3", "lph1", "gah1", "gah2", "gah3", "linear", "vit")


@dataclass(frozen=True)
class Exit:
    """What a head says: logits [batch, classes], and the tokens [batch, tokens, dim] that it formed them from."""

    logits: Tensor
    tokens: Tensor


class LocalPerception(nn.Module):
    """Local perception head, LPH: a bottleneck-free convolution block around a skip (arXiv 2308.00255, section 3.2).

    1x1 convolution, GELU, norm; with ``kernel`` 3 a depthwise 3x3 convolution, GELU, norm; 1x1 convolution, norm.
    Map [batch, rows, columns, dim] -> the same shape. Channels lie last, where convolutions are fastest.
    """

    stride = 1

    def __init__(self, dim: int, kernel: int):
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(dim, dim, 1), nn.GELU(), nn.BatchNorm2d(dim))
        if kernel == 3:
            self.proj = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
            self.proj_act, self.proj_bn = nn.GELU(), nn.BatchNorm2d(dim)
        self.kernel = kernel
        self.conv2 = nn.Sequential(nn.Conv2d(dim, dim, 1), nn.BatchNorm2d(dim))

    def forward(self, grid: Tensor) -> Tensor:
        """The map plus what the convolutions make of it."""
        x = self.conv1(grid.permute(0, 3, 1, 2))
        if self.kernel == 3:
            x = self.proj_bn(self.proj_act(self.proj(x)))
        return grid + self.conv2(x).permute(0, 2, 3, 1)


class GlobalAggregation(nn.Module):
    """Global aggregation head, GAH: self-attention among every ``stride``-th token of the map, both ways.

    Eight heads, no skip, no norm (arXiv 2308.00255, section 3.2). The paper's pooling has a window of one: it takes
    tokens and averages nothing. Map [batch, rows, columns, dim] -> [batch, ceil(rows / stride), ..., dim].
    Raises UserError for widths that eight heads do not share.
    """

    def __init__(self, dim: int, stride: int):
        super().__init__()
        if dim % 8:
            raise UserError(f"a global aggregation head has 8 attention heads, which do not share a width of {dim}")
        self.stride, self.attn = stride, Attention(dim, num_heads=8)

    def forward(self, grid: Tensor) -> Tensor:
        """The attended tokens, as a smaller map."""
        x = grid[:, :: self.stride, :: self.stride]
        return self.attn(x.flatten(1, 2)).unflatten(1, x.shape[1:3])


class ExitHead(nn.Module):
    """A local or global body, and the classifier on the mean of its tokens plus each special token.

    With a class and a distillation token the logits are the mean of two classifiers; without either the tokens are
    normalised before the mean, as in Swin.
    """

    def __init__(self, body: LocalPerception | GlobalAggregation, dim: int, special: int, classes: int):
        super().__init__()
        self.body = body
        self.norm = nn.Identity() if special else nn.LayerNorm(dim)
        self.classifiers = _classifiers(dim, special, classes)
        self.apply(_init)

    def forward(self, grid: Tensor, special: Tensor | None) -> Exit:
        """grid [batch, rows, columns, dim], special [batch, special, dim] or None -> ``Exit``."""
        tokens = self.body(grid).flatten(1, 2)
        pooled = self.norm(tokens).mean(1, keepdim=True)
        return Exit(_vote(self.classifiers, pooled if special is None else pooled + special), tokens)


class LinearHead(nn.Module):
    """The heads of earlier work: a linear classifier, or (ViT-EE) one behind a transformer layer of its own.

    They read the class token through a dense tanh layer, as DeeBERT and SDN do; class and distillation token after a
    norm; without special tokens the mean of the normalised map. layer: ViT-EE's, over all tokens but registers.
    """

    def __init__(self, dim: int, special: int, classes: int, layer: Block | None = None):
        super().__init__()
        self.layer = layer
        self.pool = nn.Sequential(nn.Linear(dim, dim), nn.Tanh()) if special == 1 else nn.LayerNorm(dim)
        self.classifiers = _classifiers(dim, special, classes)
        self.apply(_init)

    def forward(self, grid: Tensor, special: Tensor | None) -> Exit:
        """grid [batch, rows, columns, dim], special [batch, special, dim] or None -> ``Exit``."""
        tokens = grid.flatten(1, 2)
        if self.layer is not None:
            count = 0 if special is None else special.shape[1]
            x = self.layer(tokens if special is None else cat([special, tokens], 1))
            special, tokens = x[:, :count] if count else None, x[:, count:]
        read = self.pool(tokens).mean(1, keepdim=True) if special is None else self.pool(special)
        return Exit(_vote(self.classifiers, read), tokens)


def reset_classifier(head: ExitHead | LinearHead, classes: int) -> None:
    """New classifiers for ``classes`` classes, on the device and of the type of the old ones."""
    old = head.classifiers[0]
    head.classifiers = _classifiers(old.in_features, len(head.classifiers), classes).apply(_init).to(old.weight)


def _classifiers(dim: int, special: int, classes: int) -> nn.ModuleList:
    if classes < 1:
        raise UserError(f"every exit is a classifier, which needs at least one class; got num_classes={classes}")
    return nn.ModuleList(nn.Linear(dim, classes) for _ in range(max(special, 1)))


def _vote(classifiers: nn.ModuleList, x: Tensor) -> Tensor:
    """x [batch, classifiers, dim] -> the mean of their logits."""
    votes = [classify(x[:, i]) for i, classify in enumerate(classifiers)]
    return votes[0] if len(votes) == 1 else sum(votes) / len(votes)


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Conv2d):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
