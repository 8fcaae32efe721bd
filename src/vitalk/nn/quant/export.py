"""Export: quantized models as ONNX graphs whose products run as int8 in onnxruntime and OpenVINO.

    check_exportable(model)
    program = torch.onnx.export(model, ..., dynamo=True, custom_translation_table=TRANSLATIONS)
    small = fold_weights(program.model_proto)

Every quantizer becomes one pair of QuantizeLinear and DequantizeLinear in front of the product it serves, and none
is put on outputs: so runtimes fuse integer products that put out floats (MatMulIntegerToFloat, FullyConnected).
Fewer than 8 bits are codes in 8-bit containers: the same numbers, at the speed of int8; ``pack_weights`` stores 4 bits
as 4 bits instead, for products in float. The quantizers with tables have no integer operator and are written as float
arithmetic.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes import common as passes
from onnxscript import opset20 as op
from torch import nn

from vitalk.errors import UserError

from .quantizers import UniformQuantizer
from .sites import quantizers


def check_exportable(model: nn.Module) -> None:
    """UserError where a quantizer of ``model`` has no integer form: calibrate and reparameterize first.

    Harmless for models without quantizers.
    """
    for name, quantizer in quantizers(model).items():
        if not quantizer.enabled:
            continue
        if not quantizer.fitted:
            raise UserError(f"{name} has seen no data; calibrate the model before exporting it")
        if not isinstance(quantizer, UniformQuantizer):
            continue
        zero = quantizer.zero_point
        if bool((zero != zero.round()).any()):
            raise UserError(f"the zero point of {name} is not a whole number; quantize with integer=True to export")
        if bool((zero < quantizer.low).any() or (zero > quantizer.high).any()):
            raise UserError(f"the zero point of {name} is not one of its codes; quantize with integer=True to export")
        if quantizer.axis is not None and not name.endswith("weight_quantizer") and not _factors_out(model, name):
            raise UserError(f"{name} has a scale for each channel, which no runtime multiplies; reparameterize first")


def _factors_out(model: nn.Module, name: str) -> bool:
    """Whether the scales that a quantizer has for the channels of an input are factors of whole sums.

    So it is where the groups of a convolution, such as a depthwise one, have a scale each.
    """
    site, quantizer = (model.get_submodule(part) for part in (name.rpartition(".")[0], name))
    groups = getattr(site, "groups", 1)
    apart = [part.unflatten(0, (groups, -1)) for part in (quantizer.scale, quantizer.zero_point)]
    return groups > 1 and all(bool((part == part[:, :1]).all()) for part in apart)


def _quantize_dequantize(x: Any, scale: Any, zero_point: Any, axis: int, low: int, high: int) -> Any:
    kind = onnx.TensorProto.INT8 if low < 0 else onnx.TensorProto.UINT8
    whole = op.Cast(zero_point, to=kind)
    per_channel = len(scale.shape) > 0
    full = high - low == 255
    if not full and not per_channel:  # bounds in floats, in front: runtimes only fuse pairs with nothing in between
        x = op.Clip(x, op.Mul(op.Sub(float(low), zero_point), scale), op.Mul(op.Sub(float(high), zero_point), scale))
    codes = op.QuantizeLinear(x, scale, whole, axis=axis)
    if not full and per_channel:  # weights, which fold_weights computes
        codes = op.Clip(codes, op.CastLike(low, whole), op.CastLike(high, whole))
    return op.DequantizeLinear(codes, scale, whole, axis=axis)


TRANSLATIONS: dict[Callable, Callable] = {torch.ops.vitalk.quantize_dequantize.default: _quantize_dequantize}


def fold_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with quantized weights stored as 8-bit codes, a quarter of the file, and ready to be fused.

    Weights of linear layers are laid out [in, out] in front of a MatMul and an Add, and equal quantizers of one
    activation become one. Weights that are multiplied in float, those of convolutions and those that meet activations
    in float, become codes times scales, which runtimes work out once, when they load the file. What the graph computes
    stays the same.
    """
    work = ir.from_proto(model)
    for node in list(work.graph):
        if node.op_type == "DequantizeLinear" and (codes := _codes(node)) is not None:
            _store(work.graph, node, codes)
    for node in list(work.graph):
        if node.op_type == "Gemm" and _is_plain(node):
            _as_matmul(work.graph, node)
    for node in list(work.graph):
        if node.op_type == "Transpose" and _perm(node) == [1, 0]:
            _transpose_codes(work.graph, node)
    for node in list(work.graph):
        if node.op_type == "Conv" or (node.op_type == "MatMul" and not _dequantized(node.inputs[0])):
            _in_float(work.graph, node)
    passes.DeduplicateInitializersPass()(work)
    passes.CommonSubexpressionEliminationPass()(work)
    passes.RemoveUnusedNodesPass()(work)
    return ir.to_proto(work)


def _array(value: ir.Value | None) -> np.ndarray | None:
    """The constant that ``value`` is, over reshapes; None where it depends on the input."""
    if value is None:
        return None
    if value.const_value is not None:
        return value.const_value.numpy()
    node = value.producer()
    if node is not None and node.op_type == "Reshape" and (array := _array(node.inputs[0])) is not None:
        return array.reshape(_array(node.inputs[1]))
    return None


def _codes(dequantize: ir.Node) -> np.ndarray | None:
    """The integer codes in front of ``dequantize`` where they are constant."""
    node, low, high = dequantize.inputs[0].producer(), None, None
    if node is not None and node.op_type == "Clip":
        low, high = _array(node.inputs[1]), _array(node.inputs[2])
        node = node.inputs[0].producer()
    if node is None or node.op_type != "QuantizeLinear" or (x := _array(node.inputs[0])) is None:
        return None
    scale, zero_point = _array(node.inputs[1]), _array(node.inputs[2])
    shape = [1] * x.ndim
    if scale.ndim:
        shape[node.attributes["axis"].as_int()] = -1
    codes = np.round(x / scale.reshape(shape)) + zero_point.reshape(shape).astype(x.dtype)
    limits = np.iinfo(zero_point.dtype)
    codes = codes.clip(limits.min if low is None else low, limits.max if high is None else high)
    return codes.astype(zero_point.dtype)


def _initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    value = ir.Value(name=name, const_value=ir.tensor(np.ascontiguousarray(array), name=name))
    value.shape, value.dtype = value.const_value.shape, value.const_value.dtype
    graph.register_initializer(value)
    return value


def _store(graph: ir.Graph, dequantize: ir.Node, codes: np.ndarray) -> None:
    dequantize.replace_input_with(0, _initializer(graph, f"{dequantize.outputs[0].name}.codes", codes))


def _perm(node: ir.Node) -> list[int]:
    return list(node.attributes["perm"].as_ints()) if "perm" in node.attributes else []


def _is_plain(gemm: ir.Node) -> bool:
    """Whether ``gemm`` is x @ dequantized weight, transposed, plus a bias."""
    number = {name: a.value for name, a in gemm.attributes.items()}
    plain = number.get("alpha", 1.0) == number.get("beta", 1.0) == 1.0 and not number.get("transA", 0)
    source = gemm.inputs[1].producer()
    return bool(plain and number.get("transB", 0) and source is not None and source.op_type == "DequantizeLinear")


def _as_matmul(graph: ir.Graph, gemm: ir.Node) -> None:
    out = gemm.outputs[0]
    turned = ir.node("Transpose", [gemm.inputs[1]], {"perm": [1, 0]})
    product = ir.node("MatMul", [gemm.inputs[0], turned.outputs[0]])
    nodes = [turned, product]
    if len(gemm.inputs) > 2 and gemm.inputs[2] is not None:
        # Not Add: onnxruntime would make MatMul and Add a Gemm again, for which it has no integer kernel.
        nodes.append(ir.node("Sum", [product.outputs[0], gemm.inputs[2]]))
    for i, node in enumerate(nodes):
        node.outputs[0].name = f"{out.name}.{i}"
    last = nodes[-1].outputs[0]
    last.shape, last.type, name = out.shape, out.type, out.name
    graph.insert_before(gemm, nodes)
    ir.convenience.replace_all_uses_with(out, last, replace_graph_outputs=True)
    graph.remove(gemm, safe=True)
    last.name = name


def _transpose_codes(graph: ir.Graph, transpose: ir.Node) -> None:
    """Store the codes turned instead of turning the weight in the graph."""
    source = transpose.inputs[0].producer()
    if source is None or source.op_type != "DequantizeLinear" or (codes := _array(source.inputs[0])) is None:
        return
    out = transpose.outputs[0]
    stored = _initializer(graph, f"{out.name}.codes", codes.T)
    turned = ir.node("DequantizeLinear", [stored, *source.inputs[1:]], {"axis": 1 - source.attributes["axis"].as_int()})
    turned.outputs[0].name = f"{out.name}.turned"
    graph.insert_before(transpose, turned)
    ir.convenience.replace_all_uses_with(out, turned.outputs[0])


def _dequantized(value: ir.Value) -> bool:
    node = value.producer()
    while node is not None and node.op_type in ("Reshape", "Transpose"):
        node = node.inputs[0].producer()
    return node is not None and node.op_type == "DequantizeLinear"


def _in_float(graph: ir.Graph, product: ir.Node) -> None:
    """Write the weight of a product in float as arithmetic of its codes, which is worked out when a file is loaded.

    Behind a DequantizeLinear runtimes would do it anew for every picture, or round the activations to 8 bits.
    """
    source = product.inputs[1].producer()
    if source is None or source.op_type != "DequantizeLinear" or (codes := _array(source.inputs[0])) is None:
        return
    scale, zero_point = _array(source.inputs[1]), _array(source.inputs[2])
    shape = [1] * codes.ndim
    if scale.ndim:
        shape[source.attributes["axis"].as_int()] = -1
    name = f"{product.outputs[0].name}.weight"
    nodes = [ir.node("Cast", [_initializer(graph, f"{name}.codes", codes)], {"to": ir.DataType.FLOAT})]
    if zero_point.any():
        shift = _initializer(graph, f"{name}.zero", zero_point.astype(np.float32).reshape(shape))
        nodes.append(ir.node("Sub", [nodes[-1].outputs[0], shift]))
    factor = _initializer(graph, f"{name}.scale", scale.astype(np.float32).reshape(shape))
    nodes.append(ir.node("Mul", [nodes[-1].outputs[0], factor]))
    for i, node in enumerate(nodes):
        node.outputs[0].name = f"{name}.{i}"
    graph.insert_before(product, nodes)
    product.replace_input_with(1, nodes[-1].outputs[0])
