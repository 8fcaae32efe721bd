"""LRP-QViT: layers that a decision rests on get more bits, and outlier channels do not set the scale of all.

Ranjan and Savakis, "LRP-QViT: Mixed-Precision Vision Transformer Quantization via Layer-wise Relevance Propagation",
arXiv 2401.11243. The option ``sensitivity`` is Mix-QViT's, arXiv 2501.06357.

Post-training quantization of a finished ViT, DeiT, Swin or ``Trunk`` with 32 pictures, labelled or not, without
training. The relevance of each picture's class is propagated from its logit down through all layers; the relevance that
a layer's output holds is its contribution score. Bits go where scores are, as long as all weights together, and all
activations, have no more bits than the fixed target would give them: an integer program, solved exactly. Quantization
itself is RepQ-ViT's (arXiv 2212.08254), with the channel scales behind LayerNorms clipped before they are folded.

    vitalk compress deit_small_patch16_224 --quant lrp-qvit --bits w4a4 --data PATH
    vitalk reproduce lrp-qvit

    >>> from vitalk.systems.lrp_qvit import Allocation, allocate, contributions, lrp_qvit, saturation
    >>> quantized = lrp_qvit(model, images, 4, 4, labels)  # about 4 bits, at no more than the cost of 4 everywhere
    >>> fixed = lrp_qvit(model, images, 4, 4, mixed=False)  # 4 bits everywhere: the clipping alone
    >>> weighed = lrp_qvit(model, images, 4, 4, labels, sensitivity=True)  # Mix-QViT: scores times measured losses
    >>> deployed = lrp_qvit(model, images, 4, 4, attention="float")  # to be exported: real int8 products

    >>> found = allocate(model, images, 4, 4, labels, choices=(-2, -1, 0, 1, 2), limit="operations", ends_bits=8)
    >>> found.save(Path("deit.bits.json"))
    >>> again = lrp_qvit(model, images, 4, 4, allocation=Allocation.load(Path("deit.bits.json")))
    >>> scores = contributions(model, images, labels)  # by site; they sum to 1
    >>> worst = {name: float(channels.max()) for name, channels in saturation(quantized, images).items()}

Mixed bits take the memory that they say; no processor multiplies them as such, so exported graphs hold them as codes in
8-bit containers.

The paper leaves open, and these are ours: which percentiles clip ((1, 99)); which bits may be chosen (one more or less
than the target); that magnitudes of relevance count, at the output of a layer, each picture alike; that each kind of
layer weighs the same (``normalize``), and a patch embedding of several convolutions is one unit; that weights and
activations of a layer move together and the second budget is the bits of all activations; that the other layers are
float while one's sensitivity is measured. Constants that are added (biases, position embeddings, Swin's tables and
masks) get no relevance; in the reference implementation the position embedding has its share.

``integer=False`` is the paper's protocol: asymmetric weights and a common zero point that is no whole number; with
clip=(0, 100) and fixed bits it is RepQ-ViT. Nothing is trained here. ``recipe.yaml`` (vitalk train lrp-qvit) trains the
float network that is then quantized.
"""

from .allocation import Allocation
from .clipping import saturation
from .method import allocate, contributions, lrp_qvit

__all__ = ["Allocation", "allocate", "contributions", "lrp_qvit", "saturation"]
