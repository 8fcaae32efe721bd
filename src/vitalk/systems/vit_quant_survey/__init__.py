"""The quantization survey as a workbench: its baselines, integer-only inference and quantization-aware training.

Du, Gong, Chu, "Model Quantization and Hardware Acceleration for Vision Transformers: A Comprehensive Survey",
arXiv 2405.00314. The survey has no code; what it lists is built here from the papers it cites, on one protocol.

    vitalk train vit-quant-survey --preset tiny               quantization-aware training, 2 to 8 bits
    vitalk compress MODEL --quant fq-vit --bits w8a8          or minmax, percentile, omse, ema, ptq4vit, noisyquant
    vitalk reproduce vit-quant-survey

Post-training baselines, each a policy and a way to find ranges: min-max, percentiles, OMSE, running averages, PTQ4ViT
(twin uniform, Hessian-weighted search), FQ-ViT (power-of-two factors, log2 attention), NoisyQuant.

    >>> from vitalk.systems.vit_quant_survey import vit_quant_survey, logits_report, tensor_reports
    >>> quantized = vit_quant_survey(model, images, 8, 8, method="fq_vit", attention_bits=4)
    >>> quantized = vit_quant_survey(model, images, 8, 8, method="omse", attention="float")    # to be exported
    >>> tensor_reports(quantized, images), logits_report(quantized(images), model(images))

Integers only, softmax, GELU and LayerNorm too, by the kernels of I-ViT, I-BERT or FQ-ViT: a reference in numpy, and the
same as an ONNX graph, which onnxruntime runs to equal numbers bit for bit.

    >>> from vitalk.systems.vit_quant_survey import integer_vit, integer_onnx
    >>> network = integer_vit(model, images, softmax="shiftmax", gelu="shift")
    >>> logits = network(images)
    >>> onnx.save(integer_onnx(network), "vit.int.onnx")

On a CPU this is exact, not fast: runtimes have quick kernels for 8-bit products alone, and 64-bit shifts and quotients
take longer than the float functions they replace. Speed is what the baselines' exports are for.

Training: ``quantized_vit`` is any timm model with quantizers whose steps are learnt (LSQ); its files load, run and
export as those of any other model.

    >>> from vitalk.systems.vit_quant_survey import QuantizationAware, quantized_vit

Ours, where the sources differ, say nothing, or are off without training: exponents are chosen from the scale (I-ViT's
fixed 15 and 23 overflow the quotient's bits for fine scales), scales in front of shifts are reciprocals of whole
numbers, ShiftGELU is relative to max(x, 0) instead of the row's largest value, the square root takes its six steps from
the next power of two, LayerNorm's bias is added behind the multiplication by its weight, weights are rounded once.
FQ-ViT's factors sit behind LayerNorms by default, where they fold into the network exactly; ``norms="inputs"`` is the
paper's. PTQ4ViT's gradients are of the network's own decisions, and ``integer=True`` leaves out the twin steps behind
GELUs, which runtimes cannot multiply. NoisyQuant's noise is chosen for the input's error.

Not here: the survey's ternary and binary networks and 4-bit floats (quantizers have 2 to 8 bits), distillation of
queries and keys, mixed bits. The other quantization systems (repq-vit, is-vit, adalog, …) are folders of their own.
"""

from .baselines import BASELINES, fq_vit, noisyquant, ptq4vit, uniform, vit_quant_survey
from .integer import IntegerViT
from .integer_build import integer_vit
from .integer_graph import integer_onnx, traced
from .qat import QuantizationAware, by_blocks, float_copy, quantized_vit, start, started
from .report import TensorReport, logits_report, sqnr, tensor_reports

__all__ = [
    "BASELINES",
    "IntegerViT",
    "QuantizationAware",
    "TensorReport",
    "by_blocks",
    "float_copy",
    "fq_vit",
    "integer_onnx",
    "integer_vit",
    "logits_report",
    "noisyquant",
    "ptq4vit",
    "quantized_vit",
    "sqnr",
    "start",
    "started",
    "tensor_reports",
    "traced",
    "uniform",
    "vit_quant_survey",
]
