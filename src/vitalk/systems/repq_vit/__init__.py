"""RepQ-ViT: calibrate with quantizers that fit, then rewrite the network for quantizers that are cheap.

Li et al., "RepQ-ViT: Scale Reparameterization for Post-Training Quantization of Vision Transformers", ICCV 2023,
arXiv 2212.08254.

Post-training quantization of a finished ViT, DeiT, Swin or ``Trunk`` with 32 unlabelled pictures, in seconds, without
gradients. Two activations of a ViT do not fit one uniform scale: the outputs of LayerNorm, whose channels differ
widely, and the attention probabilities. The first are calibrated channel by channel, and the channel scales are then
folded into the LayerNorm and the next linear layer; the second get powers of sqrt(2), which are shifts and a factor.
What remains has one scale a tensor, and the float network is the same as before.

    vitalk compress deit_small_patch16_224 --quant repq-vit --bits w8a8 --data PATH

    >>> from vitalk.systems.repq_vit import parse_bits, repq_vit, restore
    >>> weight_bits, act_bits = parse_bits("w4a4")
    >>> quantized = repq_vit(model, images, weight_bits, act_bits)

    >>> quantized = repq_vit(model, images, 8, 8, attention="float")  # to be exported: fastest as real int8
    >>> safetensors.torch.save_file(quantized.state_dict(), "deit.w8a8.safetensors")
    >>> again = restore(model, safetensors.torch.load_file("deit.w8a8.safetensors"), 8, 8, attention="float")

``integer=False`` is the paper's protocol: asymmetric weights, and a common zero point that is a mean and so no whole
number. The default is made to run: whole zero points (which also make the rewritten network round exactly as the
channel-wise quantizers did) and symmetric weights, whose range is searched for by squared error, ours. All weights,
patch embedding and head too, have ``weight_bits``; pictures always have 8 bits, as in the official code.

Differences: the layers behind a LayerNorm are found by data flow instead of by name, so other architectures work, and
what has no such pair gets one scale a tensor; channels with hardly any range are lifted to 0.001 of the mean scale
before the fold; ranges of whole tensors always hold zero; BatchNorms behind convolutions are folded into them first.

Nothing is trained here. ``recipe.yaml`` (vitalk train repq-vit) trains the float network that is then quantized.
"""

from vitalk.nn.quant import parse_bits, skeleton

from .method import repq_vit, restore

__all__ = ["parse_bits", "repq_vit", "restore", "skeleton"]
