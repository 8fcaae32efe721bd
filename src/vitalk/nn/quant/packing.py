"""Weights of 4 bits as 4 bits in the file: MatMulNBits, which onnxruntime multiplies in float."""

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper

LEVELS = 16
BLOCKS = (128, 64, 32, 16)  # numbers along a row that share a scale in the file; rows have one each, which is repeated


def pack_weights(model: ModelProto) -> ModelProto:
    """A graph of ``export.fold_weights`` whose linear weights of at most 16 levels are packed, two to a byte.

    The numbers stay the same to the last bit; the products become float products with weights that are unpacked on the
    way (com.microsoft.MatMulNBits), so this is for size, not for speed. Weights of more levels stay as they are.
    """
    packed = ModelProto()
    packed.CopyFrom(model)
    constants = {value.name: numpy_helper.to_array(value) for value in packed.graph.initializer}
    weights = {node.output[0]: node for node in packed.graph.node if _stored(node, constants)}
    nodes = []
    for node in packed.graph.node:
        source = weights.get(node.input[1]) if node.op_type == "MatMul" else None
        nodes.append(node if source is None else _packed(packed, node, source, constants))
    used = {name for node in nodes for name in node.input} | {out.name for out in packed.graph.output}
    nodes = [node for node in nodes if node.op_type != "DequantizeLinear" or node.output[0] in used]
    used = {name for node in nodes for name in node.input}
    kept = [value for value in packed.graph.initializer if value.name in used]
    for field, values in ((packed.graph.node, nodes), (packed.graph.initializer, kept)):
        values = list(values)
        del field[:]
        field.extend(values)
    if not any(entry.domain == "com.microsoft" for entry in packed.opset_import):
        packed.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return packed


def _stored(node: NodeProto, constants: dict[str, np.ndarray]) -> bool:
    """Whether ``node`` dequantizes a constant matrix [in, out], one scale a column, of few levels."""
    if node.op_type != "DequantizeLinear" or any(name not in constants for name in node.input) or len(node.input) != 3:
        return False
    codes, scale = constants[node.input[0]], constants[node.input[1]]
    axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
    few = codes.ndim == 2 and int(codes.max()) - _least(codes) < LEVELS
    return few and scale.ndim == 1 and axis % 2 == 1


def _least(codes: np.ndarray) -> int:
    return -LEVELS // 2 if codes.dtype == np.int8 else 0


def _packed(model: ModelProto, product: NodeProto, source: NodeProto, constants: dict[str, np.ndarray]) -> NodeProto:
    codes, scale, zero = (constants[name] for name in source.input)
    inner, columns = codes.shape
    block = next((size for size in BLOCKS if inner % size == 0), BLOCKS[-1])
    blocks = -(-inner // block)
    least = _least(codes)
    unsigned = codes.T.astype(np.int16) - least  # [out, in], 0 to 15
    zeros = np.broadcast_to(zero.astype(np.int16) - least, (columns,))
    filled = np.repeat(zeros[:, None], blocks * block, 1)
    filled[:, :inner] = unsigned
    arrays = {
        "codes": _nibbles(filled).reshape(columns, blocks, block // 2),
        "scales": np.repeat(scale.astype(np.float32)[:, None], blocks, 1),
        "zeros": _nibbles(np.repeat(zeros[:, None], blocks + blocks % 2, 1)),
    }
    names = []
    for kind, array in arrays.items():
        names.append(f"{source.input[0]}.{kind}4")
        if names[-1] not in constants:
            model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), names[-1]))
            constants[names[-1]] = array
    return helper.make_node(
        "MatMulNBits", [product.input[0], *names], list(product.output), product.name, domain="com.microsoft",
        K=inner, N=columns, bits=4, block_size=block, accuracy_level=1,
    )  # fmt: skip


def _nibbles(values: np.ndarray) -> np.ndarray:
    """Whole numbers below 16 [rows, even] -> bytes [rows, even / 2], the first in the low half."""
    return (values[:, ::2] | values[:, 1::2] << 4).astype(np.uint8)
