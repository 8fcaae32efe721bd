"""AdaLog: a logarithm whose base is searched, and scales, zero points and bases found together, layer by layer.

Wu et al., "AdaLog: Post-Training Quantization for Vision Transformers with Adaptive Logarithm Quantizer", ECCV 2024,
arXiv 2407.12951.

Post-training quantization of a finished ViT, DeiT, Swin or ``Trunk`` with 32 unlabelled pictures. Attention
probabilities, and what comes out of a GELU, get powers of 2 ** (-base / 37), each layer with a base of its own; a shift
and a table of few whole mantissas decode them. Every layer is calibrated by itself, in a network that is float
otherwise: FPCS, a beam search over pairs of scale and zero point (or base), looks for the least error of the layer's
output, for weights and activations in turns. Inputs behind a LayerNorm are searched channel by channel and folded into
it as RepQ-ViT does, with a whole zero point. The shift that GELU's negative values need ends up in the next bias.

    vitalk compress deit_small_patch16_224 --quant adalog --bits w4a4 --data PATH
    vitalk reproduce adalog

    >>> from vitalk.systems.adalog import PAPER, adalog, restore
    >>> quantized = adalog(model, images, 4, 4, integer=False)  # the paper's protocol
    >>> quantized = adalog(model, images, 3, 3, integer=False, search=PAPER, reconstruct_steps=20_000,
    ...                    reconstruct_images=more)  # with its effort, and block reconstruction
    >>> quantized = adalog(model, images, 8, 8, attention="float")  # to be exported: fastest as real int8
    >>> safetensors.torch.save_file(quantized.state_dict(), "deit.w8a8.safetensors")
    >>> again = restore(model, safetensors.torch.load_file("deit.w8a8.safetensors"), image, 8, 8, attention="float")

``integer=False`` is the paper's protocol: asymmetric weights, and a scale for each head in attention products. The
default is made to run: symmetric weights, one scale for all heads. No runtime multiplies logarithms, so a layer behind
an adaptive logarithm is simulated in float in an exported file; with ``attention="float"`` GELU's outputs are therefore
quantized evenly unless ``gelu`` says otherwise, and every linear layer is int8.

``reconstruct_steps`` adds the paper's reconstruction: block by block the rounding of each weight (AdaRound) and the
activations' scales are learnt against the float block, the logits by their KL divergence.

Differences. The default search is a tenth of the official code's (``PAPER``), and layers are judged by a sample of
tokens, products by some pictures. Survivors of the beam stay candidates, and so does what earlier rounds found, so no
step worsens. Zero points are tried around the one that the range asks for instead of around half of the codes, with
which one-sided values lost a bit; those of channels may lie outside the codes before the fold. log2 and log-sqrt2
behind a GELU search their scale for themselves (the official code takes AdaLog's). Reconstruction has both learning
rates on a cosine, and larger ones where there are fewer than 20000 steps; a unit that gains nothing returns to what it
was. Layers behind LayerNorm and GELU are found by data flow instead of by name, so other architectures work; where
padding would meet the shift, it is not folded. All weights, patch embedding and head too, have ``weight_bits``;
pictures always have 8 bits (in the official code none).

Bases stop at 10, as in the paper: above 5 bits a logarithm gets no finer, and ``attention="uniform"`` is nearer to
float.

Nothing is trained from scratch here. ``recipe.yaml`` (vitalk train adalog) trains the float network.
"""

from vitalk.nn.quant import parse_bits

from .method import Kind, adalog, restore
from .search import PAPER, Search

__all__ = ["PAPER", "Kind", "Search", "adalog", "parse_bits", "restore"]
