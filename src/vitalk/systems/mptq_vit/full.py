"""The fully quantized network: what goes into LayerNorms and into the softmax is rounded too."""

from timm.layers import LayerNorm
from torch import Tensor, nn

from vitalk.nn.attention import SiteAttention, SiteWindowAttention
from vitalk.nn.quant import QuantMatMul, UniformQuantizer

BITS = 8


class QuantLayerNorm(nn.LayerNorm):
    """A LayerNorm with a quantizer on its input [..., channels]; its parameters are the original's own."""

    @classmethod
    def wrap(cls, norm: nn.LayerNorm) -> "QuantLayerNorm":
        """One that holds the parameters of ``norm``."""
        made = cls(norm.normalized_shape, norm.eps, device="meta")
        made.weight, made.bias = norm.weight, norm.bias
        made.input_quantizer = UniformQuantizer(BITS)
        return made.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., channels] -> the same shape."""
        return super().forward(self.input_quantizer(x))


class QuantScores(QuantMatMul):
    """Queries times keys with a quantizer on what comes out, the scores that go into the softmax."""

    @classmethod
    def wrap(cls, product: QuantMatMul) -> "QuantScores":
        """One with the quantizers of ``product``."""
        made = cls()
        made.left_quantizer, made.right_quantizer = product.left_quantizer, product.right_quantizer
        made.score_quantizer = UniformQuantizer(BITS)
        return made.train(product.training)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """a [..., rows, inner], b [..., inner, columns] -> [..., rows, columns]."""
        return self.score_quantizer(super().forward(a, b))


def quantize_fully(model: nn.Module) -> list[str]:
    """Put quantizers in front of all LayerNorms and softmaxes, in place; the names of these quantizers, unfitted.

    8 bits each, uniform, one scale a tensor. A Swin's scores are rounded before position bias and mask are added.
    (FQ-ViT, arXiv 2111.13824, has power-of-two factors for each channel of a LayerNorm's input instead.)
    """
    names = []
    for name, module in list(model.named_modules()):
        if type(module) in (nn.LayerNorm, LayerNorm):
            model.set_submodule(name, QuantLayerNorm.wrap(module))
            names.append(f"{name}.input_quantizer")
        elif isinstance(module, SiteAttention | SiteWindowAttention) and isinstance(module.matmul1, QuantMatMul):
            module.matmul1 = QuantScores.wrap(module.matmul1)
            names.append(f"{name}.matmul1.score_quantizer")
    return names
