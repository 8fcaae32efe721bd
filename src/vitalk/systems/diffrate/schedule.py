"""Compression schedules: how many tokens each block keeps, as numbers that are kept in a small file."""

import json
from dataclasses import asdict, dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Literal, Self

from vitalk.errors import UserError
from vitalk.files import write_whole

from .geometry import Geometry

Kind = Literal["both", "prune", "merge"]
LEAST = 1  # patches that a block must leave


@dataclass(frozen=True)
class Step:
    """One block of a schedule: tokens that enter it, that pruning leaves, and that merging leaves of these."""

    entering: int
    pruned: int
    merged: int


@dataclass(frozen=True)
class Schedule:
    """Tokens that each block keeps when it has pruned, and when it has merged, prefix tokens among them.

    prune, merge: one number a block; None where nothing is pruned, or merged, at all.
    model: the name of the network it was found for. target: what was aimed at, GMACs a picture.
    tokens: those that entered the first block then; None where they are not known.

    Raises UserError for lists that are empty, of two lengths or hold anything but whole numbers above 0.
    """

    prune: tuple[int, ...] | None
    merge: tuple[int, ...] | None
    model: str = ""
    target: float | None = None
    tokens: int | None = None

    def __post_init__(self) -> None:
        for name in ("prune", "merge"):
            if (counts := getattr(self, name)) is not None:
                whole = isinstance(counts, tuple) and all(type(n) is int and n > 0 for n in counts)
                if not whole or not counts:
                    raise UserError(f"{name} must be whole numbers above 0, one a block; got {str(counts)[:60]}")
        if self.prune is None and self.merge is None:
            raise UserError("a schedule needs the tokens kept by pruning, by merging, or both; it has neither")
        if self.prune and self.merge and len(self.prune) != len(self.merge):
            raise UserError(f"the schedule prunes in {len(self.prune)} blocks and merges in {len(self.merge)}")

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.merge or self.prune or ())

    def steps(self, shape: Geometry) -> list[Step]:
        """What each block does. Raises UserError for a schedule that does not fit: depth, growth, too few tokens."""
        self._check_size(shape)
        if self.prune is not None and not shape.prunes:
            raise UserError("a hierarchical model needs all positions again, so its tokens are merged only: prune=None")
        steps, tokens = [], 0
        for block in range(self.depth):
            tokens = shape.starts.get(block, tokens)
            pruned = tokens if self.prune is None else self.prune[block]
            merged = pruned if self.merge is None else self.merge[block]
            for kept, there, what in ((pruned, tokens, "pruning"), (merged, pruned, "merging")):
                if kept > there:
                    raise UserError(
                        f"{what} in block {block} is to keep {kept} of {there} tokens; a schedule never grows "
                        "(Schedule.settled lowers the raw counts of the release)"
                    )
            if merged < (least := shape.barred + LEAST):
                raise UserError(f"block {block} would be left with {merged} tokens; keep {least} or more")
            steps.append(Step(tokens, pruned, merged))
            tokens = merged
        return steps

    def settled(self, shape: Geometry) -> Self:
        """The schedule with what exceeds the tokens that there are lowered to these, which changes nothing.

        The counts of a search, and the published ones, are wishes: a block that wants more tokens than enter it keeps
        them all.
        """
        self._check_size(shape)
        prune, merge, tokens = [], [], 0
        for block in range(self.depth):
            tokens = shape.starts.get(block, tokens)
            for counts, kept in ((self.prune, prune), (self.merge, merge)):
                tokens = tokens if counts is None else min(tokens, counts[block])
                kept.append(tokens)
        return replace(
            self,
            prune=None if self.prune is None else tuple(prune),
            merge=None if self.merge is None else tuple(merge),
        )

    def macs(self, shape: Geometry) -> float:
        """Multiply-accumulates a picture."""
        return float(shape.macs(self.prune, self.merge))

    def save(self, path: str | Path) -> Path:
        """Write it as JSON, whole or not at all."""
        return write_whole(Path(path), json.dumps(asdict(self)) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what ``save`` wrote. Raises UserError where the file is missing or holds anything else."""
        try:
            return cls.of(json.loads(Path(path).read_text()))
        except OSError as error:
            raise UserError(f"there is no schedule at {path} ({error.strerror}); search for one") from None
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is not a schedule ({error}); search for one again") from None

    @classmethod
    def of(cls, given: dict) -> Self:
        """A schedule from its fields, such as those of a file or a recipe."""
        counts = {key: given.get(key) for key in ("prune", "merge")}
        counts = {key: tuple(n) if isinstance(n, list) else n for key, n in counts.items()}
        if unknown := set(given) - {"prune", "merge", "model", "target", "tokens"}:
            raise UserError(
                f"a schedule has no {', '.join(sorted(unknown))}; it has prune, merge, model, target, tokens"
            )
        return cls(**counts, **{key: given[key] for key in ("model", "target", "tokens") if key in given})

    def _check_size(self, shape: Geometry) -> None:
        if self.depth != shape.depth:
            raise UserError(f"the schedule is for {self.depth} blocks, the model has {shape.depth} that reduce")
        if self.tokens not in (None, shape.entering[0]):
            raise UserError(
                f"the schedule was found for {self.tokens} tokens, the model has {shape.entering[0]}; search again"
            )


def published(name: str, target: str | float) -> Schedule:
    """The raw counts that the authors found for ``target`` GMACs (compression_rate.json of the release).

    name: deit_tiny, deit_small, deit_base, vit_base_mae, vit_large_mae, vit_huge_mae or caformer_s36.
    Raises UserError for targets that none was published for.
    """
    known = json.loads(resources.files(__package__).joinpath("published.json").read_text())[name]
    try:
        counts = known[str(float(target))]
    except (KeyError, ValueError):
        raise UserError(
            f"no schedule of {target} GMACs was published for {name}; there are {', '.join(known)}"
        ) from None
    tokens = (counts["prune"] or counts["merge"])[0]
    return Schedule.of({**counts, "model": name, "target": float(target), "tokens": tokens})


def uniform(shape: Geometry, target: str | float, kind: Kind = "both") -> Schedule:
    """A schedule set by hand: every block that a search may touch keeps the same share of its patches.

    The share is the one whose MACs come closest to ``target`` (see ``gmacs``). kind: what reduces, "prune" (as EViT
    does, without its fused token), "merge" (a constant rate, where ToMe has a constant number) or half of each.
    """
    wanted, low, high = 1e9 * gmacs(shape, target), 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if constant(shape, middle, kind).macs(shape) > wanted else (middle, high)
    found = min((constant(shape, share, kind) for share in (low, high)), key=lambda s: abs(s.macs(shape) - wanted))
    return replace(found, target=wanted / 1e9)


def constant(shape: Geometry, share: float, kind: Kind = "both") -> Schedule:
    """The schedule whose free blocks keep ``share`` of the patches that enter them, at least one."""
    prune, merge, tokens = [], [], 0
    least = shape.barred - shape.prefix + LEAST
    for block in range(shape.depth):
        tokens = shape.starts.get(block, tokens)
        patches = tokens - shape.prefix
        left = patches if block in shape.held else max(round(share * patches), min(least, patches))
        dropped = {"prune": patches - left, "merge": 0, "both": (patches - left) // 2}[kind]
        prune.append(tokens - dropped)
        tokens = shape.prefix + left
        merge.append(tokens)
    merges, prunes = kind != "prune", kind != "merge" and shape.prunes
    if not merges and not prunes:
        raise UserError("a hierarchical model needs all positions again, so its tokens are merged only")
    return Schedule(tuple(prune) if prunes else None, tuple(merge) if merges else None, tokens=shape.entering[0])


def gmacs(shape: Geometry, target: str | float) -> float:
    """GMACs of a target: a share of the full model's in (0, 1], or a number of GMACs, written "2.9G".

    Raises UserError for shares outside (0, 1], for more than the full model has, and for less than can be reached.
    """
    text = str(target).strip()
    try:
        value = float(text.removesuffix("G"))
    except ValueError:
        raise UserError(
            f"{target!r} is no target; give a share of the MACs such as 0.65, or GMACs such as 2.9G"
        ) from None
    if not text.endswith("G"):
        if not 0 < value <= 1:
            raise UserError(f"a share of the MACs must be in (0, 1], got {target}; write {target}G to mean GMACs")
        value *= shape.full / 1e9
    if not shape.least <= 1e9 * value <= shape.full * (1 + 1e-9):
        raise UserError(
            f"{value:.3g} GMACs cannot be reached: the model has {shape.full / 1e9:.3g}, and {shape.least / 1e9:.3g} "
            "with one patch left"
        )
    return value


def resolve(given: Schedule | dict | str | float, name: str | None, shape: Geometry) -> Schedule:
    """A schedule that fits ``shape``.

    given: a ``Schedule``, its fields, the path of its file, or GMACs that one was published for under ``name``
    (see ``published``).
    """
    if isinstance(given, (str, float, int)):
        if not str(given).endswith(".json"):
            if name is None:
                raise UserError(
                    f"{given} is no schedule file; published ones belong to models such as diffrate_deit_small"
                )
            return published(name, given).settled(shape)
        given = Schedule.load(given)
    return given if isinstance(given, Schedule) else Schedule.of(given)
