"""A whole ViT in integers: built from a float one with static scales, run as a bit-exact reference in numpy.

The plan is I-ViT's (arXiv 2207.01405): symmetric codes of 8 bits for pictures, weights and activations, 32-bit biases,
a residual stream of 16 bits, attention probabilities of 16 bits, scales of powers of two and multipliers
(``kernels.Rescale``) between them. Nothing is trained: this is post-training quantization.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitalk.errors import UserError

from .kernels import Array, Rescale, layer_norm, log_product, product, wide_product

BATCH = 32
STREAM_BITS = 16


@dataclass(frozen=True)
class Linear:
    """weight: codes [in, out]. bias: in the unit of the sums, 32 bits. scale: of the sums, [out]."""

    weight: np.ndarray
    bias: np.ndarray
    scale: np.ndarray

    def __call__(self, x: Array) -> Array:
        """x [..., in] of 8-bit codes -> sums [..., out]."""
        return product(x, self.weight) + self.bias


@dataclass(frozen=True)
class Conv:
    """A convolution over channels last as a product of shifted pictures.

    linear: its weight is [height * width * in, out]. kernel, stride, padding: pixels, (down, right). size: of what
    comes out. channels: that go in.
    """

    linear: Linear
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    size: tuple[int, int]
    channels: int

    def __call__(self, x: Array) -> Array:
        """x [batch, height, width, in] -> sums [batch, height, width, out]."""
        (height, width), (down, right) = self.size, self.kernel
        if self.kernel == self.stride and self.padding == (0, 0):
            x = x.reshape(-1, height, down, width, right, self.channels).transpose(0, 1, 3, 2, 4, 5)
            return self.linear(x.reshape(-1, height, width, down * right * self.channels))
        x = np.pad(x, ((0, 0), *((p, p) for p in self.padding), (0, 0)))
        rows, columns = (_steps(count, by) for count, by in zip(self.size, self.stride, strict=True))
        shifted = [x[:, rows(i), columns(j)] for i in range(down) for j in range(right)]
        return self.linear(np.concatenate(shifted, axis=3))


def _steps(count: int, by: int) -> Callable[[int], slice]:
    return lambda first: slice(first, first + by * (count - 1) + 1, by)


@dataclass(frozen=True)
class Activation:
    """GELU: sums are rescaled to what its kernel takes, and its output to 8 bits.

    kernel: codes -> codes (``kernels``), bound to its constants.
    """

    before: Rescale
    kernel: Callable[[Array], Array]
    after: Rescale

    def __call__(self, x: Array) -> Array:
        """Sums -> 8-bit codes."""
        return self.after(self.kernel(self.before(x)))


@dataclass(frozen=True)
class Norm:
    """LayerNorm over ``dim`` channels; weight, bias and the output's scale are in ``after``."""

    dim: int
    after: Rescale

    def __call__(self, x: Array) -> Array:
        """Codes of any width -> 8-bit codes."""
        return self.after(layer_norm(x, self.dim))


@dataclass(frozen=True)
class Join:
    """The end of a residual branch: the stream and the branch's sums, both in the unit of the stream behind it."""

    stream: Rescale
    branch: Rescale

    def __call__(self, x: Array, sums: Array) -> Array:
        """x: 16-bit codes; sums: of the branch's last layer -> 16-bit codes (17 at the extremes)."""
        return self.stream(x) + self.branch(sums)


@dataclass(frozen=True)
class Chain:
    """One step after the other."""

    steps: tuple[Callable[[Array], Array], ...]

    def __call__(self, x: Array) -> Array:
        """Codes -> what the last step puts out."""
        for step in self.steps:
            x = step(x)
        return x


@dataclass(frozen=True)
class Skip:
    """A residual branch whose sum goes through an activation."""

    body: Chain
    join: Join
    act: Activation

    def __call__(self, x: Array) -> Array:
        """8-bit codes -> 8-bit codes."""
        return self.act(self.join(x, self.body(x)))


@dataclass(frozen=True)
class SelfAttention:
    """Queries, keys and values in 8 bits, scores in 8 bits, probabilities as ``softmax`` makes them.

    softmax: scores -> probabilities; logarithmic: they are codes of ``log_softmax_codes``, else units of 2**-15.
    """

    qkv: Linear
    split: Rescale
    heads: int
    tokens: int
    scores: Rescale
    softmax: Callable[[Array], Array]
    logarithmic: bool
    context: Rescale
    proj: Linear

    def __call__(self, x: Array) -> Array:
        """x [batch, tokens, dim] of 8-bit codes -> sums [batch, tokens, dim]."""
        x = self.split(self.qkv(x))
        inner = self.qkv.weight.shape[1] // 3
        q, k, v = (
            x[..., i * inner : (i + 1) * inner].reshape(-1, self.tokens, self.heads, inner // self.heads)
            for i in range(3)
        )
        probabilities = self.softmax(self.scores(product(q.transpose(0, 2, 1, 3), k.transpose(0, 2, 3, 1))))
        mix = log_product if self.logarithmic else wide_product
        out = self.context(mix(probabilities, v.transpose(0, 2, 1, 3)))
        return self.proj(out.transpose(0, 2, 1, 3).reshape(-1, self.tokens, inner))


@dataclass(frozen=True)
class Block:
    """A pre-norm transformer block."""

    norm1: Norm
    attention: SelfAttention
    join1: Join
    norm2: Norm
    fc1: Linear
    gelu: Activation
    fc2: Linear
    join2: Join

    def __call__(self, x: Array) -> Array:
        """The residual stream, 16-bit codes [batch, tokens, dim] -> the same shape."""
        x = self.join1(x, self.attention(self.norm1(x)))
        return self.join2(x, self.fc2(self.gelu(self.fc1(self.norm2(x)))))


@dataclass(frozen=True)
class Embedding:
    """Patches to the residual stream: their sums are rescaled, and positions and class token added.

    stem: codes [batch, height, width, channels] -> sums [batch, rows, columns, dim]. prefix: tokens in front of the
    patches. constant: [1, tokens, dim], the positions and the prefix tokens themselves.
    """

    stem: Callable[[Array], Array]
    after: Rescale
    prefix: int
    constant: np.ndarray

    def __call__(self, x: Array) -> Array:
        """Picture codes, channels first -> the residual stream."""
        x = self.after(self.stem(x.transpose(0, 2, 3, 1)))
        count, dim = self.constant.shape[1:]
        patches = x.reshape(-1, count - self.prefix, dim)
        return np.pad(patches, ((0, 0), (self.prefix, 0), (0, 0))) + self.constant


@dataclass(frozen=True)
class Head:
    """From the residual stream to logits.

    norm: in front of the pooling or None. first, last: the tokens that are summed. pooled: behind it, a LayerNorm or a
    rescaling, or None.
    """

    norm: Norm | None
    first: int
    last: int
    pooled: Norm | Rescale | None
    linear: Linear
    after: Rescale

    def __call__(self, x: Array) -> Array:
        """[batch, tokens, dim] -> logits [batch, classes], 16-bit codes."""
        x = x if self.norm is None else self.norm(x)
        x = x[:, self.first : self.last].sum(1)
        return self.after(self.linear(x if self.pooled is None else self.pooled(x)))


@dataclass(frozen=True)
class IntegerViT:
    """A ViT whose forward pass has whole numbers only, but for the two ends; ``integer_vit`` builds it.

    image_scale: of the pictures' 8-bit codes. image_shape: (channels, height, width). scale: of the logits.
    """

    image_scale: float
    image_shape: tuple[int, int, int]
    embedding: Embedding
    blocks: tuple[Block, ...]
    head: Head
    scale: float
    classes: int

    def codes(self, x: Array) -> Array:
        """Picture codes [batch, channels, height, width] -> logit codes [batch, classes], all int64."""
        x = self.embedding(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)

    def encode(self, images: Any) -> np.ndarray:
        """Normalised float pictures -> their codes. Raises UserError for pictures of another size."""
        images = np.asarray(images, np.float32)
        if images.ndim != 4 or images.shape[1:] != self.image_shape:
            wanted = " x ".join(map(str, self.image_shape))
            raise UserError(f"this network takes pictures [count, {wanted}], got {list(images.shape)}; resize them")
        return np.rint(images / np.float32(self.image_scale)).clip(-128, 127).astype(np.int64)

    def __call__(self, images: Tensor) -> Tensor:
        """images [batch, channels, height, width], normalised -> logits [batch, classes] float32."""
        codes = [self.codes(self.encode(chunk)) for chunk in images.split(BATCH)]
        return torch.from_numpy(np.concatenate(codes).astype(np.float32) * np.float32(self.scale))
