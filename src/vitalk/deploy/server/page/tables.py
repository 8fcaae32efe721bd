"""The tab of measurements: the project's tables, and this server measured now."""

from contextlib import aclosing
from html import escape
from statistics import median
from time import perf_counter

import gradio as gr

from vitalk import measurement, report
from vitalk.speech.voice import RANGES

from ..service import Service
from .common import guarded, notice

TABLES = {
    "bench_speech": "Voices on a CPU",
    "bench_vision": "DeiT-S on a CPU",
    "bench_serve": "This server under load",
    "bench_acoustic": "Acoustic systems after equal training",
    "bench_reduce": "Token reduction on DeiT-S",
    "bench_quant": "Quantization",
    "bench_backbones": "Training steps",
}
SENTENCES = (
    "The quick brown fox jumps over the lazy dog.",
    "A small voice on a plain machine can still be quick.",
    "It is half past nine, and the train leaves in twelve minutes.",
    "She sells sea shells by the sea shore.",
    "What was said here was made on this server, a moment ago.",
)


def measurements_tab(service: Service) -> None:
    """Lay the tab out, within the blocks that are open."""
    gr.Markdown("## This server, now")
    button = gr.Button("Measure here", variant="primary", elem_id="measure")
    notes = gr.HTML(elem_id="measured-notice")
    shown = gr.HTML(elem_id="measured")
    gr.Markdown("## Measured with the project")
    for name, title in TABLES.items():
        if (record := measurement.find_record(name)) is not None:
            told = {"command": f"vitalk {name.replace('_', ' ')}"} | record
            gr.HTML(table(title, report.table(told)), elem_id=name)

    @guarded(service, 1)
    async def measure() -> tuple[str, str]:
        firsts, factors = [], []
        for sentence in SENTENCES:
            start = perf_counter()
            speech = await service.speak(sentence, "", dict.fromkeys(RANGES, 1.0), "en-us")
            firsts.append(perf_counter() - start)
            async with aclosing(speech.parts) as parts:
                seconds = sum([part.audio.seconds async for part in parts])
            factors.append((perf_counter() - start) / seconds)
        rows = [
            ["Real-time factor (synthesis by sound)", f"{median(factors):.4f}"],
            ["Faster than real time", f"{1 / median(factors):.0f} times"],
            ["Time to first audio", f"{1000 * median(firsts):.1f} ms"],
        ]
        title = f"Medians of {len(SENTENCES)} sentences by {service.voices()[0].id} on {measurement.machine()}"
        return notice(f"Measured: real-time factor {median(factors):.4f}."), html_table(
            title, ["Figure", "Value"], rows
        )

    button.click(measure, None, [notes, shown], concurrency_limit=None, api_visibility="private")


def table(title: str, markdown: str) -> str:
    """What ``report.table`` says, as HTML."""
    rows, notes = [], []
    for line in markdown.splitlines():
        if line.startswith("| "):
            rows.append([cell.strip() for cell in line.strip("|").replace("\\|", "\0").split("|")])
        elif line:
            notes.append(f"<p>{escape(line.replace('`', ''))}</p>")
    rows = [[cell.replace("\0", "|") for cell in row] for row in rows]
    return html_table(title, rows[0], rows[2:]) + "".join(notes)


def html_table(title: str, header: list[str], rows: list[list[str]]) -> str:
    """A table whose rows and columns have heads, in a box that scrolls sideways where the page is narrower."""
    heads = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in row[1:])}</tr>'
        for row in rows
    )
    return (
        f'<div class="vt-wide" role="region" tabindex="0" aria-label="{escape(title)}"><table class="vt-table">'
        f"<caption>{escape(title)}</caption><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>"
    )
