"""ONNX export and the runtime that needs no torch."""
