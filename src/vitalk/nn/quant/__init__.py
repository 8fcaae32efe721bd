"""Post-training quantization: quantizers, the sites they sit on, calibration, searches, reconstruction, ONNX export.

A method (``vitalk.systems.repq_vit`` and others) is a policy over sites and a way to calibrate: ``place`` quantizers,
``calibrate`` or search them (``observe``, ``alternate``), rewrite the network (``widen``, ``fold``),
``reconstruct`` its units, and export. ``describe`` says what came of it.
"""

from .calibrate import calibrate
from .nonuniform import (
    AdaptiveLogQuantizer,
    Log2Quantizer,
    LogSqrt2Quantizer,
    ShiftLog2Quantizer,
    TableQuantizer,
    TanQuantizer,
    TwinUniformQuantizer,
)
from .policy import Policy, parse_bits, place, skeleton
from .quantizers import MINMAX, OMSE, PERCENTILE, PERCENTILES, Quantizer, Ranges, UniformQuantizer
from .reparam import absorb, find_pairs, fold, widen, with_outliers
from .search import alternate, choose, errors, observe
from .sites import (
    QuantConv1d,
    QuantConv2d,
    QuantLinear,
    QuantMatMul,
    expose,
    fold_batch_norms,
    load_quantized,
    quantizers,
    sites,
    switched_off,
)

__all__ = [
    "MINMAX",
    "OMSE",
    "PERCENTILE",
    "PERCENTILES",
    "AdaptiveLogQuantizer",
    "Log2Quantizer",
    "LogSqrt2Quantizer",
    "Policy",
    "QuantConv1d",
    "QuantConv2d",
    "QuantLinear",
    "QuantMatMul",
    "Quantizer",
    "Ranges",
    "ShiftLog2Quantizer",
    "TableQuantizer",
    "TanQuantizer",
    "TwinUniformQuantizer",
    "UniformQuantizer",
    "absorb",
    "alternate",
    "calibrate",
    "choose",
    "errors",
    "expose",
    "find_pairs",
    "fold",
    "fold_batch_norms",
    "load_quantized",
    "observe",
    "parse_bits",
    "place",
    "quantizers",
    "sites",
    "skeleton",
    "switched_off",
    "widen",
    "with_outliers",
]
