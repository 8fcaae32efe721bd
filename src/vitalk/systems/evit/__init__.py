"""EViT: keep the patches that the class token attends to, fuse the rest into one token.

Liang et al., "Not All Patches are What You Need", ICLR 2022, arXiv 2202.07800.

In a few blocks the patches are ranked by the attention that the class token pays them; the
leading ``keep_rate`` go on, the others are summed, weighted by that attention, into one token.
It adds no parameters, so any timm ViT that classifies from its class token works off the shelf,
after fine-tuning, or trained from scratch with the keep rate lowered along a cosine.

    vitalk compress deit_small_patch16_224 --tokens evit --keep 0.7 --data PATH
    vitalk train evit --data PATH

    >>> from vitalk.systems.evit import evit
    >>> fast = evit(timm.create_model("deit_small_patch16_224"), keep_rate=0.7)
    >>> fast = timm.create_model("evit_deit_small", keep_rate=0.7, drop_loc=(3, 6, 9))

``set_keep_rate(fast, 0.5)`` changes the rate of the reducing blocks only, and never of a block built with
rate 1; ``evit(vit, tokens=(138, 97, 68))`` names absolute numbers of patches instead, which no rate overrides.
The state dict is the plain model's, so official EViT and DeiT checkpoints load (``Trunk.checkpoint_filter_fn``).

As in the paper, the fused token is an ordinary one afterwards: it competes in later rankings.
Models with prefix tokens beside the class token (distilled DeiT, registers) keep those unranked; the official
code ranks a distillation token by mistake. Attention dropout, where a model has any, does not disturb the ranking
here, and the schedule is a Lightning callback, ``schedule.KeepRateSchedule``. The LV-ViT variant is not built.
"""

from .method import KeepAttentive, evit, keep_rate_at, set_keep_rate
from .models import evit_deit_base, evit_deit_small, evit_deit_tiny

__all__ = [
    "KeepAttentive",
    "evit",
    "evit_deit_base",
    "evit_deit_small",
    "evit_deit_tiny",
    "keep_rate_at",
    "set_keep_rate",
]
