"""Quantization sites: the linear layers, convolutions and attention products of a model, with quantizers on them."""

import copy
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, Self

import torch
import torch.nn.functional as F
from timm.layers import Attention, BatchNormAct2d, ConvNormAct
from timm.models.efficientformer import Attention as BiasedAttention
from timm.models.swin_transformer import WindowAttention
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from vitalk.errors import UserError
from vitalk.nn.attention import MatMul, SiteAttention, SiteBiasedAttention, SiteWindowAttention

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


class _ConvSite(_WeightSite):
    @classmethod
    def wrap(cls, layer: nn.Conv1d | nn.Conv2d) -> Self:
        """A site that holds the parameters of ``layer``; without quantizers it computes the same."""
        site = cls(
            layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding, layer.dilation,
            layer.groups, layer.bias is not None, layer.padding_mode, device="meta",
        )  # fmt: skip
        return _take_over(site, layer)


class QuantConv2d(_ConvSite, nn.Conv2d):
    """A convolution with quantizers on input [batch, in, height, width] and weight [out, in, height, width]."""

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, in, height, width] -> [batch, out, ...]."""
        if torch.compiler.is_exporting() and (self._cuts_patches(x) or self._quantized_pointwise):
            return self._as_product(x)
        x, weight = self.quantized(x, self.weight)
        return self._conv_forward(x, weight, self.bias)

    @property
    def is_patch_embedding(self) -> bool:
        """Whether it cuts pictures into patches that do not overlap."""
        return self.is_product and self.kernel_size != (1, 1)

    @property
    def is_product(self) -> bool:
        """Whether it is a matrix product: of patches that do not overlap, or of single pixels."""
        plain = self.padding in ((0, 0), "valid") and self.dilation == (1, 1) and self.groups == 1
        return plain and self.stride == self.kernel_size

    @property
    def _quantized_pointwise(self) -> bool:
        """Float convolutions of single pixels stay what they are, which runtimes do as fast."""
        quantized = self.input_quantizer is not None and self.weight_quantizer is not None
        return quantized and self.is_product and self.kernel_size == (1, 1)

    def _cuts_patches(self, x: Tensor) -> bool:
        divides = all(size % step == 0 for size, step in zip(x.shape[2:], self.stride, strict=True))
        return self.is_patch_embedding and divides

    def _as_product(self, x: Tensor) -> Tensor:
        """Patches or pixels, times the weight: runtimes do that in int8, with no quantizer on the output."""
        batch, channels, height, width = x.shape
        down, right = self.stride
        x = x.reshape(batch, channels, height // down, down, width // right, right).permute(0, 2, 4, 1, 3, 5)
        x = x.reshape(batch, (height // down) * (width // right), channels * down * right)
        x, weight = self.quantized(x, self.weight.flatten(1))
        out = F.linear(x, weight, self.bias).transpose(1, 2)
        return out.reshape(batch, self.out_channels, height // down, width // right)


class QuantConv1d(_ConvSite, nn.Conv1d):
    """A convolution over time with quantizers on input [batch, in, frames] and weight [out, in, width]."""

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
    Layers whose class computes in its own way, attention of other kinds than timm's ``Attention``, ``WindowAttention``
    and that of EfficientFormer, and what is a site already stay as they are. Works on any module, a ``Trunk`` too.
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
def switched_off(model: nn.Module, but: Collection[str] = ()) -> Iterator[None]:
    """Within it the model computes in float, except at the sites named in ``but``."""
    active = [q for name, q in quantizers(model).items() if q.enabled and name.rpartition(".")[0] not in but]
    for quantizer in active:
        quantizer.enabled = False
    try:
        yield
    finally:
        for quantizer in active:
            quantizer.enabled = True


def load_quantized(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Load the ``state_dict()`` of a quantized network into one whose quantizers are in place and not fitted.

    Biases that the method created are created too. Raises UserError where the state does not fit.
    """
    for name, site in sites(model).items():
        created = state.get(f"{name}.bias")
        if not isinstance(site, QuantMatMul) and site.bias is None and created is not None:
            site.bias = nn.Parameter(torch.empty_like(created))
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"the saved state is of another model or other settings: {error}") from None


def copied(model: nn.Module) -> nn.Module:
    """A deep copy without the attention biases that blocks of timm gather once and keep, with the graph they are of."""
    kept = [m.attention_bias_cache for m in model.modules() if hasattr(m, "attention_bias_cache")]
    return copy.deepcopy(model, {id(cache): {} for cache in kept})


def fold_batch_norms(model: nn.Module, image: Tensor | None = None) -> nn.Module:
    """Fold each BatchNorm2d that follows a convolution into it, in place; for models in eval mode.

    Quantized weights must be the ones that are multiplied at inference, and runtimes cannot fold afterwards. timm's
    ``BatchNormAct2d`` leaves its activation behind.
    image: [1, channels, height, width]; with it the pairs are found by data flow, wherever a BatchNorm alone takes what
    a convolution puts out. Without it only neighbours in a Sequential and timm's ``ConvNormAct`` are.
    """
    for conv_name, norm_name in _declared_pairs(model) if image is None else _flowing_pairs(model, image):
        conv, norm = model.get_submodule(conv_name), model.get_submodule(norm_name)
        model.set_submodule(conv_name, fuse_conv_bn_eval(conv.eval(), norm.eval()))
        model.set_submodule(norm_name, norm.act if isinstance(norm, BatchNormAct2d) else nn.Identity())
    return model


def _declared_pairs(model: nn.Module) -> list[tuple[str, str]]:
    found = []
    for name, module in model.named_modules():
        children = list(module.named_children())
        if isinstance(module, nn.Sequential) or type(module).forward is ConvNormAct.forward:
            prefix = f"{name}." if name else ""
            found += [(prefix + a, prefix + b) for (a, conv), (b, norm) in pairwise(children) if _folds(conv, norm)]
    return found


def _folds(conv: nn.Module, norm: nn.Module) -> bool:
    normalises = type(norm) in (nn.BatchNorm2d, BatchNormAct2d) and norm.running_mean is not None
    return type(conv) is nn.Conv2d and normalises


def _flowing_pairs(model: nn.Module, image: Tensor) -> list[tuple[str, str]]:
    """Names of convolutions and the BatchNorms that alone take what they put out, each called once."""
    with torch.inference_mode(False):
        model = copied(model)  # so that nothing of this pass is left in it
    names = {module: name for name, module in model.named_modules()}
    put_out: dict[int, tuple[nn.Module, Tensor]] = {}  # tensors are kept, so that no other gets their identity
    met: list[tuple[nn.Module, nn.Module, Any]] = []
    calls: Counter[nn.Module] = Counter()

    def remember(conv: nn.Module, _: Any, out: Tensor) -> None:
        calls[conv] += 1
        put_out[id(out)] = conv, out

    def look(norm: nn.Module, args: tuple[Tensor, ...]) -> None:
        calls[norm] += 1
        conv, out = put_out.get(id(args[0]), (None, None))
        if conv is not None and _folds(conv, norm):
            met.append((conv, norm, out.grad_fn))

    handles = [m.register_forward_hook(remember) for m in names if isinstance(m, nn.Conv2d)]
    handles += [m.register_forward_pre_hook(look) for m in names if isinstance(m, nn.BatchNorm2d)]
    try:
        with torch.inference_mode(False), torch.enable_grad():
            last = model(image.detach().clone().requires_grad_())
    finally:
        for handle in handles:
            handle.remove()
    if last.grad_fn is None:  # something in it has no derivative, and no graph tells who uses what
        return _declared_pairs(model)
    uses = _uses(last.grad_fn)
    return [(names[c], names[n]) for c, n, node in met if calls[c] == calls[n] == uses[node] == 1]


def _uses(last: Any) -> Counter[Any]:
    """How often each node of an autograd graph is used by others."""
    uses: Counter[Any] = Counter()
    open_nodes = [last]
    while open_nodes:
        for source, _ in open_nodes.pop().next_functions:
            uses[source] += 1
            if source is not None and uses[source] == 1:
                open_nodes.append(source)
    return uses


def _through(quantizer: Quantizer | None, x: Tensor) -> Tensor:
    return x if quantizer is None else quantizer(x)


def _take_over(site: Any, layer: nn.Module) -> Any:
    site.weight, site.bias = layer.weight, layer.bias
    site.input_quantizer = site.weight_quantizer = None
    return site.train(layer.training)


def _exposed_attention(module: nn.Module) -> nn.Module | None:
    if type(module) is Attention:
        return SiteAttention.from_timm(module)
    if type(module) is BiasedAttention:
        return SiteBiasedAttention.from_timm(module)
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
