"""The integer kernels and the whole integer ViT as ONNX graphs, equal to the numpy reference bit for bit.

There is no second implementation: the reference runs on ``Value`` objects, which stand for tensors of a graph and write
a node for every numpy operation on them. All tensors are int64; products of codes are MatMulInteger, shifts BitShift.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
from numpy.lib.mixins import NDArrayOperatorsMixin
from onnx import TensorProto, helper, numpy_helper

from .integer import IntegerViT
from .kernels import product

OPSET, IR_VERSION = 20, 10
BIAS = 2**62  # makes signed numbers positive, and is a multiple of all powers of two that are shifted by


class Graph:
    """A graph that grows as ``Value``s are computed with."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[tuple[str, tuple[int, ...], bytes], onnx.TensorProto] = {}

    def node(self, kind: str, *inputs: Any, **attributes: Any) -> "Value":
        """One operator; inputs are values, or numbers and arrays, which become constants."""
        names = [self.name(x) for x in inputs]
        out = f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, names, [out], **attributes))
        return Value(self, out)

    def name(self, x: Any) -> str:
        """The name of a value; of a number or an array that of a constant."""
        if isinstance(x, Value):
            return x.name
        array = np.ascontiguousarray(x)
        key = (array.dtype.str, np.shape(x), array.tobytes())
        if key not in self.constants:
            tensor = numpy_helper.from_array(array.reshape(np.shape(x)), f"constant_{len(self.constants)}")
            self.constants[key] = tensor
        return self.constants[key].name

    def model(self, inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto]) -> onnx.ModelProto:
        """The finished graph."""
        graph = helper.make_graph(self.nodes, "integer", inputs, outputs, list(self.constants.values()))
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


class Value(NDArrayOperatorsMixin):
    """An int64 tensor of a graph; numpy's integer operators on it write nodes.

    Divisors must be positive. Numbers that are shifted to the right must be below 2**62, those shifted to the left not
    negative. Comparisons put out 0 and 1.
    """

    def __init__(self, graph: Graph, name: str):
        self.graph, self.name = graph, name

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> "Value":
        write = WRITERS.get(ufunc)
        if write is None or method != "__call__" or kwargs:
            return NotImplemented
        return write(self.graph, *(x if isinstance(x, Value) else np.asarray(x, np.int64) for x in inputs))

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> "Value":
        write = {np.pad: _pad, np.concatenate: _concatenate}.get(function)
        return NotImplemented if write is None else write(self.graph, *args, **kwargs)

    def __getitem__(self, key: tuple[Any, ...]) -> "Value":
        first = 0 if key[0] is not Ellipsis else 1 - len(key)
        cuts = [(axis, part) for axis, part in enumerate(key[first < 0 :], first) if part != slice(None)]
        begins, ends, axes, steps = (
            np.array(column, np.int64)
            for column in zip(
                *((p.start or 0, 2**62 if p.stop is None else p.stop, axis, p.step or 1) for axis, p in cuts),
                strict=True,
            )
        )
        return self.graph.node("Slice", self, begins, ends, axes, steps)

    def max(self, axis: int, keepdims: bool = False) -> "Value":
        """The largest along an axis."""
        return self.graph.node("ReduceMax", self, np.array([axis]), keepdims=int(keepdims))

    def sum(self, axis: int, keepdims: bool = False) -> "Value":
        """The sum along an axis."""
        return self.graph.node("ReduceSum", self, np.array([axis]), keepdims=int(keepdims))

    def reshape(self, *shape: int) -> "Value":
        """Another shape; -1 once for what is left."""
        return self.graph.node("Reshape", self, np.array(shape))

    def transpose(self, *axes: int) -> "Value":
        """The axes in another order."""
        return self.graph.node("Transpose", self, perm=list(axes))

    def cast(self, kind: int) -> "Value":
        """As another of ONNX's types."""
        return self.graph.node("Cast", self, to=kind)


def _plain(kind: str) -> Callable[..., Value]:
    return lambda graph, *inputs: graph.node(kind, *inputs)


def _compare(kind: str) -> Callable[..., Value]:
    return lambda graph, *inputs: graph.node(kind, *inputs).cast(TensorProto.INT64)


def _floor_divide(graph: Graph, a: Any, b: Any) -> Value:
    """ONNX cuts towards zero: where a remainder is negative, it is one less."""
    quotient = graph.node("Div", a, b)
    return quotient - (a - quotient * b < 0)


def _left_shift(graph: Graph, x: Any, bits: Any) -> Value:
    return _bit_shift(graph, x, bits, "LEFT")


def _right_shift(graph: Graph, x: Any, bits: Any) -> Value:
    """ONNX shifts no signed numbers: they are made positive before and put back after."""
    if isinstance(bits, Value):  # of a constant, which is positive already
        return _bit_shift(graph, x, bits, "RIGHT")
    return _bit_shift(graph, x + BIAS, bits, "RIGHT") - (BIAS >> bits)


def _bit_shift(graph: Graph, x: Any, bits: Any, direction: str) -> Value:
    sides = [x.cast(TensorProto.UINT64) if isinstance(x, Value) else x.astype(np.uint64) for x in (x, bits)]
    return graph.node("BitShift", *sides, direction=direction).cast(TensorProto.INT64)


WRITERS: dict[np.ufunc, Callable[..., Value]] = {
    np.add: _plain("Add"),
    np.subtract: _plain("Sub"),
    np.multiply: _plain("Mul"),
    np.negative: _plain("Neg"),
    np.absolute: _plain("Abs"),
    np.sign: _plain("Sign"),
    np.maximum: _plain("Max"),
    np.minimum: _plain("Min"),
    np.less: _compare("Less"),
    np.greater_equal: _compare("GreaterOrEqual"),
    np.floor_divide: _floor_divide,
    np.left_shift: _left_shift,
    np.right_shift: _right_shift,
}


def _pad(graph: Graph, x: Value, widths: tuple[tuple[int, int], ...]) -> Value:
    before, after = zip(*widths, strict=True)
    return graph.node("Pad", x, np.array([*before, *after]), np.int64(0))


def _concatenate(graph: Graph, parts: list[Value], axis: int) -> Value:
    return graph.node("Concat", *parts, axis=axis)


@product.register
def _product(a: Value, b: Value | np.ndarray, unsigned: bool = False) -> Value:
    """MatMulInteger of two uint8 operands, signed codes with 128 for zero.

    Of signed by unsigned ones older processors add pairs in 16 bits that saturate; of unsigned ones they do not.
    """
    zero = np.array(128, np.uint8)
    left, first = (a, np.array(0, np.uint8)) if unsigned else (a + 128, zero)
    right = (b + 128).astype(np.uint8) if isinstance(b, np.ndarray) else (b + 128).cast(TensorProto.UINT8)
    out = a.graph.node("MatMulInteger", left.cast(TensorProto.UINT8), right, first, zero)
    return out.cast(TensorProto.INT64)


def traced(function: Callable[..., Value], **shapes: tuple[int | str, ...]) -> onnx.ModelProto:
    """The graph of an integer function: int64 inputs by name and shape -> the output "out".

    function: any of ``kernels``, or one that calls them. shapes: of its arguments, in order, and names for the inputs;
    strings are dimensions of any length.
    """
    graph = Graph()
    out = function(*(Value(graph, name) for name in shapes))
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name, shape in shapes.items()]
    graph.nodes.append(helper.make_node("Identity", [out.name], ["out"]))
    return graph.model(inputs, [helper.make_tensor_value_info("out", TensorProto.INT64, None)])


def integer_onnx(network: IntegerViT) -> onnx.ModelProto:
    """An integer ViT as one graph: "image" [batch, channels, height, width] -> "logits" [batch, classes], both float32.

    QuantizeLinear makes codes of the normalised pictures; from there to the one factor in front of the logits there
    are whole numbers only. The logits are those of ``network`` bit for bit.
    """
    graph = Graph()
    scale = np.array(network.image_scale, np.float32)
    codes = graph.node("QuantizeLinear", Value(graph, "image"), scale, np.array(0, np.int8))
    out = network.codes(codes.cast(TensorProto.INT64)).cast(TensorProto.FLOAT)
    graph.nodes.append(helper.make_node("Mul", [out.name, graph.name(np.array(network.scale, np.float32))], ["logits"]))
    shape = ["batch", *network.image_shape]
    model = graph.model(
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", network.classes])],
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def operators(model: onnx.ModelProto) -> Iterator[str]:
    """The kinds of the nodes, in order."""
    return (node.op_type for node in model.graph.node)
