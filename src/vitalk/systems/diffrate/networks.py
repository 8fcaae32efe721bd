"""A ViT or CAFormer under a schedule, and one whose proxies are to find it."""

from collections.abc import Sequence
from typing import Literal

import torch
from timm.models.metaformer import MetaFormer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vitalk.errors import UserError
from vitalk.vision.tokens import TokenReducer, Trunk

from .caformer import DiffRateCAFormer, MergeByMass
from .checkpoint import convert
from .geometry import Geometry, geometry
from .method import PruneAndMerge
from .schedule import Schedule, resolve
from .search import BlockRates, MetaBlockRates


class DiffRateTrunk(Trunk):
    """A ViT whose blocks prune and merge by a schedule.

    shape: the network's MACs by token counts. schedule: what the reducers were made for, None for proxies.
    """

    checkpoint_filter_fn = staticmethod(convert)

    def __init__(
        self,
        vit: VisionTransformer,
        reducers: Sequence[TokenReducer],
        shape: Geometry,
        schedule: Schedule | None = None,
    ):
        super().__init__(vit, reducers)
        self.shape, self.schedule = shape, schedule


class SearchTrunk(DiffRateTrunk):
    """A ViT with proxies in its blocks; ``search.Rates`` says what they do in training and in eval mode."""

    def forward(self, images: Tensor) -> Tensor:
        """images [batch, channels, height, width] -> logits [batch, classes].

        Mean pooling weighs the live tokens by their size; their number is a constant to the gradients, as released.
        """
        if not self.training or self.vit.global_pool != "avg":
            return super().forward(images)
        tokens = self.forward_tokens(images)
        weight = tokens.size * tokens.mask
        first = 0 if self.vit.pool_include_prefix else self.num_prefix_tokens
        weight = weight / weight[:, first:].mean(1, keepdim=True).detach()
        return self.forward_head(tokens.features * weight[..., None].to(tokens.features.dtype))

    def train(self, mode: bool = True) -> "SearchTrunk":
        """Training mode for the proxies and drop path; batch norms of a stem keep the statistics that they have."""
        super().train(mode)
        for module in self.vit.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self


def diffrate(
    model: VisionTransformer | MetaFormer, schedule: Schedule | dict | str | float, name: str | None = None
) -> DiffRateTrunk | DiffRateCAFormer:
    """The ``model`` with its tokens pruned and merged by ``schedule``; it keeps its weights and adds none.

    model: a timm ViT or DeiT with a class token, whatever it pools ('token' or 'avg'), or a CAFormer.
    schedule: a ``Schedule``, its fields, or the path of its file. name: of the published schedules that belong to the
    model; with it ``schedule`` may also be GMACs that one was published for, see ``published``.

    A schedule that removes nothing gives back the plain model's logits bit for bit.
    Raises UserError for models of other kinds, and for schedules that do not fit: another depth or picture size,
    counts that grow, blocks that would be left without patches.
    """
    shape = geometry(model)
    schedule = resolve(schedule, name, shape)
    steps = schedule.steps(shape)
    if isinstance(model, MetaFormer):
        return DiffRateCAFormer(model, [MergeByMass(step) for step in steps], shape, schedule)
    idle = all(step.merged == step.entering for step in steps)
    reducers = [TokenReducer() if idle else PruneAndMerge(step, shape.prefix) for step in steps]
    return DiffRateTrunk(model, reducers, shape, schedule)


def searchable(
    model: VisionTransformer | MetaFormer,
    granularity: int = 4,
    kinds: tuple[Literal["prune", "merge"], ...] = ("prune", "merge"),
) -> SearchTrunk | DiffRateCAFormer:
    """The ``model`` with proxies in its blocks, its own weights frozen.

    granularity: step between the candidate counts, in tokens. kinds: ("prune",) or ("merge",) for the paper's
    ablations; hierarchical models merge only. Official checkpoints of a search load, see ``checkpoint.convert``.
    Raises UserError for models of other kinds and a granularity below 1.
    """
    if granularity < 1:
        raise UserError(f"the granularity is a number of tokens, at least 1; got {granularity}")
    shape = geometry(model)
    model.requires_grad_(False)
    make = MetaBlockRates if isinstance(model, MetaFormer) else BlockRates
    kinds = kinds if shape.prunes else ("merge",)
    reducers = [
        make(tokens, shape.prefix, granularity, kinds, block in shape.held)
        for block, tokens in enumerate(shape.entering)
    ]
    kind = DiffRateCAFormer if isinstance(model, MetaFormer) else SearchTrunk
    return kind(model, reducers, shape).train(model.training)


def expected_macs(model: SearchTrunk | DiffRateCAFormer) -> Tensor:
    """GMACs of the counts that the proxies stand for, a scalar with their gradients."""
    prune, merge = _counts(model)
    return model.shape.macs(prune, merge) / 1e9


@torch.no_grad()
def learned(model: SearchTrunk | DiffRateCAFormer, name: str = "", target: float | None = None) -> Schedule:
    """The schedule that the proxies stand for. name, target: what is written down with it, see ``Schedule``."""
    prune, merge = ([round(n.item()) for n in counts] if counts else None for counts in _counts(model))
    fields = {"prune": prune, "merge": merge, "model": name, "target": target, "tokens": model.shape.entering[0]}
    return Schedule.of(fields).settled(model.shape)


def _counts(model: SearchTrunk | DiffRateCAFormer) -> tuple[list[Tensor] | None, list[Tensor] | None]:
    found = ([p.count() for r in model.reducers if (p := getattr(r, kind)) is not None] for kind in ("prune", "merge"))
    prune, merge = (counts or None for counts in found)
    return prune, merge
