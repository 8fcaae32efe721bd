"""VOLO: a fine first stage whose attention weights are read off a token, not compared between tokens.

Yuan et al., "VOLO: Vision Outlooker for Visual Recognition", TPAMI 2022, arXiv 2106.13112.

On a grid of 8 pixels Outlookers mix windows of 3 x 3 tokens: one linear layer turns the token at a window's centre
into the whole 9 x 9 matrix of attention. Transformer blocks follow on a grid of 16 pixels, then two layers in which a
class token looks at all others. It is trained on a label for every token (token labelling, arXiv 2104.10858).

The networks are timm's, ``volo_d1_224`` to ``volo_d5_512``. Here is what timm lacks: the training, official checkpoints
at any size, a network for pictures of 32 pixels and the rivals of outlook attention in its first stage.

    vitalk train volo --data PATH
    vitalk train volo --preset paper --data IMAGENET --data.init_args.label_maps=MAPS

    >>> import timm, vitalk
    >>> small = timm.create_model("volo_mini_32", mixer="outlook")  # or uniform, depthwise, convolution, local

    >>> from vitalk.systems.volo import checkpoint_filter_fn, set_input_size
    >>> from vitalk.vision.checkpoints import load_matching
    >>> model = timm.create_model("volo_d1_384")
    >>> load_matching(model, checkpoint_filter_fn(torch.load("d1_224_84.2.pth.tar"), model))
    >>> set_input_size(model, 448)

    >>> from vitalk.systems.volo import write_label_maps
    >>> write_label_maps(teacher, open_splits("IMAGENET")[0], "maps.safetensors")

``TokenLabelClassifier`` trains any of them: on stored label maps (``TokenLabelImages``), those of the authors or of
``write_label_maps``; on what a teacher says of the training pictures (``teacher``); or on the pictures' labels.
The class logits alone are ``use_aux_head=False``, the official ``return_mean`` is timm's ``post_layers=None,
global_pool="avg", use_aux_head=False``; ``checkpoint_filter_fn`` drops what such a model has not.

The Outlookers have no drop path: as in the official code the rate does not reach them, though they count in the
linear rise of the later blocks' rates. Overlapping windows are summed, not averaged, and the zeros around the map take
part in the border's windows; the weights depend on both.

Differences from the release: crops of label maps are taken in RoIAlign's order of coordinates, which the official
code exchanges; smoothed soft targets sum to one; pictures that do not divide into tokens are refused in training and
by ``set_input_size`` (timm's models drop the rest). timm's ``forward_train`` leaves out the class head;
``dense_logits`` takes its place. D4 and D5 at high resolution were tested with ``crop_pct`` 1.15: timm's transform
then makes the picture smaller than the crop and the border black, which the published figures need.
"""

from .checkpoint import checkpoint_filter_fn, set_input_size
from .data import TokenLabelImages
from .dense import DenseLogits, dense_logits, draw_box, mixed
from .labels import (
    TokenTargets,
    corrected,
    targets_from_labels,
    targets_from_logits,
    targets_from_maps,
    teacher_maps,
    token_label_loss,
)
from .maps import open_label_maps, write_label_maps
from .model import MiniVOLO, volo_mini_32
from .training import TokenLabelClassifier

__all__ = [
    "DenseLogits",
    "MiniVOLO",
    "TokenLabelClassifier",
    "TokenLabelImages",
    "TokenTargets",
    "checkpoint_filter_fn",
    "corrected",
    "dense_logits",
    "draw_box",
    "mixed",
    "open_label_maps",
    "set_input_size",
    "targets_from_labels",
    "targets_from_logits",
    "targets_from_maps",
    "teacher_maps",
    "token_label_loss",
    "volo_mini_32",
    "write_label_maps",
]
