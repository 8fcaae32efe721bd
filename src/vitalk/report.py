"""Tables of README and docs, generated from the catalog and from ``results``: ``python -m vitalk.report``.

A table stands between ``<!-- vitalk:NAME -->`` and ``<!-- /vitalk -->``; what is between them is replaced.
"""

import re
from itertools import groupby
from pathlib import Path
from typing import Any

from vitalk import measurement
from vitalk.catalog import STATUSES, SYSTEMS, System, status
from vitalk.errors import UserError
from vitalk.files import write_whole

NOTHING = "Nothing measured yet: `vitalk reproduce SLUG`."
_BLOCK = re.compile(r"(<!-- vitalk:([\w-]+) -->\n).*?(<!-- /vitalk -->)", re.DOTALL)


def fill(text: str) -> str:
    """``text`` with every marked table renewed. Raises UserError for a marker that names no table."""

    def renew(match: re.Match[str]) -> str:
        head, name, tail = match.groups()
        if name not in TABLES:
            raise UserError(f"there is no table {name!r}; the tables are {', '.join(TABLES)}")
        return f"{head}\n{TABLES[name]()}\n\n{tail}"

    return _BLOCK.sub(renew, text)


def systems_table() -> str:
    """How many systems there are of each status, and which."""
    state = {system.slug: status(system) for system in SYSTEMS}
    works, reproduced = (sum(s in kinds for s in state.values()) for kinds in (STATUSES[1:], STATUSES[2:]))
    rows = []
    for shelf, systems in groupby(SYSTEMS, key=lambda system: system.shelf):
        members = list(systems)
        here = [
            _link(s) + (" ✓" if state[s.slug] == "reproduced" else "") for s in members if state[s.slug] != "planned"
        ]
        rows.append([shelf, ", ".join(here), ", ".join(_link(s) for s in members if state[s.slug] == "planned")])
    summary = f"{works} of {len(SYSTEMS)} systems work; {reproduced} of them bear out their paper's claim here (✓)."
    return f"{summary}\n\n{_markdown(['family', 'works', 'planned'], rows)}"


def verdict_table() -> str:
    """Every measured system: the paper's claim, the verdict, and how to repeat it."""
    rows = [[_link(s), m.claim, m.verdict, _repeated(m)] for s, m in _measured()]
    return _markdown(["system", "claim", "verdict", "command"], rows) if rows else NOTHING


def reproduction_sections() -> str:
    """Every measured system: the paper's claim and figure, ours, the verdict, on what and how to repeat it."""
    sections = []
    for system, m in _measured():
        rows = [
            ["claim", m.claim], ["published", m.published], ["measured", m.measured], ["baseline", m.baseline],
            ["data", m.data], ["command", _repeated(m)], ["machine", m.machine],
        ]  # fmt: skip
        sections.append(f"## {_link(system)}: {m.verdict}\n\n{_markdown(['', ''], [row for row in rows if row[1]])}")
    return "\n\n".join(sections) or NOTHING


def accuracy_table(name: str, command: str) -> str:
    """Of ``results/<name>.json``: top-1 by method (a row each) and bits (a column each), percent; float as a note."""
    if (record := measurement.find_record(name)) is None:
        return f"Not measured yet: `{command}`."
    found = {(row["method"], row["bits"]): row["top1"] for row in record["rows"]}
    plain = found.pop(("float", "W32A32"), None)
    methods, bits = (list(dict.fromkeys(key[i] for key in found)) for i in (0, 1))
    rows = [[method, *(_cell("top1", found.get((method, b))) for b in bits)] for method in methods]
    note = f"In float {_cell('top1', plain)}. Measured by `{record['command']}` on {record['machine']}."
    return f"{_markdown(['top-1, %', *bits], rows)}\n\n{note}"


def record_table(name: str, command: str) -> str:
    """The table of ``results/<name>.json``, which ``command`` writes."""
    record = measurement.find_record(name)
    return f"Not measured yet: `{command}`." if record is None else table({"command": command} | record)


def table(record: dict[str, Any]) -> str:
    """A record as Markdown: its ``rows``, or else its own scalar fields; its note; the command and the machine."""
    if "rows" in record:
        keys = list(dict.fromkeys(key for row in record["rows"] for key in row))
        header, rows = (
            [_title(key) for key in keys],
            [[_cell(key, row.get(key)) for key in keys] for row in record["rows"]],
        )
    else:
        scalars = {
            k: v
            for k, v in record.items()
            if k not in ("machine", "command", "note") and not isinstance(v, dict | list)
        }
        header, rows = ["figure", "value"], [[_title(key), _cell(key, value)] for key, value in scalars.items()]
    where = f" on {record['machine']}" if record.get("machine") else ""
    note = f"\n\n{record['note']}" if record.get("note") else ""
    return f"{_markdown(header, rows)}{note}\n\nMeasured by `{record['command']}`{where}."


QUANT = "vitalk bench quant"
QUANT_HYBRID = f"{QUANT} --model runs/q-hyvit-cpu/model.safetensors -o bench_quant_hybrid.json"
TABLES = {
    "systems": systems_table,
    "verdicts": verdict_table,
    "reproductions": reproduction_sections,
    "bench": lambda: record_table("bench_vision", "vitalk bench vision"),
    "bench-backbones": lambda: record_table("bench_backbones", "vitalk bench backbones"),
    "bench-reduce": lambda: record_table("bench_reduce", "vitalk bench reduce"),
    "quant": lambda: accuracy_table("bench_quant", QUANT),
    "quant-hybrid": lambda: accuracy_table("bench_quant_hybrid", QUANT_HYBRID),
    "bench-quant": lambda: record_table("bench_quant", QUANT),
    "bench-quant-hybrid": lambda: record_table("bench_quant_hybrid", QUANT_HYBRID),
    "bench-acoustic": lambda: record_table("bench_acoustic", "vitalk bench acoustic"),
    "bench-serve": lambda: record_table("bench_serve", "vitalk bench serve"),
    "bench-speech": lambda: record_table("bench_speech", "vitalk bench speech"),
    "eye": lambda: record_table("eye", "vitalk train recipes/eye/eye.yaml --preset cpu"),
}


def documents(root: Path) -> list[Path]:
    """The files of a checkout in which tables may stand: README.md, and docs/*.md."""
    return [root / "README.md", *sorted((root / "docs").glob("*.md"))]


def _measured() -> list[tuple[System, measurement.Measurement]]:
    return [(system, m) for system in SYSTEMS if (m := measurement.find(system.slug)) is not None]


def _repeated(m: measurement.Measurement) -> str:
    return f"`{m.command}` ({m.seconds / 60:.0f} min)"


def _link(system: System) -> str:
    return f"[{system.slug}]({system.url})"


UNITS = {  # how large numbers are read: divisor, title
    "parameters": (1e6, "parameters, M"),
    "macs": (1e9, "GMACs"),
    "bytes": (1e6, "MB"),
    "peak_bytes": (1e6, "peak MB"),
    "audio_a_second": (1, "seconds of sound a second"),
    "first_audio_p50": (1e-3, "first audio, median, ms"),
    "first_audio_p95": (1e-3, "first audio, 95 %, ms"),
    "resident_bytes": (1e6, "memory, MB"),
    "wer": (0.01, "WER, %"),
    "dnsmos": (1, "DNSMOS"),
    "hard_errors": (0.01, "hard sentences with any, %"),
    "top1": (1, "top-1, %"),
    "tuned_top1": (1, "tuned top-1, %"),
    "tuned_spread": (1, "spread of seeds"),
    "torch_top1": (1, "top-1 in torch, %"),
    "file_top1": (1, "top-1 of the file, %"),
    "file_bytes": (1e6, "MB of the file"),
    "file_ms": (1, "ms of the file"),
    "drop": (1, "drop, points"),
    "spread": (1, "spread"),
    "calibration_seconds": (1, "calibration, s"),
    "agreement": (1, "same answers, %"),
    "ms_batch1": (1, "ms, batch 1"),
    "ms_batch16": (1, "ms, batch 16"),
}
TITLES = {"rtf": "real-time factor"}


def _title(key: str) -> str:
    return UNITS[key][1] if key in UNITS else TITLES.get(key, key.replace("_", " "))


def _cell(key: str, value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool | str):
        return str(value)
    if key in UNITS:
        return f"{value / UNITS[key][0]:.2f}"
    if not isinstance(value, float):
        return str(value)
    if key.endswith("fraction"):
        return f"{value:.0%}"
    text = f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{text}×" if key.startswith("ratio") else text


def _markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines
    )


def main() -> None:
    """Renew the tables of the checkout's README and docs."""
    root = measurement.checkout()
    if root is None:
        raise SystemExit("vitalk: README and docs are in the checkout; run `make tables` there")
    for path in documents(root):
        write_whole(path, fill(path.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
