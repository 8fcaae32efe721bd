"""What a network's products would take on an accelerator: operations and memory accesses in pJ (the paper's model).

An Eyeriss-like array of 168 elements (16 x 12 in the release; four times as many for 8 bits) with register files, a
network, a global buffer and DRAM; a product is tiled over them, and of all tilings that fit the one is taken whose
energy and latency, each relative to the worst, are least together (arXiv 2306.06446, the release's simulator).

Two things are ours: a product counts what it accumulates (multiply + add, shift + add; the release counts the multiply
or the shift alone, which makes a shift 28 times cheaper instead of 4), and nothing is counted for norms and GELU.
As in the release, additions of codes read their operands on the chip, and a shift's operands have (16 + 5) / 2 bits.
"""

from collections import Counter
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from timm.layers import Attention
from timm.models.pvt_v2 import Attention as ReducedAttention
from torch import Tensor, nn

from vitalk.errors import UserError

from .attention import AngularAttention
from .shift import ShiftLinearSP2, _Shift

Operation = Literal["mult", "shift", "add"]
MULT = {32: 3.7, 8: 0.2}  # pJ
ADD = {32: 0.9, 8: 0.03}
SHIFT = {32: 0.13, 8: 0.024}
RF, RF_WEIGHT, PSUM, NOC, BUFFER, DRAM = 3.7, 2 * 3.7, 3.7, 2 * 3.7, 6 * 3.7, 200.0  # pJ for 16 bits
ELEMENTS = 16 * 12


def operation_energy(operation: Operation, bits: int = 32) -> float:
    """pJ of one step of a product, its accumulation included. Raises UserError for bits other than 8 and 32."""
    if bits not in MULT:
        raise UserError(f"the energy table has 8 and 32 bits, got {bits}")
    own = {"mult": MULT[bits], "shift": SHIFT[bits], "add": 0.0}
    return own[operation] + ADD[bits]


@lru_cache(4096)
def product_energy(rows: int, inner: int, columns: int, operation: Operation = "mult", bits: int = 32) -> float:
    """pJ of the product [rows, inner] x [inner, columns], computing and moving.

    operation: "mult", "shift" (weights of 5 bits) or "add" (one operand binary). bits: of activations, 8 or 32.
    """
    if not (rows and inner and columns):
        return 0.0
    compute = rows * inner * columns * operation_energy(operation, bits)
    memory, elements = (1, ELEMENTS) if bits == 32 else (2, 4 * ELEMENTS)
    n0, n3 = factors(rows, 2).T[:, :, None, None]
    m0, m1, m2, m3 = factors(columns, 4, 16 * memory).T[:, None, :, None]
    c0, c1, c2 = factors(inner, 3, 12 * memory - 1).T[:, None, None, :]
    fits = (m1 * c1 < elements) & (m0 * c0 < 960 * memory) & (n0 * c1 * c0 + n0 * m2 * m1 * m0 < 65536 * memory)
    n3, m0, m1, m2, m3, c0, c1, c2, n0 = (np.broadcast_to(x, fits.shape)[fits] for x in
                                          (n3, m0, m1, m2, m3, c0, c1, c2, n0))  # fmt: skip
    inputs, weights, outputs = float(rows * inner), float(inner * columns), float(rows * columns)
    width = ((16 + 5) // 2 if operation == "shift" else bits) / 16
    far = 0.0 if operation == "add" else 1.0
    moved = (
        far * DRAM * (m3 * inputs + n3 * weights + outputs)
        + far * BUFFER * (m3 * m2 * inputs + np.maximum(2 * (c2 - 1), 1) * outputs)
        + far * NOC * (m3 * m2 * m1 * inputs + n3 * weights)
        + PSUM * np.maximum(c2 * (c1 - 1), 1) * outputs
        + RF * (m3 * m2 * m1 * m0 * inputs + np.maximum(c2 * c1 * (c0 - 1) * 2, 1) * outputs)
        + RF_WEIGHT * n3 * n0 * weights
    ) * width
    total = compute + moved
    latency = n3 * n0 * m3 * m2 * m0 * c2 * c0
    best = ((total - total.min()) / total.max() + (latency - latency.min()) / latency.max()).argmin()
    return float(total[best])


@lru_cache(1024)
def factors(number: int, parts: int, first: int | None = None) -> np.ndarray:
    """All ways to write a number as an ordered product: float [ways, parts]. first: the largest first factor."""
    divisors = [d for d in range(1, number + 1) if number % d == 0]
    if parts == 1:
        return np.array([[float(number)]])
    ways = [
        np.concatenate([np.full((len(rest), 1), float(d)), rest], 1)
        for d in divisors
        if first is None or d <= first
        for rest in [factors(number // d, parts - 1)]
    ]
    return np.concatenate(ways)


@torch.no_grad()
def model_energy(model: nn.Module, images: Tensor, bits: int = 32) -> dict[str, float]:
    """mJ a picture of all products of ``model`` by operation: "mult", "shift", "add" and their sum "total".

    images: [batch, 3, height, width]; mixtures are counted as these pictures are routed. Products are those of
    linear layers, convolutions and attention. Raises UserError for bits other than 8 and 32.
    """
    operation_energy("mult", bits)
    found: Counter[tuple] = Counter()
    hooks = [
        module.register_forward_hook(lambda module, inputs, out: found.update(products(module, inputs[0], out)))
        for module in model.modules()
    ]
    training = model.training
    try:
        model.eval()(images)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    total = dict.fromkeys(("mult", "shift", "add"), 0.0)
    for (rows, inner, columns, operation), times in found.items():
        total[operation] += times * product_energy(rows, inner, columns, operation, bits) / 1e9 / len(images)
    return {**total, "total": sum(total.values())}


def products(module: nn.Module, x: Tensor, out: Tensor) -> dict[tuple[int, int, int, str], int]:
    """The products that a module itself computes for input x: (rows, inner, columns, operation) -> how many."""
    if isinstance(module, nn.Linear):
        return {(x[..., 0].numel(), module.in_features, module.out_features, "mult"): 1}
    if isinstance(module, _Shift):
        passes = 2 if isinstance(module, ShiftLinearSP2) else 1
        return {(x[..., 0].numel(), module.in_features, module.out_features, "shift"): passes}
    if isinstance(module, nn.Conv2d):
        inner = module.in_channels // module.groups * module.kernel_size[0] * module.kernel_size[1]
        places = out.shape[0] * out.shape[2] * out.shape[3]
        return {(places, inner, module.out_channels // module.groups, "mult"): module.groups}
    if isinstance(module, (Attention, ReducedAttention)):
        keys = x.shape[1]
        if getattr(module, "sr", None) is not None:
            keys = -(-keys // module.sr.stride[0] ** 2)
        tokens, dim, times = x.shape[1], module.head_dim, x.shape[0] * module.num_heads
        return dict(Counter({(tokens, dim, keys, "mult"): times}) + Counter({(tokens, keys, dim, "mult"): times}))
    if isinstance(module, AngularAttention):
        tokens, dim, times = x.shape[1], module.head_dim, x.shape[0] * module.num_heads
        bits = module.codes.A.shape[1] if module.kind == "hash" else dim
        kind = "mult" if module.kind == "linear" else "add"
        found = Counter({(bits, tokens, dim, kind): times}) + Counter({(tokens, bits, dim, kind): times})
        if module.kind == "hash":  # distances to the anchors, and the projection
            anchors = module.codes.A.shape[2]
            found += Counter({(tokens, dim, anchors, "mult"): times, (tokens, anchors, bits, "mult"): times})
        return dict(found)
    return {}
