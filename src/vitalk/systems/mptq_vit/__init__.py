"""MPTQ-ViT: channels centred and scaled, two ranges whose ratio is searched, and bits allocated greedily.

Tai and Wu, "MPTQ-ViT: Mixed-Precision Post-Training Quantization for Vision Transformer", arXiv 2401.14895.

Post-training quantization of a finished ViT, DeiT, Swin or ``Trunk`` with 32 unlabelled pictures. Three parts:

- SQ-b: what goes into a linear layer is centred and scaled channel by channel, so that one symmetric scale fits all of
  its channels. LayerNorm in front and the layer itself absorb it; nothing is computed that was not before.
- OPT-m: behind a GELU values get two uniform ranges, one below zero and one above, whose steps differ by 2**m; m and
  the step are searched for the layer's output. All other scales are searched too, weights and activations in turns,
  errors weighed by squared gradients (PTQ4ViT, arXiv 2111.12293).
- Greedy mixed precision: all weights and activations start at 8 bits; one bit at a time is taken where the loss grows
  least for what it saves, until the average is met.

    vitalk compress deit_small_patch16_224 --quant mptq-vit --bits w4a4 --data PATH
    vitalk reproduce mptq-vit

    >>> from vitalk.systems.mptq_vit import average_of, load_bits, mptq_vit, save_bits
    >>> quantized = mptq_vit(model, images, 4, 4)
    >>> mixed = mptq_vit(model, images, average_bits=5)  # bits for each site; average_of(mixed, images[:1]) says 5
    >>> save_bits(mixed, Path("bits.json"))
    >>> again = mptq_vit(model, images, bits=load_bits(Path("bits.json")))
    >>> deployed = mptq_vit(model, images, 8, 8, gelu="uniform", attention="float")  # all of it int8 when exported

Symmetric weights (a scale for each row) and symmetric activations (one a tensor), so all that is uniform runs as int8;
two ranges have no integer operator and are computed in float (``describe.arithmetic``). ``integer=False`` is the
published protocol, which leaves the pictures in float; else they have 8 bits.

Average bits are counted so: weights are half of it, each site by its parameters, activations the other half, each site
by how many numbers go into it. Uniform bits of b are an average of b.

Unconfirmed in the paper's text, and ours: alpha = 0.5; that weights have a scale for each row; the score, growth of the
KL divergence over the share of the average that is saved; that growth is measured with all else at 8 bits
(``measure="exact"`` measures it in the network as it stands); the start at 8 bits. Ours altogether: the fold into the
value rows of qkv in front of the attention's projection (``values=True``; off by default), percentiles in place of the
extremes, gradients of the classes that the network decides for in place of those of a distance from it, a least weight
for outputs that have none, judging by output error only those ratios that are best by squared error. One range behind
GELU is asymmetric. Before the projection behind GELU nothing is centred: nothing there could absorb it.

``fully=True`` rounds LayerNorm and softmax inputs too, to 8 bits with one scale a tensor; FQ-ViT's power-of-two factors
and integer softmax, which the paper takes for that, are not here. No code of the paper is public.

Nothing is trained here. ``recipe.yaml`` (vitalk train mptq-vit) trains the float network that is then quantized.
"""

from .allocate import Step, allocate, average_of, bits_after, descend, load_bits, save_bits, shares_of_items
from .method import lower_bits, mptq_vit, restore

__all__ = [
    "Step",
    "allocate",
    "average_of",
    "bits_after",
    "descend",
    "load_bits",
    "lower_bits",
    "mptq_vit",
    "restore",
    "save_bits",
    "shares_of_items",
]
