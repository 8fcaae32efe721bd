"""I&S-ViT: three and four bits for finished ViTs, by tuning the weights in three smooth stages.

Zhong et al., "I&S-ViT: An Inclusive & Stable Method for Pushing the Limit of Post-Training ViTs Quantization", TPAMI
2025, arXiv 2311.10126.

Post-training quantization of a timm ViT, DeiT, Swin or ``Trunk`` with some hundred unlabelled pictures. Two ideas:

- Attention probabilities go through the shift-uniform-log2 quantizer (SULQ): log2(A + eta), quantized evenly and
  rounded to whole exponents, so that values are powers of two less eta. The shift eta is searched for. Zero attention
  is not exactly zero, which costs one sum over the columns of the values.
- Smooth optimisation (SOS): the float weights of each block are tuned to quantized activations, with a scale a channel
  behind LayerNorm; the scales are folded into the network; the weights are quantized and tuned again.

    vitalk compress deit_small_patch16_224 --quant is-vit --bits w4a4 --data PATH
    vitalk reproduce is-vit

    >>> from vitalk.systems.is_vit import is_vit
    >>> quantized = is_vit(model, images, 4, 4)  # 1000 steps for each block and stage: for a GPU
    >>> quantized = is_vit(model, images, 4, 4, iterations=50, batch=32, lr=4e-4)  # minutes on a desktop processor
    >>> quantized = is_vit(model, images, 4, 4, attention="float")  # to be exported: real int8 products

``integer=False`` is the paper's protocol: asymmetric weights at its percentiles, and a common zero point that is a mean
and so no whole number. The default is made to run: whole zero points and symmetric weights (ours).

Differences: SULQ has 2**bits codes (the official code has one more); ``iterations=0`` and ``stages=1`` calibrate
everything in one pass, as RepQ-ViT does (what the paper's one-stage tuning starts from is unconfirmed), and one stage
takes as many steps as three; the layers behind a LayerNorm are found by data flow, with Swin's downsampling left at one
scale a tensor as in the official code; the blocks of a ``Trunk`` are tuned part by part, each to what the float part
makes of the same tokens, since the float network may keep others (ours).

Nothing but weights and biases of linear layers and convolutions is tuned. ``recipe.yaml`` (vitalk train is-vit) trains
the float network that is then quantized.
"""

from .method import is_vit

__all__ = ["is_vit"]
