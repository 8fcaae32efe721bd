"""What ``vitalk reproduce`` finds out: a paper's claim, the published figure and ours.

Measurements live in ``results/<slug>.json``. In a checkout (an editable install too) that is ``results`` at its
root; elsewhere it is ``results`` in the working directory, and what was measured before the release is read from
the copy that the wheel carries as ``vitalk/results``.
"""

import json
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from vitalk.errors import UserError
from vitalk.files import write_whole

Verdict = Literal["reproduced", "direction only", "not reproduced"]


@dataclass
class Measurement:
    """A claim of a paper against what we get.

    claim: in one sentence. published, measured, baseline: figures with units; baseline is what ours is compared
    with, measured the same way. verdict: "direction only" where the sign agrees but not the size. data: what it
    was measured on. details: whatever else is worth keeping, JSON values or scalars. command, seconds, machine:
    how to repeat it, how long it took and where; ``vitalk reproduce`` fills them in.
    Raises ValueError for a verdict that is none of the three.
    """

    claim: str
    published: str
    measured: str
    baseline: str
    verdict: Verdict
    data: str
    details: dict[str, Any]
    command: str = ""
    seconds: float = 0.0
    machine: str = ""

    def __post_init__(self) -> None:
        if self.verdict not in get_args(Verdict):
            raise ValueError(f"verdict must be one of {', '.join(get_args(Verdict))}, got {self.verdict!r}")

    def summary(self) -> str:
        """Claim, figures and verdict, one a line, for a terminal."""
        fields = ("claim", "published", "measured", "baseline", "verdict", "data", "machine")
        return "\n".join(f"{name:<10} {getattr(self, name)}" for name in fields if getattr(self, name))

    def save(self, path: Path) -> Path:
        """Write it as JSON; the file at ``path`` is replaced whole or left as it was."""
        # Scalars of numpy and torch are no JSON, but they turn into floats.
        text = json.dumps(asdict(self), indent=2, ensure_ascii=False, default=float)
        return write_whole(path, text + "\n")

    @classmethod
    def load(cls, path: Path) -> "Measurement":
        """Read what ``save`` wrote. Raises UserError where the file holds anything else."""
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise UserError(f"{path} is not a measurement ({error}); remove it or measure again") from None


def checkout() -> Path | None:
    """The root of the checkout that this code runs from; None where it was installed."""
    root = Path(__file__).resolve().parents[2]
    return root if (root / "pyproject.toml").is_file() and (root / "src" / "vitalk").is_dir() else None


def results_dir() -> Path:
    """Where measurements are written: ``results`` in the checkout, else in the working directory."""
    return (checkout() or Path.cwd()) / "results"


def find(slug: str) -> Measurement | None:
    """The measurement of a system: the user's own, else the one that ships with the package, else None."""
    return None if (path := _kept(slug)) is None else Measurement.load(path)


def find_record(name: str) -> dict[str, Any] | None:
    """What a bench wrote under this name: the user's own, else the one that ships with the package, else None."""
    return None if (path := _kept(name)) is None else json.loads(path.read_text(encoding="utf-8"))


def _kept(name: str) -> Path | None:
    folders = (results_dir(), Path(__file__).parent / "results")
    return next((path for folder in folders if (path := folder / f"{name}.json").is_file()), None)


def machine() -> str:
    """This machine in one line: processor, cores, memory and the versions that decide about speed."""
    from importlib.metadata import PackageNotFoundError, version

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parts = [_processor(), f"{cores} core" + "s" * (cores != 1)]
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        parts.append(f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB")
    parts.append(f"Python {platform.python_version()}")
    for package in ("torch", "onnxruntime"):
        try:
            parts.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(parts)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()
