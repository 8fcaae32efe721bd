"""Post-training quantization: quantizers, the sites they sit on, calibration, reparameterization and ONNX export.

A method (``vitalk.systems.repq_vit`` and others) is a policy over sites: ``expose`` a model, set
``input_quantizer``, ``weight_quantizer`` (or ``left_quantizer``, ``right_quantizer`` of attention products),
``calibrate``, and export.
"""

from .calibrate import calibrate
from .quantizers import Log2Quantizer, LogSqrt2Quantizer, Quantizer, UniformQuantizer
from .reparam import find_pairs, fold
from .sites import (
    QuantConv2d,
    QuantLinear,
    QuantMatMul,
    expose,
    fold_batch_norms,
    quantizers,
    sites,
    switched_off,
)

__all__ = [
    "Log2Quantizer",
    "LogSqrt2Quantizer",
    "QuantConv2d",
    "QuantLinear",
    "QuantMatMul",
    "Quantizer",
    "UniformQuantizer",
    "calibrate",
    "expose",
    "find_pairs",
    "fold",
    "fold_batch_norms",
    "quantizers",
    "sites",
    "switched_off",
]
