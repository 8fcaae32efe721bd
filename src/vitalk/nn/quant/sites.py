"""Quantization sites: the linear layers, convolutions and attention products of a model, with quantizers on them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
import torch.nn.functional as F
from timm.layers import Attention
from timm.models.swin_transformer import WindowAttention
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from vitalk.nn.attention import MatMul, SiteAttention, SiteWindowAttention

from .quantizers import Quantizer


class _WeightSite:
    """What linear layers and convolutions have in common: two quantizers, and taking over a layer's parameters."""

    input_quantizer: Quantizer | None
    weight_quantizer: Quantizer | None

    def quantized(self, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Input and weight, each through its quantizer where it has one."""
        return _through(self.input_quantizer, x), _through(self.weight_quantizer, weight)


class QuantLinear(_WeightSite, nn.Linear):
    """A linear layer with quantizers on input [..., in] and weight [out, in]; its parameters are the layer's own."""

    @classmethod
    def wrap(cls, layer: nn.Linear) -> Self:
        """A site that holds the parameters of ``layer``; without quantizers it computes the same."""
        site = cls(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        return _take_over(site, layer)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out]."""
        x, weight = self.quantized(x, self.weight)
        return F.linear(x, weight, self.bias)


class QuantConv2d(_WeightSite, nn.Conv2d):
    """A convolution with quantizers on input [batch, in, height, width] and weight [out, in, height, width]."""

    @classmethod
    def wrap(cls, layer: nn.Conv2d) -> Self:
        """A site that holds the parameters of ``layer``; without quantizers it computes the same."""
        site = cls(
            layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding, layer.dilation,
            layer.groups, layer.bias is not None, layer.padding_mode, device="meta",
        )  # fmt: skip
        return _take_over(site, layer)

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, in, height, width] -> [batch, out, ...]."""
        if torch.compiler.is_exporting() and self._cuts_patches(x):
            return self._as_product(x)
        x, weight = self.quantized(x, self.weight)
        return self._conv_forward(x, weight, self.bias)

    @property
    def is_patch_embedding(self) -> bool:
        """Whether it cuts pictures into patches that do not overlap."""
        plain = self.padding in ((0, 0), "valid") and self.dilation == (1, 1) and self.groups == 1
        return plain and self.stride == self.kernel_size != (1, 1)

    def _cuts_patches(self, x: Tensor) -> bool:
        divides = all(size % step == 0 for size, step in zip(x.shape[2:], self.stride, strict=True))
        return self.is_patch_embedding and divides

    def _as_product(self, x: Tensor) -> Tensor:
        """A patch embedding as cut and matrix product: runtimes do that in int8, with no quantizer on the output."""
        batch, channels, height, width = x.shape
        down, right = self.stride
        x = x.reshape(batch, channels, height // down, down, width // right, right).permute(0, 2, 4, 1, 3, 5)
        x = x.reshape(batch, (height // down) * (width // right), channels * down * right)
        x, weight = self.quantized(x, self.weight.flatten(1))
        out = F.linear(x, weight, self.bias).transpose(1, 2)
        return out.reshape(batch, self.out_channels, height // down, width // right)


class QuantConv1d(_WeightSite, nn.Conv1d):
    """A convolution over time with quantizers on input [batch, in, frames] and weight [out, in, width]."""

    @classmethod
    def wrap(cls, layer: nn.Conv1d) -> Self:
        """A site that holds the parameters of ``layer``; without quantizers it computes the same."""
        site = cls(
            layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding, layer.dilation,
            layer.groups, layer.bias is not None, layer.padding_mode, device="meta",
        )  # fmt: skip
        return _take_over(site, layer)

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, in, frames] -> [batch, out, ...]."""
        quantized = self.input_quantizer is not None and self.weight_quantizer is not None
        if torch.compiler.is_exporting() and quantized and self.is_product:
            return self._as_product(x)
        x, weight = self.quantized(x, self.weight)
        return self._conv_forward(x, weight, self.bias)

    @property
    def is_product(self) -> bool:
        """Whether it can be written as a matrix product of shifted frames."""
        return self.groups == 1 and self.padding_mode == "zeros" and not isinstance(self.padding, str)

    def _as_product(self, x: Tensor) -> Tensor:
        """Shifted frames side by side, times the weight: runtimes do that in int8, with no quantizer on the output."""
        (width,), (stride,), (dilation,), (padding,) = self.kernel_size, self.stride, self.dilation, self.padding
        x = F.pad(x, (padding, padding)).transpose(1, 2)
        count = (x.shape[1] - dilation * (width - 1) - 1) // stride + 1
        frames = [x[:, i * dilation : i * dilation + (count - 1) * stride + 1 : stride] for i in range(width)]
        x, weight = self.quantized(torch.cat(frames, -1), self.weight.transpose(1, 2).flatten(1))
        return F.linear(x, weight, self.bias).transpose(1, 2)


class QuantMatMul(MatMul):
    """The product of two activations with a quantizer on each."""

    def __init__(self) -> None:
        super().__init__()
        self.left_quantizer: Quantizer | None = None
        self.right_quantizer: Quantizer | None = None

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """a [..., rows, inner], b [..., inner, columns] -> [..., rows, columns]."""
        return _through(self.left_quantizer, a) @ _through(self.right_quantizer, b)


Site = QuantLinear | QuantConv2d | QuantConv1d | QuantMatMul


def expose(model: nn.Module, attention: bool = True) -> nn.Module:
    """Turn linear layers, convolutions and (with ``attention``) attention products of ``model`` into sites, in place.

    Parameters and their names stay; without quantizers the outputs are those of the unfused timm model.
    Layers whose class computes in its own way, attention of other kinds than timm's ``Attention`` and
    ``WindowAttention``, and what is a site already stay as they are. Works on any module, a ``Trunk`` too.
    """
    if attention:
        _replace(model, _exposed_attention)
        _replace(model, lambda module: QuantMatMul() if type(module) is MatMul else None)
    _replace(model, _exposed_layer)
    return model


def sites(model: nn.Module) -> dict[str, Site]:
    """The sites of ``model`` by module name, in the order of the modules."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Site)}


def quantizers(model: nn.Module) -> dict[str, Quantizer]:
    """The quantizers of ``model`` by module name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Quantizer)}


@contextmanager
def switched_off(model: nn.Module) -> Iterator[None]:
    """Within it the model computes in float."""
    active = [q for q in quantizers(model).values() if q.enabled]
    for quantizer in active:
        quantizer.enabled = False
    try:
        yield
    finally:
        for quantizer in active:
            quantizer.enabled = True


def fold_batch_norms(model: nn.Module) -> nn.Module:
    """Fold each BatchNorm2d that follows a convolution in a Sequential into it, in place; for models in eval mode.

    Quantized weights must be the ones that are multiplied at inference, and runtimes cannot fold afterwards.
    """
    for sequence in [m for m in model.modules() if isinstance(m, nn.Sequential)]:
        for i in range(len(sequence) - 1):
            if type(sequence[i]) is nn.Conv2d and type(sequence[i + 1]) is nn.BatchNorm2d:
                sequence[i] = fuse_conv_bn_eval(sequence[i].eval(), sequence[i + 1].eval())
                sequence[i + 1] = nn.Identity()
    return model


def _through(quantizer: Quantizer | None, x: Tensor) -> Tensor:
    return x if quantizer is None else quantizer(x)


def _take_over(site: Any, layer: nn.Module) -> Any:
    site.weight, site.bias = layer.weight, layer.bias
    site.input_quantizer = site.weight_quantizer = None
    return site.train(layer.training)


def _exposed_attention(module: nn.Module) -> nn.Module | None:
    if type(module) is Attention:
        return SiteAttention.from_timm(module)
    return SiteWindowAttention.from_timm(module) if type(module) is WindowAttention else None


def _exposed_layer(module: nn.Module) -> nn.Module | None:
    if type(module).forward is nn.Linear.forward:
        return QuantLinear.wrap(module)
    if type(module).forward is nn.Conv1d.forward:
        return QuantConv1d.wrap(module)
    return QuantConv2d.wrap(module) if type(module).forward is nn.Conv2d.forward else None


def _replace(model: nn.Module, exposed: Callable[[nn.Module], nn.Module | None]) -> None:
    done: dict[int, nn.Module | None] = {}
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if name and id(module) not in done:
            done[id(module)] = exposed(module)
        if name and (site := done[id(module)]) is not None:
            model.set_submodule(name, site)
