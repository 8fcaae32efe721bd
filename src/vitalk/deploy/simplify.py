"""Rewrites of an exported graph that cost nothing in accuracy and save time on the CPU.

The exporter writes what the module says; a runtime must execute it. Three things in a vision transformer are
worth saying otherwise, float or quantized alike (the rewrites are ours; the quotients below are of DeiT-S):

- ``split_projections``: queries, keys and values by one product each, instead of one product whose result is
  transposed whole, cut into three and transposed again.
- ``fold_scales``: the attention's scale and LayerScale, multiplied into the weights in front of them.
- ``keep_needed_rows``: where the head reads the class token alone, the last block needs the other tokens for its
  keys and values only; its remaining products are done for one token (a twelfth part of all work falls to a sixth).
"""

from math import prod

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes

from .rows import keep_needed_rows
from .values import constant, store


def simplify(model: ir.Model) -> ir.Model:
    """The model with its graph rewritten; what it computes stays the same but for rounding."""
    graph = model.graph
    passes.ShapeInferencePass()(model)
    split_projections(graph)
    fold_scales(graph)
    for settle in (passes.RemoveUnusedNodesPass(), passes.NameFixPass(), passes.ShapeInferencePass()):
        settle(model)
    keep_needed_rows(graph)
    for cleanup in (
        passes.IdentityEliminationPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.DeduplicateInitializersPass(),
        passes.RemoveUnusedNodesPass(),
        passes.ClearMetadataAndDocStringPass(),  # they name the exporting machine's folders
    ):
        cleanup(model)
    return model


def split_projections(graph: ir.Graph) -> None:
    """Give each part of ``unbind(permute(reshape(linear(x))))`` its own linear layer."""
    for node in list(graph):
        if node.op_type != "Squeeze" or (cut := _source(node, "Slice")) is None:
            continue
        turned = _source(cut, "Transpose")
        shaped = None if turned is None else _source(turned, "Reshape")
        bounds = [constant(value) for value in cut.inputs[1:4]]
        if shaped is None or len(cut.inputs) > 5 or any(b is None or b.size != 1 for b in bounds):
            continue
        start, end, axis = (int(b.item()) for b in bounds)
        squeezed = constant(node.inputs[1])
        shape, perm = constant(shaped.inputs[1]), list(turned.attributes["perm"].as_ints())
        if shape is None or axis != 0 or end != start + 1 or squeezed is None or squeezed.tolist() != [0]:
            continue
        part = perm[0]  # the axis of the reshaped product that numbers the parts
        x, width = shaped.inputs[0], prod(shape[part + 1 :])
        if x.shape is None or len(x.shape) != part + 1 or (shape[part:] <= 0).any():
            continue
        own = _linear(graph, x, slice(start * width, (start + 1) * width), np.float32(1), node)
        if own is None:
            continue
        target = store(graph, f"{node.outputs[0].name}.shape", np.delete(shape, part))
        reshaped = _insert(graph, node, "Reshape", [own, target], dict(shaped.attributes))
        order = [p - (p > part) for p in perm[1:]]
        _replace(node, _insert(graph, node, "Transpose", [reshaped], {"perm": order}))


def fold_scales(graph: ir.Graph) -> None:
    """Multiply constants behind a linear layer into its weights: any one number, or one a column."""
    for node in list(graph):
        if node.op_type != "Mul":
            continue
        x, factor = node.inputs[0], constant(node.inputs[1])
        if factor is None or (factor.size > 1 and factor.size != factor.shape[-1]):
            continue
        chain, inner = node, x
        while factor.size == 1 and (mover := inner.producer()) is not None and mover.op_type in ("Transpose", "Reshape"):
            if len(inner.uses()) > 1:
                break
            chain, inner = mover, mover.inputs[0]
        scaled = _linear(graph, inner, slice(None), factor.reshape(-1), chain) if len(inner.uses()) == 1 else None
        if scaled is None:
            continue
        if chain is node:
            _replace(node, scaled)
        else:
            chain.replace_input_with(0, scaled)
            _replace(node, x)


def _linear(graph: ir.Graph, x: ir.Value, columns: slice, factor: np.ndarray, before: ir.Node) -> ir.Value | None:
    """``x[..., columns] * factor`` as a linear layer of its own, where ``x`` is one with constant weights."""
    add, bias = x.producer(), None
    if add is not None and add.op_type == "Add":
        at = next((i for i in (1, 0) if constant(add.inputs[i]) is not None), None)
        if at is None:
            return None
        bias, x = constant(add.inputs[at]), add.inputs[1 - at]
        if bias.ndim != 1:
            return None
    product = x.producer()
    if product is None or product.op_type != "MatMul":
        return None
    weight = _weight(graph, product.inputs[1], columns, factor, before)
    if weight is None:
        return None
    out = _insert(graph, before, "MatMul", [product.inputs[0], weight])
    if bias is None:
        return out
    moved = store(graph, f"{out.name}.bias", (bias[columns] * factor).astype(bias.dtype))
    return _insert(graph, before, "Add", [out, moved])


def _weight(
    graph: ir.Graph, weight: ir.Value, columns: slice, factor: np.ndarray, before: ir.Node
) -> ir.Value | None:
    """Columns of a weight [in, out], float or dequantized; codes stay as they are, their scales take the factor."""
    if (array := constant(weight)) is not None:
        if array.ndim != 2 or factor.size not in (1, array.shape[1]):
            return None
        return store(graph, f"{before.outputs[0].name}.weight", (array[:, columns] * factor).astype(array.dtype))
    node = weight.producer()
    if node is None or node.op_type != "DequantizeLinear":
        return None
    codes, scale, *zero = (constant(value) for value in node.inputs)
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 1
    by_column = scale is not None and scale.ndim == 1
    if codes is None or scale is None or codes.ndim != 2 or (by_column and axis % 2 != 1):
        return None
    if (factor <= 0).any() or factor.size not in (1, codes.shape[1] if by_column else 1):
        return None
    scale, zero = (scale[columns], [z[columns] for z in zero]) if by_column else (scale, zero)
    scale = (scale * factor).reshape(scale.shape).astype(scale.dtype)
    name = before.outputs[0].name
    arrays = {"codes": codes[:, columns], "scale": scale, **({"zero": zero[0]} if zero else {})}
    values = [store(graph, f"{name}.{kind}", array) for kind, array in arrays.items()]
    return _insert(graph, before, "DequantizeLinear", values, {"axis": 1})


def _source(node: ir.Node, op_type: str) -> ir.Node | None:
    """The node in front of ``node`` where it is an ``op_type``."""
    source = node.inputs[0].producer() if node.inputs[0] is not None else None
    return source if source is not None and source.op_type == op_type else None


def _insert(
    graph: ir.Graph, before: ir.Node, op_type: str, inputs: list[ir.Value], attributes: dict | None = None
) -> ir.Value:
    node = ir.node(op_type, inputs, attributes)
    graph.insert_before(before, node)
    return node.outputs[0]


def _replace(node: ir.Node, value: ir.Value) -> None:
    """Let everybody read ``value`` instead of the node's output."""
    out = node.outputs[0]
    if value.shape is None:
        value.shape, value.type = out.shape, out.type
    ir.convenience.replace_all_uses_with(out, value, replace_graph_outputs=True)
