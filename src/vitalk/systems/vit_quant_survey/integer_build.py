"""From a float ViT to an integer one: scales from calibration pictures, weights and constants as whole numbers."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from timm.layers import Attention, Mlp, PatchEmbed
from timm.models.vision_transformer import Block as FloatBlock
from timm.models.vision_transformer import LayerScale, VisionTransformer
from torch import Tensor, nn

from vitalk.errors import UserError
from vitalk.nn.quant import UniformQuantizer, fold_batch_norms
from vitalk.nn.quant.calibrate import check, check_choice
from vitalk.vision.eye import ConvStem, Residual

from .integer import (
    STREAM_BITS,
    Activation,
    Block,
    Chain,
    Conv,
    Embedding,
    Head,
    IntegerViT,
    Join,
    Linear,
    Norm,
    SelfAttention,
    Skip,
)
from .kernels import (
    GELU,
    Array,
    layer_norm_scale,
    log_softmax_codes,
    octaves,
    poly_gelu,
    poly_gelu_scale,
    poly_softmax,
    rescale,
    shift_gelu,
    shiftmax,
)

Softmax = Literal["shiftmax", "polynomial", "log2"]
Gelu = Literal["shift", "polynomial"]
SIGMOID_BITS = 8


def integer_vit(model: nn.Module, images: Tensor, softmax: Softmax = "shiftmax", gelu: Gelu = "shift") -> IntegerViT:
    """``model`` in integers, calibrated on ``images`` [count, channels, height, width]: a plain timm ViT or DeiT.

    softmax: "shiftmax" (I-ViT), "polynomial" (I-BERT) or "log2" (FQ-ViT's log-int-softmax: 4 bits, the product with
    the values by shifts). gelu: "shift" (I-ViT) or "polynomial" (I-BERT).
    Patch embeddings, the embedded model's stem, register tokens, layer scale, and pooling by class token or average
    are taken over; the size of the pictures is fixed.

    Raises UserError for other architectures, settings that there are not, and pictures or weights that cannot be.
    """
    check_choice("softmax", softmax, Softmax)
    check_choice("gelu", gelu, Gelu)
    check(model, images)
    _check_architecture(model)
    with torch.inference_mode(False), torch.no_grad():
        float_model = fold_batch_norms(copy.deepcopy(model).float().eval())
        return _Builder(float_model, images.detach().float(), softmax, gelu).build()


def _check_architecture(model: nn.Module) -> None:
    if type(model) is not VisionTransformer or type(model.patch_embed) not in (PatchEmbed, ConvStem):
        raise UserError(f"only plain timm ViTs run in integers, not {type(model).__name__}; quantize it by a baseline")
    plain = [type(model.norm_pre) is nn.Identity, model.global_pool in ("token", "avg"), model.num_classes > 0]
    plain.append((type(model.norm) is nn.Identity) != (type(model.fc_norm) is nn.Identity))
    plain.append(type(model.patch_embed) is ConvStem or type(model.patch_embed.norm) is nn.Identity)
    for block in model.blocks:
        attn, mlp = getattr(block, "attn", None), getattr(block, "mlp", None)
        plain.append(type(block) is FloatBlock and type(attn) is Attention and type(mlp) is Mlp)
        if plain[-1]:
            plain.append(type(mlp.act) is nn.GELU and attn.gate is None)
            plain += [type(m) is nn.Identity for m in (attn.q_norm, attn.k_norm, attn.norm, mlp.norm)]
            plain += [isinstance(m, nn.LayerNorm) for m in (block.norm1, block.norm2)]
    if not all(plain):
        raise UserError(
            "this ViT has parts that do not run in integers (norms of queries, other activations, poolings or heads); "
            "use one with plain blocks, or quantize it by a baseline"
        )


def codes_of(weight: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """(8-bit codes [out, in], scales [out]) of a weight [out, in], the ranges chosen by squared error."""
    quantizer = UniformQuantizer(8, axis=0, symmetric=True)
    quantizer.fit(weight)
    codes = (weight / quantizer.scale[:, None]).round().clamp(quantizer.low, quantizer.high)
    return codes.numpy().astype(np.int64), quantizer.scale.double().numpy()


def linear(weight: Tensor, bias: Tensor | None, scale: float) -> Linear:
    """weight [out, in], bias [out]; scale: of the input's codes."""
    codes, scales = codes_of(weight)
    scales = scales * scale
    shift = np.zeros(len(codes)) if bias is None else bias.double().numpy() / scales
    return Linear(np.ascontiguousarray(codes.T), np.rint(shift).clip(-(2**29), 2**29).astype(np.int64), scales)


def scale_of(x: Tensor, bits: int = 8) -> float:
    """The scale of an activation's symmetric codes: 8 bits by squared error, 16 by the largest value."""
    if bits > 8:
        return max(float(x.abs().max()), 1e-6) / (2 ** (bits - 1) - 1)
    quantizer = UniformQuantizer(bits, symmetric=True)
    quantizer.fit(x)
    return float(quantizer.scale)


def units(scale: float, factor: float = 1.0) -> int:
    """How many codes of about ``scale`` make one of ``factor`` * x: whole, so that shifts by it are exact (ours)."""
    return max(round(1 / (factor * scale)), 1)


class _Builder:
    """Knows what every module of the float network saw and put out, and makes integer parts of them."""

    def __init__(self, model: VisionTransformer, images: Tensor, softmax: Softmax, gelu: Gelu):
        self.model, self.images, self.softmax, self.gelu = model, images, softmax, gelu
        self.seen: dict[nn.Module, Tensor] = {}
        self.out: dict[nn.Module, Tensor] = {}

        def look(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            self.seen[module], self.out[module] = args[0], out

        kept = [m for m in model.modules() if m is not model and not isinstance(m, nn.Sequential | nn.ModuleList)]
        handles = [module.register_forward_hook(look) for module in kept]
        self.logits = model(images)
        for handle in handles:
            handle.remove()

    def build(self) -> IntegerViT:
        image_scale = scale_of(self.images)
        embedding, stream = self.embedding(image_scale)
        blocks = []
        for block in self.model.blocks:
            made, stream = self.block(block, stream)
            blocks.append(made)
        scale = scale_of(self.logits, STREAM_BITS)
        shape = tuple(self.images.shape[1:])
        return IntegerViT(
            image_scale, shape, embedding, tuple(blocks), self.head(scale), scale, self.logits.shape[1]
        )  # fmt: skip

    def embedding(self, image_scale: float) -> tuple[Embedding, float]:
        model, first = self.model, self.model.blocks[0]
        stream = scale_of(self.seen[first], STREAM_BITS)
        constant = model._pos_embed(torch.zeros_like(self.out[model.patch_embed][:1]))
        if isinstance(model.patch_embed, ConvStem):
            stem, scale = self.stem(model.patch_embed, image_scale)
        else:
            stem = self.conv(model.patch_embed.proj, image_scale)
            scale = stem.linear.scale
        codes = np.rint(constant.double().numpy() / stream).astype(np.int64)
        return Embedding(stem, rescale(scale / stream, STREAM_BITS), model.num_prefix_tokens, codes), stream

    def stem(self, stem: ConvStem, scale: float) -> tuple[Callable[[Array], Array], Any]:
        """The embedded model's stem, whose last layer is a GELU; (codes -> codes, their scale)."""
        steps: list[Callable[[Array], Array]] = []
        layers = [layer for layer in stem.layers if not isinstance(layer, nn.Identity)]
        for i, layer in enumerate(layers):
            if isinstance(layer, nn.GELU):
                continue
            if isinstance(layer, Residual):
                step, scale = self.residual(layer, scale)
                steps.append(step)
            else:
                steps.append(conv := self.conv(layer, scale))
                step, scale = self.activation(layers[i + 1], conv.linear.scale)
                steps.append(step)
        return Chain(tuple(steps)), scale

    def residual(self, layer: Residual, scale: float) -> tuple[Callable[[Array], Array], float]:
        convs = [m for m in layer.body if isinstance(m, nn.Conv2d)]
        first = self.conv(convs[0], scale)
        inner, inner_scale = self.activation(layer.body[2], first.linear.scale)
        second = self.conv(convs[1], inner_scale)
        wide = scale_of(self.seen[layer.act], STREAM_BITS)
        join = self.join(scale, second.linear.scale, wide)
        outer, outer_scale = self.activation(layer.act, wide)
        return Skip(Chain((first, inner, second)), join, outer), outer_scale

    def conv(self, layer: nn.Conv2d, scale: float) -> Conv:
        if layer.groups != 1 or layer.dilation != (1, 1) or isinstance(layer.padding, str):
            raise UserError("only dense convolutions run in integers; quantize this model by a baseline")
        weight = layer.weight.permute(0, 2, 3, 1).flatten(1)
        size = tuple(self.out[layer].shape[2:])
        made = linear(weight, layer.bias, scale)
        return Conv(made, layer.kernel_size, layer.stride, layer.padding, size, layer.in_channels)

    def activation(self, act: nn.Module, scale: Any) -> tuple[Activation, float]:
        """What follows sums of ``scale``; (the GELU, the scale of its 8-bit codes)."""
        wanted, after = scale_of(self.seen[act]), scale_of(self.out[act])
        if self.gelu == "shift":
            unit = units(wanted, GELU)
            taken = 1 / (GELU * unit)
            kernel = partial(shift_gelu, unit=unit, n=octaves(unit, 4, 23), k=SIGMOID_BITS)
            put = taken / 2 ** (SIGMOID_BITS - 1)
        else:
            taken = wanted
            kernel, put = partial(poly_gelu, scale=taken), poly_gelu_scale(taken)
        return Activation(rescale(scale / taken, 8), kernel, rescale(put / after, 8)), after

    def norm(self, norm: nn.LayerNorm) -> tuple[Norm, float]:
        scale, dim = scale_of(self.out[norm]), norm.normalized_shape[0]
        weight = np.ones(dim) if norm.weight is None else norm.weight.double().numpy()
        bias = np.zeros(dim) if norm.bias is None else norm.bias.double().numpy()
        return Norm(dim, rescale(weight * layer_norm_scale(dim) / scale, 8, bias / scale)), scale

    def join(self, stream: Any, sums: Any, to: float) -> Join:
        return Join(rescale(stream / to, STREAM_BITS), rescale(sums / to, STREAM_BITS))

    def block(self, block: FloatBlock, stream: float) -> tuple[Block, float]:
        norm1, scale = self.norm(block.norm1)
        attention, sums = self.attention(block.attn, scale)
        middle = scale_of(self.seen[block.norm2], STREAM_BITS)
        join1 = self.join(stream, sums * _layer_scale(block.ls1), middle)
        norm2, scale = self.norm(block.norm2)
        fc1 = linear(block.mlp.fc1.weight, block.mlp.fc1.bias, scale)
        gelu, scale = self.activation(block.mlp.act, fc1.scale)
        fc2 = linear(block.mlp.fc2.weight, block.mlp.fc2.bias, scale)
        end = scale_of(self.out[block], STREAM_BITS)
        join2 = self.join(middle, fc2.scale * _layer_scale(block.ls2), end)
        return Block(norm1, attention, join1, norm2, fc1, gelu, fc2, join2), end

    def attention(self, attn: Attention, scale: float) -> tuple[SelfAttention, np.ndarray]:
        qkv = linear(attn.qkv.weight, attn.qkv.bias, scale)
        parts = self.out[attn.qkv].chunk(3, -1)
        scales = [scale_of(part) for part in parts]
        q, k = (part.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2) for part in parts[:2])
        unit = units(scale_of((q @ k.transpose(-2, -1)) * attn.scale))
        tokens, context = q.shape[2], scale_of(self.seen[attn.proj])
        softmax: dict[Softmax, Callable[[Array], Array]] = {
            "shiftmax": partial(shiftmax, unit=unit, n=octaves(unit, tokens)),
            "polynomial": partial(poly_softmax, scale=1 / unit),
            "log2": partial(log_softmax_codes, scale=1 / unit),
        }
        proj = linear(attn.proj.weight, attn.proj.bias, context)
        made = SelfAttention(
            qkv, rescale(qkv.scale / np.repeat(scales, len(qkv.scale) // 3), 8), attn.num_heads, tokens,
            rescale(scales[0] * scales[1] * attn.scale * unit, 8), softmax[self.softmax], self.softmax == "log2",
            rescale(scales[2] / 2**15 / context, 8), proj,
        )  # fmt: skip
        return made, proj.scale

    def head(self, scale: float) -> Head:
        model = self.model
        tokens = self.out[model.blocks[-1]].shape[1]
        average = model.global_pool == "avg"
        first = model.num_prefix_tokens if average and not model.pool_include_prefix else 0
        last = tokens if average else 1
        norm = pooled = None
        if isinstance(model.norm, nn.LayerNorm):
            norm, codes_scale = self.norm(model.norm)
            if average:
                pooled = rescale(1 / (last - first), 8)
        else:
            pooled, codes_scale = self.norm(model.fc_norm)
        layer = linear(model.head.weight, model.head.bias, codes_scale)
        return Head(norm, first, last, pooled, layer, rescale(layer.scale / scale, STREAM_BITS))


def _layer_scale(module: nn.Module) -> Any:
    return module.gamma.double().numpy() if isinstance(module, LayerScale) else 1.0
