"""DiffRate: how many tokens each block of a trained ViT prunes and merges, learned by gradient in a short search.

Chen et al., "DiffRate: Differentiable Compression Rate for Efficient Vision Transformers", ICCV 2023, arXiv 2305.17997.

In each block the patches are ranked by the attention that the class token pays them; the tail is dropped, and the
next tail merged into the tokens that are most like it. The counts come from a search that trains nothing but a softmax
over candidate counts in each block, with the cross-entropy and the distance from a target of MACs as its loss.

    vitalk train diffrate --data PATH --model.init_args.target=0.75
    vitalk train diffrate --preset finetune --data PATH

The search leaves ``schedule.json``, two numbers a block, beside the compressed model, and ``--preset finetune`` trains
a network on under its schedule. From Python, on any timm ViT or DeiT with a class token, and on CAFormer:

    >>> from vitalk.systems.diffrate import Schedule, diffrate, search
    >>> vit = timm.create_model("deit_small_patch16_224", pretrained=True)
    >>> found = search(vit, pictures, target=0.65)  # or "2.9G"; pictures: batches of (images, labels)
    >>> found.save("schedule.json")
    >>> fast = diffrate(vit, "schedule.json")
    >>> fast = timm.create_model("diffrate_deit_small", schedule=2.9, pretrained=True)  # a published schedule
    >>> fast = timm.create_model("diffrate_timm", base="vitalk_eye", schedule="schedule.json")

``uniform(geometry(vit), 0.65, "prune")`` sets a schedule by hand, the baseline. The state dict is the plain model's;
official checkpoints load, those of a search too (``searchable(vit)``, ``learned``), through ``checkpoint_filter_fn``.

Differences from the release. Sizes: a merged token brings its size times its cosine along; the release clamps sizes to
1 in the search and not in inference, and so do we, but for a floor of 1e-6 where negative cosines would use a size up
and the release would answer NaN. Schedules must fit: counts that exceed the tokens that there are, as some
published ones do, are lowered (``Schedule.settled``) and refused otherwise. A target is a share of the MACs or a number
of GMACs, and the weight of the MACs follows the model's size unless it is given. In the search, dead tokens keep their
places instead of being ranked again. Distillation and register tokens are never ranked and take nothing in. The MACs
of CAFormer count its head as it is, not as 8 C x classes. Models without a class token are refused: ToMe
(``vitalk.vision.merging.tome``) and MCTF serve those.

As released: means are not weighted by size; the first block is not compressed, nor the last of models that pool
patches; in CAFormer the first token in rank takes nothing in, sizes are plain sums, the published schedules leave the
last stage alone, and feature maps are the plain model's.
"""

from .geometry import Geometry, geometry
from .method import PruneAndMerge
from .models import (
    diffrate_caformer_s36,
    diffrate_deit_base,
    diffrate_deit_small,
    diffrate_deit_tiny,
    diffrate_timm,
    diffrate_vit_base_mae,
    diffrate_vit_huge_mae,
    diffrate_vit_large_mae,
)
from .networks import diffrate, expected_macs, learned, searchable
from .proxy import Proxy
from .schedule import Schedule, published, uniform
from .training import RateSearch, search

__all__ = [
    "Geometry",
    "Proxy",
    "PruneAndMerge",
    "RateSearch",
    "Schedule",
    "diffrate",
    "diffrate_caformer_s36",
    "diffrate_deit_base",
    "diffrate_deit_small",
    "diffrate_deit_tiny",
    "diffrate_timm",
    "diffrate_vit_base_mae",
    "diffrate_vit_huge_mae",
    "diffrate_vit_large_mae",
    "expected_macs",
    "geometry",
    "learned",
    "published",
    "search",
    "searchable",
    "uniform",
]
