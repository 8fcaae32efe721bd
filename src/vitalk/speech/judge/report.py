"""What the judges found: rows, means with intervals, tables, files."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vitalk.files import staging

from .recordings import Recording

METRICS = {  # column -> (title, unit, factor, digits)
    "wer": ("WER, mean of utterances", "%", 100, 2),
    "cer": ("CER, mean of utterances", "%", 100, 2),
    "similarity": ("speaker similarity", "", 1, 3),
    "ovrl": ("DNSMOS overall", "", 1, 2),
    "sig": ("DNSMOS voice", "", 1, 2),
    "bak": ("DNSMOS background", "", 1, 2),
    "p808": ("DNSMOS P.808", "", 1, 2),
    "f0_rmse_hz": ("F0 RMSE", "Hz", 1, 1),
    "f0_rmse_cents": ("F0 RMSE", "cents", 1, 0),
    "voicing_error": ("voicing error", "%", 100, 1),
    "mcd_db": ("mel-cepstral distortion", "dB", 1, 2),
    "energy_mae_db": ("energy MAE", "dB", 1, 2),
    "tempo": ("length by reference", "", 1, 2),
    "seconds": ("length", "s", 1, 2),
    "rtf": ("real-time factor", "", 1, 3),
    "first_audio": ("time to first audio", "s", 1, 3),
}
POOLED = {  # name -> (title, numerator, denominator): all errors by all words, shown in percent
    "wer_pooled": ("WER, all words", ("substitutions", "deletions", "insertions"), "words"),
    "cer_pooled": ("CER, all characters", ("wrong_characters",), "characters"),
}
DRAWS = 2000


class Interval(NamedTuple):
    """A mean, its 95 % bootstrap interval (nan for a single utterance, which shows nothing) and how many it is of."""

    mean: float
    low: float
    high: float
    count: int


def bootstrap(values: Sequence[float], weights: Sequence[float] | None = None, draws: int = DRAWS) -> Interval:
    """Mean of ``values`` [utterances] with its 95 % percentile interval over resampled utterances (seed 0).

    weights: denominators, for a rate of sums: values are then numerators. Values that are nan are left out.
    """
    top = np.asarray(values, np.float64)
    bottom = np.ones_like(top) if weights is None else np.asarray(weights, np.float64)
    known = np.isfinite(top)
    top, bottom = top[known], bottom[known]
    if not (n := len(top)):
        return Interval(*3 * (math.nan,), 0)
    mean = top.sum() / bottom.sum()
    if n == 1:
        return Interval(float(mean), math.nan, math.nan, 1)
    counts = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=draws)
    low, high = np.percentile((counts @ top) / (counts @ bottom), [2.5, 97.5])
    return Interval(float(mean), float(low), float(high), n)


@dataclass
class Report:
    """settings: how it was judged. rows: what was found, one dict an utterance. notes: what was left out, and why.

    recordings: those of the rows, for the plots. rivals: the speakers are voices that are compared on the same texts,
    so that they stand side by side and nothing is averaged over them.
    """

    settings: dict[str, Any]
    rows: list[dict[str, Any]]
    notes: list[str]
    recordings: list[Recording] = field(repr=False)
    rivals: bool = False

    @property
    def means(self) -> dict[str, Interval]:
        """Every metric that some row has, over all its utterances; "wer_pooled" and "cer_pooled" are rates of sums.

        Rates are fractions, units are those of ``METRICS`` without its factor. Empty for rivals, see ``by_speaker``.
        """
        return {} if self.rivals else self._means(self.rows)

    def by_speaker(self) -> dict[str, dict[str, Interval]]:
        """``means`` for each speaker that the recordings name; empty where they name fewer than two.

        By name, rivals in the order of their recordings.
        """
        names = list(dict.fromkeys(row["speaker"] for row in self.rows if row["speaker"]))
        names = names if self.rivals else sorted(names)
        groups = {name: [row for row in self.rows if row["speaker"] == name] for name in names}
        return {name: self._means(rows) for name, rows in groups.items()} if len(names) > 1 else {}

    def worst(self, count: int) -> list[int]:
        """Indices of the rows with the highest WER, highest first; in order where nobody listened to the words."""
        return sorted(range(len(self.rows)), key=lambda i: -self.rows[i].get("wer", 0.0))[:count]

    def header(self) -> list[str]:
        """What stands above the columns of ``table``."""
        return ["", *(self.by_speaker() if self.rivals else ("mean", "95 % interval", "utterances"))]

    def table(self) -> list[tuple[str, ...]]:
        """(metric, mean, 95 % interval, utterances) as text, one for each of ``means``.

        Of rivals (metric, mean and interval of each).
        """
        return _side_by_side(self.by_speaker()) if self.rivals else _lines(self.means)

    def markdown(self) -> str:
        """The report for readers: settings, means, means by speaker, the utterances with most errors, notes."""
        parts = ["# Speech evaluation", "; ".join(f"{k}: {_text(v)}" for k, v in self.settings.items())]
        parts.append(_markdown(self.header(), self.table()))
        if not self.rivals and (groups := self.by_speaker()):
            shared = [key for key in self.means if all(key in means for means in groups.values())]
            titles = [f"{title} {unit}".strip() for title, unit, *_ in map(_described, shared)]
            lines = [[name, *(_number(key, means[key].mean) for key in shared)] for name, means in groups.items()]
            parts += ["## By speaker", _markdown(["", *titles], lines)]
        wrong = [self.rows[i] for i in self.worst(10) if self.rows[i].get("wer")]
        if wrong:
            lines = [[row["name"], f"{100 * row['wer']:.0f}", row["text"], row["heard"]] for row in wrong]
            parts += ["## Most errors", _markdown(["", "WER %", "text", "heard"], lines)]
        if self.notes:
            parts += ["## Left out", "\n".join(f"- {note}" for note in self.notes)]
        return "\n\n".join(parts) + "\n"

    def json(self) -> str:
        """The report for programs: settings, means {mean, low, high, count}, by_speaker, rows, notes; no nan."""
        found = {
            "settings": self.settings,
            "means": {key: value._asdict() for key, value in self.means.items()},
            "by_speaker": {
                name: {key: value._asdict() for key, value in means.items()}
                for name, means in self.by_speaker().items()
            },
            "rows": self.rows,
            "notes": self.notes,
        }
        return json.dumps(_plain(found), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def save(self, folder: str | Path, plots: int = 0) -> list[str]:
        """Write report.json, report.md and, of the ``plots`` utterances with most errors, pictures; their names.

        Files appear when all are written, or none does. Raises UserError where the folder cannot be written to.
        """
        with staging(Path(folder)) as partial:
            return self.write(partial, plots)

    def write(self, folder: Path, plots: int = 0) -> list[str]:
        """``save`` into a folder that is there, file by file."""
        (folder / "report.json").write_text(self.json(), encoding="utf-8")
        (folder / "report.md").write_text(self.markdown(), encoding="utf-8")
        pictures = []
        if plots:
            from .plots import draw

            for rank, index in enumerate(self.worst(plots), 1):
                name = f"{rank:02d}_{file_name(self.rows[index]['name'])}.png"
                pictures.append(draw(self.recordings[index], folder / name).name)
        return [*pictures, "report.json", "report.md"]

    @staticmethod
    def _means(rows: list[dict[str, Any]]) -> dict[str, Interval]:
        found = {}
        for name, (_, errors, denominator) in POOLED.items():
            heard = [row for row in rows if "wer" in row]
            wrong = [sum(row[error] for error in errors) for row in heard]
            found[name] = bootstrap(wrong, [row[denominator] for row in heard])
        for key in METRICS:
            found[key] = bootstrap([row.get(key, math.nan) for row in rows])
        return {key: value for key, value in found.items() if value.count}


def _described(key: str) -> tuple[str, str, float, int]:
    return (POOLED[key][0], "%", 100, 2) if key in POOLED else METRICS[key]


def _number(key: str, value: float) -> str:
    *_, factor, digits = _described(key)
    return f"{factor * value:.{digits}f}" if math.isfinite(value) else "–"


def _lines(means: dict[str, Interval]) -> list[tuple[str, str, str, str]]:
    lines = []
    for key, found in means.items():
        title, unit, *_ = _described(key)
        span = f"{_number(key, found.low)} to {_number(key, found.high)}" if found.count > 1 else "–"
        lines.append((title, f"{_number(key, found.mean)} {unit}".strip(), span, str(found.count)))
    return lines


def _side_by_side(groups: dict[str, dict[str, Interval]]) -> list[tuple[str, ...]]:
    lines = []
    for key in dict.fromkeys(key for means in groups.values() for key in means):
        title, unit, *_ = _described(key)
        lines.append((f"{title}, {unit}".strip(", "), *(_with_span(key, means.get(key)) for means in groups.values())))
    return lines


def _with_span(key: str, found: Interval | None) -> str:
    if found is None:
        return "–"
    span = f" ({_number(key, found.low)} to {_number(key, found.high)})" if found.count > 1 else ""
    return _number(key, found.mean) + span


def _markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    cells = ([cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows)
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def _text(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list) else str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def file_name(name: str) -> str:
    """``name`` with nothing that a file system could object to."""
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in name)[:80]
