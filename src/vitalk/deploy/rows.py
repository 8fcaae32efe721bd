"""The rows of each tensor that somebody reads: a classifier that pools by the class token needs few of the last."""

from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from .values import constant, store

ELEMENTWISE = frozenset(
    "Abs Add And Cast Ceil Div Equal Erf Exp Floor Gelu Greater GreaterOrEqual Less LessOrEqual"
    " Log Max Min Mul Neg Not Or Pow Relu Round Sigmoid Sqrt Sub Tanh Where".split()
)


class Row(NamedTuple):
    """One index along one axis of a value."""

    axis: int
    index: int


Demand = Row | None  # None: the whole value


def keep_needed_rows(graph: ir.Graph) -> None:
    """Compute one row where only one row is read (by a Gather of a single index), back to where more is.

    Shapes must have been inferred. Each row that is left is computed as before.
    """
    if any(a.type == ir.AttributeType.GRAPH for node in graph for a in node.attributes.values()):
        return  # a branch may read any value from outside
    graph.sort()
    demands, asked = _demands(graph)
    cuts: dict[tuple[ir.Value, Row], ir.Value] = {}
    for node in list(graph):
        out = node.outputs[0]
        if demands.get(out) is not None:
            for i, (value, part) in enumerate(zip(node.inputs, asked[node], strict=True)):
                if part is not None and demands[value] is None:
                    if (value, part) not in cuts:
                        cuts[value, part] = _cut(graph, node, value, part)
                    node.replace_input_with(i, cuts[value, part])
            _narrow(graph, node, demands[out])
        elif any(asked.get(node, [])) and demands[node.inputs[0]] is not None:
            node.replace_input_with(1, store(graph, f"{out.name}.row", np.zeros((), np.int64)))


def _demands(graph: ir.Graph) -> tuple[dict[ir.Value, Demand], dict[ir.Node, list[Demand]]]:
    """What is read of each value by all its readers, and what each node reads of each of its inputs."""
    demands: dict[ir.Value, Demand] = dict.fromkeys(graph.outputs)
    asked: dict[ir.Node, list[Demand]] = {}
    for node in reversed(list(graph)):
        if not any(out in demands for out in node.outputs):
            continue  # nobody reads it
        asked[node] = _asked(node, demands.get(node.outputs[0]))
        if not any(asked[node]):
            demands[node.outputs[0]] = None
        for value, row in zip(node.inputs, asked[node], strict=True):
            if value is not None:
                demands[value] = row if demands.get(value, row) == row else None
    return demands, asked


def _asked(node: ir.Node, row: Demand) -> list[Demand]:
    """What ``node`` reads of each input when ``row`` is read of its output; all of it where that is not known."""
    nothing: list[Demand] = [None] * len(node.inputs)
    first, out = node.inputs[0] if node.inputs else None, node.outputs[0]
    if first is None or first.shape is None or node.domain or len(node.outputs) > 1:
        return nothing
    rest = nothing[1:]
    if row is None:
        return [_gathered(node), *rest] if node.op_type == "Gather" else nothing
    if out.shape is None:
        return nothing
    rank = len(out.shape)
    if node.op_type in ELEMENTWISE:
        return [_broadcast(value, row, rank) for value in node.inputs]
    match node.op_type:
        case "QuantizeLinear" | "DequantizeLinear" | "Clip":
            passes = all(_is_number(value) for value in node.inputs[1:] if value is not None)
        case "Softmax" | "LayerNormalization":
            over = node.attributes["axis"].as_int() if "axis" in node.attributes else -1
            passes = row.axis < over % rank
        case "MatMul":
            passes = row.axis == rank - 2 and len(first.shape) == rank
        case "Transpose":
            return [Row(list(node.attributes["perm"].as_ints())[row.axis], row.index)]
        case "Reshape":
            shape, upto = constant(node.inputs[1]), row.axis + 1
            passes = list(first.shape)[:upto] == list(out.shape)[:upto] and shape is not None and shape[row.axis] > 0
        case _:
            passes = False
    return [row, *rest] if passes else nothing


def _gathered(node: ir.Node) -> Demand:
    source, index = node.inputs[0], constant(node.inputs[1])
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    size = source.shape[axis]
    if index is None or index.ndim or source.const_value is not None or not isinstance(size, int):
        return None
    return Row(axis % len(source.shape), int(index) % size)


def _broadcast(value: ir.Value | None, row: Row, rank: int) -> Demand:
    if value is None or value.shape is None:
        return None
    axis = row.axis - (rank - len(value.shape))
    return Row(axis, row.index) if axis >= 0 and value.shape[axis] != 1 else None


def _narrow(graph: ir.Graph, node: ir.Node, row: Row) -> None:
    if node.op_type == "Reshape":
        shape = constant(node.inputs[1]).copy()
        shape[row.axis] = 1
        node.replace_input_with(1, store(graph, f"{node.outputs[0].name}.shape", shape))
    node.outputs[0].shape = _narrowed(node.outputs[0].shape, row)


def _cut(graph: ir.Graph, before: ir.Node, value: ir.Value, row: Row) -> ir.Value:
    """``row`` of ``value`` with its axis kept."""
    source = value.producer()
    if source is not None and source.op_type == "DequantizeLinear" and _is_number(source.inputs[1]):
        codes = _cut(graph, before, source.inputs[0], row)  # so that dequantizing stays next to the product
        node = ir.node("DequantizeLinear", [codes, *source.inputs[1:]])
    else:
        numbers = {"start": row.index, "end": row.index + 1, "axis": row.axis}
        bounds = [store(graph, f"{value.name}.row.{k}", np.array([n], np.int64)) for k, n in numbers.items()]
        node = ir.node("Slice", [value, *bounds])
    graph.insert_before(before, node)
    node.outputs[0].shape, node.outputs[0].type = _narrowed(value.shape, row), value.type
    return node.outputs[0]


def _narrowed(shape: ir.Shape, row: Row) -> ir.Shape:
    return ir.Shape([1 if axis == row.axis else size for axis, size in enumerate(shape)])


def _is_number(value: ir.Value) -> bool:
    array = constant(value)
    return array is not None and array.size == 1
