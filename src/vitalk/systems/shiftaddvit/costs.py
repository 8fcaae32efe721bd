"""The kernels beside dense products: seconds on this machine, modelled energy, bytes of weights."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch

from vitalk.vision.cost import latencies

from .energy import Operation, product_energy
from .kernels import ShiftWeights, library, matadd, matshift, pack_codes, pack_shifts

# Rows (tokens), inputs and outputs of DeiT-Ti's and DeiT-S's linears, and of PVTv2-B0's first and third stage
LINEARS = ((197, 192, 576), (197, 192, 768), (197, 768, 192), (197, 384, 1536), (3136, 32, 256), (196, 160, 640))
# Codes [rows, inner] times values [inner, columns]: both products of the attention of one head
ATTENTION = ((64, 197, 64), (197, 64, 64), (32, 3136, 32), (3136, 32, 32))


@dataclass(frozen=True)
class KernelCost:
    """One kernel on one shape: [rows, inner] x [inner, columns]; the median seconds on one thread, pJ, and bytes.

    energy: modelled (``energy.product_energy``) at the kernel's own width of 32 or 8 bits. weights: bytes of the
    operand that is stored: the weights, or the packed codes of "matadd" against values of codes as floats.
    """

    kernel: str
    shape: tuple[int, int, int]
    seconds: float
    energy: float
    weights: int


def kernel_costs(
    linears: Iterable[tuple[int, int, int]] = LINEARS,
    attention: Iterable[tuple[int, int, int]] = ATTENTION,
    repeats: int = 20,
    seconds: float = float("inf"),
) -> list[KernelCost]:
    """Time and count dense products in float32 and int8 against MatShift and MatAdd, all on one thread, in turns.

    linears: shapes of "float32", "int8" (onnxruntime's integer product), "matshift" (each product floored) and
    "matshift exact". attention: shapes of "float32 codes", that is a dense product with 0 and 1, and "matadd"; packing
    the codes is not timed, as little as rounding the activations is. repeats, seconds: of each shape.
    Without a compiler the kernels' rows are named "… (numpy)".
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            rows = [row for shape in linears for row in _linear(shape, repeats, seconds)]
            return rows + [row for shape in attention for row in _attention(shape, repeats, seconds)]
    finally:
        torch.set_num_threads(threads)


def _linear(shape: tuple[int, int, int], repeats: int, seconds: float) -> list[KernelCost]:
    rows, inner, columns = shape
    draw = np.random.default_rng(0)
    x = draw.standard_normal((rows, inner), np.float32)
    power = draw.choice([-1.0, 0.0, 1.0], (columns, inner), p=[0.48, 0.04, 0.48])
    weights = pack_shifts(power * 2.0 ** -draw.integers(1, 9, (columns, inner)))
    fixed, dense = (x * 2**16).astype(np.int32), torch.from_numpy(draw.standard_normal((columns, inner), np.float32))
    given = torch.from_numpy(x)
    runs: dict[str, Callable[[], object]] = {
        "float32": lambda: torch.nn.functional.linear(given, dense),
        "int8": _int8(
            draw.integers(-128, 128, (inner, columns), np.int8), draw.integers(0, 256, (rows, inner), np.uint8)
        ),
        "matshift": lambda: matshift(fixed, weights),
        "matshift exact": lambda: matshift(fixed, weights, True),
    }
    kinds: dict[str, tuple[Operation, int, int]] = {
        "float32": ("mult", 32, 4 * inner * columns),
        "int8": ("mult", 8, inner * columns),
        "matshift": ("shift", 32, _bytes(weights)),
        "matshift exact": ("shift", 32, _bytes(weights)),
    }
    return _rows(shape, runs, kinds, repeats, seconds)


def _attention(shape: tuple[int, int, int], repeats: int, seconds: float) -> list[KernelCost]:
    rows, inner, columns = shape
    draw = np.random.default_rng(0)
    codes, values = draw.random((rows, inner)) < 0.5, draw.standard_normal((inner, columns), np.float32)
    packed, fixed = pack_codes(codes), (values * 2**16).astype(np.int64)
    dense, given = torch.from_numpy(codes).float(), torch.from_numpy(values)
    runs: dict[str, Callable[[], object]] = {
        "float32 codes": lambda: dense @ given,
        "matadd": lambda: matadd(packed, fixed),
    }
    kinds: dict[str, tuple[Operation, int, int]] = {
        "float32 codes": ("mult", 32, 4 * rows * inner),
        "matadd": ("add", 32, packed.nbytes),
    }
    return _rows(shape, runs, kinds, repeats, seconds)


def _rows(
    shape: tuple[int, int, int],
    runs: dict[str, Callable[[], object]],
    kinds: dict[str, tuple[Operation, int, int]],
    repeats: int,
    seconds: float,
) -> list[KernelCost]:
    taken = latencies(runs, warmup=2, repeats=repeats, seconds=seconds)
    suffix = "" if library() is not None else " (numpy)"
    return [
        KernelCost(name + suffix * name.startswith("mat"), shape, taken[name], product_energy(*shape, kind, bits), size)
        for name, (kind, bits, size) in kinds.items()
    ]


def _bytes(weights: ShiftWeights) -> int:
    return weights.packed.nbytes


def _int8(weights: np.ndarray, x: np.ndarray) -> Callable[[], object]:
    """onnxruntime's product of unsigned activations and signed weights, on one thread."""
    import onnx
    import onnxruntime

    kind = onnx.TensorProto
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMulInteger", ["x", "w"], ["y"])],
        "int8",
        [onnx.helper.make_tensor_value_info("x", kind.UINT8, list(x.shape))],
        [onnx.helper.make_tensor_value_info("y", kind.INT32, [x.shape[0], weights.shape[1]])],
        [onnx.numpy_helper.from_array(weights, "w")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"x": x})
