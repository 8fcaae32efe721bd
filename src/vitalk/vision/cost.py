"""What a model costs: parameters, multiply-accumulates a layer, time and file size."""

import os
import statistics
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vitalk.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Cost:
    """What one forward pass takes, whatever the machine.

    params: number of parameters, each counted once. macs: multiply-accumulates of matrix products and
    convolutions. layers: the same by module name; products between activations (attention, fusing) are booked on
    the module whose part follows them, so ``blocks.3.attn`` holds the two products of block 3's attention.
    """

    params: int
    macs: int
    layers: dict[str, int]


def count(model: "nn.Module", image: "Tensor") -> Cost:
    """The cost of ``model(image)`` in eval mode; token counts may change from block to block.

    image: [batch, channels, height, width]; the MACs are those of the whole batch. torch counts, two operations a
    MAC; the fused attention kernel is included, and selecting tokens (top-k, gather) is free, as is usual.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    # Not every torch counts its own fused kernel for CPUs.
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    counter = FlopCounterMode(display=False, custom_mapping={kernel: _attention_flops})
    layers, booked = {}, 0

    def book(name: str) -> None:
        nonlocal booked
        total = counter.get_total_flops() // 2
        if total > booked:
            layers[name] = layers.get(name, 0) + total - booked
        booked = total

    hooks = []
    for name, module in model.named_modules():
        if not any(True for _ in module.children()):
            parent = name.rpartition(".")[0]
            hooks.append(module.register_forward_pre_hook(lambda *_, name=parent: book(name)))
            hooks.append(module.register_forward_hook(lambda *_, name=name: book(name)))
    modes = {module: module.training for module in model.modules()}  # a wrapper's may differ from what it wraps
    model.eval()
    try:
        with torch.no_grad(), counter:  # the counter follows gradients, which inference mode forbids
            model(image)
    finally:
        for module, training in modes.items():
            module.training = training
        for hook in hooks:
            hook.remove()
    book("")
    return Cost(sum(p.numel() for p in model.parameters()), booked, layers)


def _attention_flops(q: Sequence[int], k: Sequence[int], v: Sequence[int], *_: Any, **__: Any) -> int:
    """Operations of both products of attention on shapes [batch, heads, tokens, head_dim]."""
    batch, heads, queries, width = q
    return 2 * batch * heads * queries * k[2] * (width + v[3])


def latencies(
    runs: dict[K, Callable[[], object]], warmup: int = 3, repeats: int = 10, seconds: float = float("inf")
) -> dict[K, float]:
    """Median seconds of each of several calls, taken in turns so that a machine that drifts is fair to all.

    warmup, repeats: rounds before and while the clock counts; after ``seconds`` no new round begins, but two are run.
    """
    for _ in range(warmup):
        for run in runs.values():
            run()
    taken: dict[K, list[float]] = {name: [] for name in runs}
    end = time.perf_counter() + seconds
    for done in range(repeats):
        if done >= 2 and time.perf_counter() > end:
            break
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in taken.items()}


def growth(layers: "dict[str, nn.Module]", small: "Tensor", large: "Tensor", seconds: float) -> dict[str, float]:
    """How many times longer each layer takes for ``large`` than for ``small``, by name; all measured in turns."""
    import torch

    sizes = {"small": small, "large": large}
    runs = {(name, size): partial(layer, x) for name, layer in layers.items() for size, x in sizes.items()}
    with torch.inference_mode():
        taken = latencies(runs, warmup=1, repeats=20, seconds=seconds)
    return {name: taken[name, "large"] / taken[name, "small"] for name in layers}


def latency(run: Callable[[], object], warmup: int = 3, repeats: int = 10) -> float:
    """Median seconds that ``run()`` takes after a warm-up."""
    return latencies({"": run}, warmup, repeats)[""]


def model_latency(
    model: "nn.Module",
    image_size: tuple[int, int, int] = (3, 224, 224),
    batches: Sequence[int] = (1, 16),
    **timing: Any,
) -> dict[int, float]:
    """Batch size -> median seconds of a forward pass in eval mode on random pictures.

    image_size: channels, height, width. timing: ``warmup`` and ``repeats`` of ``latency``.
    """
    import torch

    first = next(model.parameters())
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            pictures = {n: torch.randn(n, *image_size, device=first.device, dtype=first.dtype) for n in batches}
            return {n: latency(lambda x=x: _finished(model(x)), **timing) for n, x in pictures.items()}
    finally:
        model.train(training)


def file_size(path: str | os.PathLike[str]) -> int:
    """Bytes of a file, or of all files in a folder. Raises UserError where there is none."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"there is no file at {path}")
    return sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) if path.is_dir() else path.stat().st_size


def _finished(output: "Tensor") -> "Tensor":
    """The output once the device has computed it; graphics processors answer before they are done."""
    if output.is_cuda:
        import torch

        torch.cuda.synchronize(output.device)
    return output
