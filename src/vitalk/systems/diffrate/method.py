"""What DiffRate does to the tokens of a block."""

from dataclasses import replace

import torch
from torch import Tensor

from vitalk.errors import UserError
from vitalk.vision.merging import Merge
from vitalk.vision.tokens import Attended, TokenReducer, Tokens, flat, take

from .schedule import Step

FLOOR = 1e-6  # keeps the logarithm finite where negative cosines use a size up; the release answers NaN there


class PruneAndMerge(TokenReducer):
    """Ranks the patches by class attention, drops the tail, and merges the next tail into what is like it.

    arXiv 2305.17997, section 3.2, by the release's inference path. step: the tokens that come in, and that are left.
    prefix: leading tokens that are never ranked and take nothing in.
    Patches come out in descending order of attention, also where all of them stay.
    """

    needs = frozenset({"class_attention"})

    def __init__(self, step: Step, prefix: int = 1):
        super().__init__()
        self.step, self.prefix = step, prefix

    def forward(self, tokens: Tokens, seen: Attended) -> Tokens:
        """[prefix, patches in descending attention], ``step.merged`` in all."""
        check_entering(tokens.features.shape[1], self.step)
        return compress(tokens, seen.class_attention, self.step, self.prefix)[0]

    def extra_repr(self) -> str:
        """What the printed module shows."""
        return f"{self.step.entering} -> {self.step.pruned} -> {self.step.merged}, prefix={self.prefix}"


def compress(tokens: Tokens, score: Tensor, step: Step, prefix: int) -> tuple[Tokens, Merge]:
    """The tokens that ``step`` leaves, and what became of the others.

    score: [batch, tokens], by which patches are ranked; that of the prefix is not looked at. Without a prefix the
    network is hierarchical: the first in rank takes nothing in, and sizes do not shrink by the cosine, as released.
    """
    order = ranked(score, step.pruned, prefix)
    kept, moved = order[:, : step.merged], order[:, step.merged :]
    if step.merged == step.pruned:
        fewer = {name: take(getattr(tokens, name), order) for name in ("features", "size", "source")}
        return replace(tokens, **fewer), Merge(kept, moved, moved)
    features, gone = take(tokens.features, kept), take(tokens.features, moved)
    into, cosine = nearest(gone, features, max(prefix, 1))
    merge = Merge(kept, moved, into)
    size = score.new_ones(score.shape, dtype=torch.float32) if tokens.size is None else tokens.size
    adding = shrunk(take(size, moved), cosine) if prefix else take(size, moved)
    index = flat(into, step.merged)
    size = take(size, kept).flatten().index_add(0, index, adding.flatten()).unflatten(0, kept.shape)
    absorb(features, gone, into)
    if (source := take(tokens.source, kept)) is not None:
        absorb(source, take(tokens.source, moved), into)
    return replace(tokens, features=features, size=size.clamp(min=FLOOR), source=source), merge


def ranked(score: Tensor, count: int, prefix: int) -> Tensor:
    """score [batch, tokens] -> [batch, count]: positions of the prefix, then of the best others, falling."""
    best = prefix + score[:, prefix:].topk(count - prefix, dim=1).indices
    if not prefix:
        return best
    return torch.cat([torch.arange(prefix, device=score.device).expand(score.shape[0], -1), best], 1)


@torch.no_grad()
def nearest(moved: Tensor, kept: Tensor, barred: int) -> tuple[Tensor, Tensor]:
    """For each of ``moved`` [batch, moved, dim] the place of the most similar of ``kept`` [batch, kept, dim].

    barred: leading places that take nothing in. Returns the places and the cosines, both [batch, moved].
    """
    targets = kept[:, barred:]
    # One factor a target decides the place; the source's own would change the cosine alone.
    products = (moved @ targets.transpose(1, 2)).float() / _norm(targets)[:, None]
    best, into = products.max(-1)
    return into + barred, best / _norm(moved)


def absorb(kept: Tensor, moved: Tensor, into: Tensor) -> None:
    """Make each of ``kept`` [batch, kept, dim] the plain mean of itself and those of ``moved`` that go into it.

    In place, and only where something arrives: d + sum (s - d) / (1 + n) for n sources s of a destination d.
    """
    index = flat(into, kept.shape[1])
    together = kept.new_ones(kept.shape[:2]).flatten().index_add(0, index, kept.new_ones(into.shape).flatten())
    shift = (moved - take(kept, into)) / together[index].unflatten(0, into.shape)[..., None]
    kept.flatten(0, 1).index_add_(0, index, shift.flatten(0, 1))


def shrunk(size: Tensor, cosine: Tensor) -> Tensor:
    """The size that a merged token brings along: the less it is like its destination, the less.

    Without the clamp to 1 that the search has: the published accuracies are those of this rule.
    """
    return size * cosine


def check_entering(count: int, step: Step) -> None:
    """Raise UserError where a picture brings another number of tokens than the schedule was made for."""
    if count != step.entering:
        raise UserError(
            f"{count} tokens enter a block whose schedule was made for {step.entering}; give pictures of the model's "
            "own size, or search at this one"
        )


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=-1, dtype=torch.float32).clamp(min=1e-12)
