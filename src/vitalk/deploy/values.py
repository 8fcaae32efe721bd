"""Constants in an ONNX graph."""

import numpy as np
import onnx_ir as ir


def constant(value: ir.Value | None) -> np.ndarray | None:
    """The numbers that ``value`` holds whatever the input; None where it is computed or absent."""
    return None if value is None or value.const_value is None else value.const_value.numpy()


def store(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """A new constant of ``graph``, called ``name`` or, where that is taken, something like it."""
    while name in graph.initializers:
        name += "_"
    value = ir.Value(name=name, const_value=ir.tensor(np.ascontiguousarray(array).reshape(array.shape), name=name))
    value.shape, value.dtype = value.const_value.shape, value.const_value.dtype
    graph.register_initializer(value)
    return value
