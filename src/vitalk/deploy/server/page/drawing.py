"""The picture of something said: its waveform, its spectrogram, and its phonemes at their times; without matplotlib.

An SVG, so that the browser's own fonts write the phonemes: no font that ships with Pillow has them.
"""

import base64
import io
import unicodedata
from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

from vitalk.speech.voice import Spoken

SHOWN = 15.0  # seconds that are drawn at most
WIDTH, DENSITY = 690, (240, 320)  # pixels that short ones fit into; the least and the most of them a second
WAVE, BANDS, PHONEMES, AXIS = 90, 200, 30, 20  # pixels of height of each part
TOP = 8000.0  # Hz
WINDOW = 0.025  # seconds
RANGE = 75.0  # dB below the loudest that are drawn
LEVELS = 64  # colours of the spectrogram; few, since each picture is sent as a whole
COLOURS = ((8, 8, 28), (72, 22, 104), (176, 50, 92), (244, 130, 60), (253, 240, 190))  # from quiet to loud
PAPER, INK = LEVELS, LEVELS + 1
STRESS = "ˈˌ"


def draw_speech(parts: Sequence[Spoken]) -> str:
    """The first ``SHOWN`` seconds of utterances that follow each other, of one rate and not empty, as an SVG.

    Those that do not tell the seconds of their symbols are drawn without them.
    """
    rate = parts[0].audio.rate
    samples = np.concatenate([part.audio.samples for part in parts])[: int(SHOWN * rate)]
    seconds = len(samples) / rate
    density = float(np.clip(WIDTH / seconds, *DENSITY))
    columns = max(1, round(seconds * density))
    rows = np.concatenate([waveform(samples, columns), spectrogram(samples, rate, columns)])
    bottom = WAVE + BANDS
    marks, starts = [], np.cumsum([0.0, *(part.audio.seconds for part in parts)])
    for part, start in zip(parts, starts, strict=False):
        marks += [(symbol, start + a, start + b) for symbol, a, b in phonemes(part) if start + b < seconds + 0.01]
    drawn = [
        f'<image width="{columns}" height="{bottom}" href="data:image/png;base64,{_png(rows)}"/>',
        *(_line(edge * density, bottom + PHONEMES - 8) for edge in sorted({t for _, *ends in marks for t in ends})),
        *(_text((a + b) / 2 * density, bottom + 19, symbol, 15) for symbol, a, b in marks if symbol.strip()),
        *(_text(t * density, bottom + PHONEMES + 14, f"{t:g} s", 12) for t in np.arange(0.5, seconds - 0.1, 0.5)),
        *(_hertz(f, rate) for f in (2000, 4000, 6000)),
    ]
    height = bottom + PHONEMES + AXIS
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{columns}" height="{height}"'
        ' font-family="system-ui, DejaVu Sans, sans-serif" text-anchor="middle">'
        f'<rect width="{columns}" height="{height}" fill="white"/>{"".join(drawn)}</svg>'
    )


def phonemes(spoken: Spoken) -> list[tuple[str, float, float]]:
    """(Phoneme, start, end) in seconds; stress goes with what follows, length and other marks with what they mark."""
    if spoken.seconds is None:
        return []
    found: list[tuple[str, float, float]] = []
    ends = np.cumsum(spoken.seconds, dtype=np.float64)
    held, start = "", 0.0
    for symbol, end in zip(spoken.symbols, ends.tolist(), strict=True):
        if symbol in STRESS:
            held += symbol
            continue
        if found and not held and unicodedata.category(symbol) in ("Lm", "Mn", "Sk"):
            before, since, _ = found.pop()
            found.append((before + symbol, since, end))
        else:
            found.append((held + symbol, start, end))
        held, start = "", end
    return found


def waveform(samples: np.ndarray, columns: int) -> np.ndarray:
    """samples [time], at least as many as columns -> colour indices uint8 [WAVE, columns]; the loudest fills it."""
    edges = np.linspace(0, len(samples), columns + 1).astype(int)[:-1]
    unit = samples / max(float(np.abs(samples).max(initial=0)), 1e-6)
    pixel = 1.5 / WAVE  # silence is a line
    high, low = np.maximum.reduceat(unit, edges) + pixel, np.minimum.reduceat(unit, edges) - pixel
    levels = np.linspace(1, -1, WAVE)[:, None]
    return np.where((levels <= high) & (levels >= low), INK, PAPER).astype(np.uint8)


def spectrogram(samples: np.ndarray, rate: int, columns: int) -> np.ndarray:
    """samples [time] at rate Hz -> colour indices uint8 [BANDS, columns] of the power in dB, TOP Hz at the top."""
    window = round(WINDOW * rate)
    points = 1 << (2 * window - 1).bit_length()
    starts = ((np.arange(columns) + 0.5) * len(samples) / columns).astype(int)
    padded = np.pad(samples.astype(np.float32), (window // 2, window))
    frames = sliding_window_view(padded, window)[starts] * np.hanning(window).astype(np.float32)
    power = np.square(np.abs(np.fft.rfft(frames, points)))  # [columns, bins]
    level = 10 * np.log10(power / max(float(power.max()), 1e-12) + 1e-12)
    shades = ((level + RANGE).clip(0) * (255 / RANGE)).astype(np.uint8)
    heard = shades[:, : max(2, int(min(1.0, TOP * 2 / rate) * shades.shape[1]))]
    picture = Image.fromarray(heard.T[::-1].copy()).resize((columns, BANDS), Image.Resampling.BILINEAR)
    return (np.asarray(picture).astype(int) * LEVELS // 256).astype(np.uint8)


def _png(indices: np.ndarray) -> str:
    at = np.linspace(0, 1, LEVELS)
    colours = np.array(COLOURS, float)
    shades = np.stack([np.interp(at, np.linspace(0, 1, len(colours)), channel) for channel in colours.T], 1)
    picture = Image.fromarray(indices).convert("P")
    picture.putpalette([*shades.round().astype(int).ravel().tolist(), 255, 255, 255, 29, 78, 137])
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def _line(x: float, bottom: int) -> str:
    return f'<path d="M{x:.1f} 0V{bottom}" stroke="#888" stroke-opacity=".45"/>'


def _text(x: float, y: float, text: str, size: int) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="#222">{escape(text)}</text>'


def _hertz(frequency: int, rate: int) -> str:
    top = min(TOP, rate / 2)
    if frequency >= top:
        return ""
    y = WAVE + BANDS * (1 - frequency / top)
    return f'<text x="4" y="{y + 4:.0f}" font-size="11" fill="#fff" text-anchor="start">{frequency // 1000} kHz</text>'
