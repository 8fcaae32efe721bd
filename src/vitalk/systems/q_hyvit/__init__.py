"""Q-HyViT: hybrids of convolutions and attention, quantized layer by layer, the bridges between them reconstructed.

Lee et al., "Q-HyViT: Post-Training Quantization of Hybrid Vision Transformers with Bridge Block Reconstruction for IoT
Systems", arXiv 2303.12557.

Post-training quantization of a finished MobileViT, MobileViTv2, EfficientFormer or EfficientFormerV2 of timm (ViTs,
Swin and a ``Trunk`` too, which have no bridges) with 32 unlabelled pictures. Each layer chooses for each operand one
scale or one a channel, symmetric or asymmetric, and which scales, by the error that its output has, weighted by the
squared gradients of the loss. Bridge blocks, where a feature map becomes tokens or back, are fitted to what they put
out in a float network and stay quantized while what runs after them is calibrated.

    vitalk compress runs/q-hyvit-cpu/model.safetensors --quant q-hyvit --bits w8a8 --data PATH
    vitalk reproduce q-hyvit

    >>> from vitalk.systems.q_hyvit import choices, q_hyvit
    >>> quantized = q_hyvit(model, images, 6, 6, integer=False)  # the paper's protocol: any form for any layer
    >>> quantized = q_hyvit(model, images, 6, 6, choice="rule", integer=False)  # what its code does: a rule on groups
    >>> choices(quantized)["stages.0.0.conv2_kxk.conv.input_quantizer"]
    'channel symmetric'
    >>> quantized = q_hyvit(model, images, 8, 8, attention="float")  # to be exported

``integer`` (the default): symmetric weights, one scale a tensor for products, and a scale a channel only for inputs of
grouped convolutions, where it factors out of the sums; this exports. Linear layers and convolutions of single pixels,
most of a hybrid's work, then run as int8 in onnxruntime; other convolutions are simulated in float there.

Zero points: a range that does not hold zero would need one that is no code (the paper's "zero-point overflow"). Here
asymmetric ranges always hold zero, and the symmetric scheme competes with them.

Chosen by us, where the paper is silent (unconfirmed) or its code cannot be meant: bridges are found by running the
network, in place of lists of indices; a bridge is fitted to float outputs on quantized inputs, and the reconstruction
ends there; gradients are those of the cross-entropy with the network's own decisions, since the KL divergence from the
float network has none while nothing is quantized; forms are compared first for activations, then for weights.
BatchNorms behind convolutions are folded first, found by data flow.

Stays in float: MobileViTv2's linear attention (elementwise products; its convolutions are quantized), the products
inside EfficientFormerV2's attention, norms, and biases. Mobile-Former is not in timm. The paper's fully quantized
variant, with FQ-ViT's LayerNorm and softmax, is there in its softmax only: ``attention="log2"``. PTQ4ViT's softmax is
``attention="twin-uniform"``; its quantizer for GELU, which the paper switches off too, only the baseline has.

Nothing is trained here. ``recipe.yaml`` (vitalk train q-hyvit) trains the float hybrid that is then quantized.
"""

from .choice import choices
from .method import q_hyvit

__all__ = ["choices", "q_hyvit"]
