"""DopQ-ViT: low bits for finished ViTs, fine where attention is near 0 and near 1, and safe from outlier channels.

"DopQ-ViT: Towards Distribution-Friendly and Outlier-Aware Post-Training Quantization for Vision Transformers",
arXiv 2408.03291. There is no official code: this is a reimplementation.

Post-training quantization of a timm ViT, DeiT, Swin or ``Trunk`` with some hundred unlabelled pictures, on the pipeline
of RepQ-ViT and I&S-ViT (calibrate, fold, tune; ``vitalk.nn.quant.smooth``) with two parts of its own:

- TanQ, the quantizer of attention probabilities: even steps of a tangent, fine at both ends. At run time a table.
- MOSF, the common scale that channel scales are folded into: the median, or that of least mean absolute deviation, in
  place of the mean, which few outlier channels drag away (``mosf``).

    vitalk compress deit_small_patch16_224 --quant dopq-vit --bits w4a4 --data PATH
    vitalk reproduce dopq-vit

    >>> from vitalk.systems.dopq_vit import clipped, dopq_vit
    >>> quantized = dopq_vit(model, images, 4, 4)  # 1000 steps for each block and stage: for a GPU
    >>> quantized = dopq_vit(model, images, 4, 4, iterations=0)  # calibration only: seconds
    >>> quantized = dopq_vit(model, images, 4, 4, iterations=50, batch=32, lr=4e-4)  # minutes on a desktop processor
    >>> quantized = dopq_vit(model, images, 4, 4, attention="float")  # to be exported: real int8 products
    >>> without_the_largest = clipped(quantized, share=0.01)  # the paper's clip test

``integer=False`` is the papers' protocol: asymmetric weights, and the common zero point as the rule gives it. The
default is made to run: whole zero points and symmetric weights (ours).

Unconfirmed, and ours: TanQ's formula, which could not be read, is

    u = (tan(a (A / s - 1/2)) / tan(a / 2) + 1) / 2, rounded to 2**bits even values, with a searched in [0.2, 3.0]

for least error of the probabilities or of their product (``sharpness``); the tuning is I&S-ViT's; what the paper's
third version adds to the median is unknown, and ``trimmed_scale`` one reading of it.

What MOSF can change: a common scale multiplies all rewritten weights alike, and weights have a scale a row, so after
calibration alone it changes no code; only the common zero point does, a fractional one (the mean's, ``integer=False``)
most. Under tuning the common scale says how large the weights are for a given rate.

``recipe.yaml`` (vitalk train dopq-vit) trains the float network that is then quantized.
"""

from .attention import attention_errors, clipped
from .method import dopq_vit
from .mosf import deviation_scale, mean_absolute_deviation, median_scale, trimmed_scale

__all__ = [
    "attention_errors",
    "clipped",
    "deviation_scale",
    "dopq_vit",
    "mean_absolute_deviation",
    "median_scale",
    "trimmed_scale",
]
