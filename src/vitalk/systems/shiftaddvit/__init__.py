"""ShiftAddViT: a trained ViT whose products are additions and shifts, with multipliers for the tokens that need them.

You et al., "ShiftAddViT: Mixture of Multiplication Primitives Towards Efficient Vision Transformer", NeurIPS 2023,
arXiv 2306.06446.

Queries and keys become binary codes, so both products of (linear) attention are sums of rows; the weights of linear
layers become signs and powers of two, so a product is a shift; or a linear layer becomes a mixture of both kinds, whose
router sends each token to the multiplier or to the shifts, balanced by their latencies. Nothing is trained from
scratch: three stages of fine-tuning, each from the last.

    vitalk train shiftaddvit --preset paper --data IMAGENET     (then paper2, paper3; or cpu, cpu2, cpu3)
    vitalk reproduce shiftaddvit

    >>> from vitalk.systems.shiftaddvit import shiftadd, fit_hashing, integer, model_energy, kernel_costs
    >>> vit = timm.create_model("deit_tiny_patch16_224", pretrained=True)
    >>> cheap = shiftadd(vit, attention="binary", linears=("shift", "moe"))     # attention's linears, the MLPs'
    >>> cheap = shiftadd(shiftadd(vit, "hash", "mult"), "keep", "moe")          # stage by stage
    >>> net = timm.create_model("shiftadd_pvt_v2_b0", attention="hash", linears="moe")
    >>> net.load_state_dict(net.checkpoint_filter_fn(torch.load("official.pth"), net))
    >>> fit_hashing(net, images)              # or train a step
    >>> fast = integer(net)                   # the kernels at work, on the CPU
    >>> model_energy(net, images, bits=8)     # mJ a picture by operation
    >>> kernel_costs()                        # seconds, pJ and bytes beside float32 and int8

Any plain timm ViT or DeiT and PVTv2-B0 to B5 convert. Attention: "msa" (PVTv2 without its spatial reduction),
"linear" (real codes), "binary", "hash"; linears: "shift" (DeepShift-PS), "shift-q", "sp2", "moe". In PVTv2's last
stage attention stays softmax and its projections dense. The exported ONNX file holds the simulated form in float32,
with any batch size; of a mixture both experts are computed there for all tokens, and the router's choice selects.

What a CPU gains: nothing in time. ``integer`` runs MatShift and MatAdd as C++ (compiled once into the user's cache,
else numpy with the same integers). By ``kernel_costs`` on one thread of a server processor MatShift takes twice as long
as a dense float32 product, its exact form three to four times and int8 a fifth, since a vector unit multiplies and adds
in one instruction and shifts, negates and adds in three. MatAdd takes as long as float32 or up to a quarter more, and
a sixth less where there are thousands of rows. Weights take a byte each. The paper's speed needs its GPU kernels or an
accelerator; the linear attention itself is what is faster here with thousands of tokens.

Ours, where paper and release differ or say nothing: binary codes are compared with each picture's own mean
(``statistics="batch"`` is the release's, whose answers depend on the batch); outputs of mixtures are weighted by the
router's probability and the balance is in the loss (the release's router gets neither, its combine adds log p;
``weighted=False`` gives the net of its default gate); the load estimator compares logits with logits; hashing is
fitted in the first training step or by ``fit_hashing``, and stored with a flag; all-zero rows of attention stay zero
instead of becoming NaN; energies count accumulations. The sparse softmax branch acts in training only (with hashing it
cannot run in the release; here the shared projection is queries and keys). The convolution over values runs along the
tokens as they lie, class token first, and starts at zero. Balance losses of all mixtures are summed. PVTv1 and GNT
(novel views) are not built: timm has neither.
"""

from .attention import AngularAttention, BinaryCodes, Mix
from .checkpoint import checkpoint_filter_fn
from .convert import shiftadd
from .costs import KernelCost, kernel_costs
from .energy import model_energy, operation_energy, product_energy
from .experts import MoELinear, balance, collecting, dispatch, multiplier_share, scv, smooth_load
from .hashing import KernelHash, fit_hashing
from .integer import IntegerLinear, IntegerMix, integer
from .kernels import matadd, matshift, pack_codes, pack_shifts
from .models import shiftadd_deit_tiny, shiftadd_pvt_v2_b0, shiftadd_pvt_v2_b1, shiftadd_pvt_v2_b2
from .shift import ShiftLinear, ShiftLinearQ, ShiftLinearSP2, fixed
from .training import ShiftAddClassifier

__all__ = [
    "AngularAttention",
    "BinaryCodes",
    "IntegerLinear",
    "IntegerMix",
    "KernelCost",
    "KernelHash",
    "Mix",
    "MoELinear",
    "ShiftAddClassifier",
    "ShiftLinear",
    "ShiftLinearQ",
    "ShiftLinearSP2",
    "balance",
    "checkpoint_filter_fn",
    "collecting",
    "dispatch",
    "fit_hashing",
    "fixed",
    "integer",
    "kernel_costs",
    "matadd",
    "matshift",
    "model_energy",
    "multiplier_share",
    "operation_energy",
    "pack_codes",
    "pack_shifts",
    "product_energy",
    "scv",
    "shiftadd",
    "shiftadd_deit_tiny",
    "shiftadd_pvt_v2_b0",
    "shiftadd_pvt_v2_b1",
    "shiftadd_pvt_v2_b2",
    "smooth_load",
]
