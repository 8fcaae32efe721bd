"""The parts of the page, without a browser."""

import asyncio
import base64
import io
import os
import re
import xml.etree.ElementTree as ET
from itertools import pairwise
from urllib.parse import quote

import gradio as gr
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.testclient import TestClient

from vitalk import report
from vitalk.deploy.server.guards import Gate
from vitalk.deploy.server.page import tokens
from vitalk.deploy.server.page.common import figure, guarded, notice, told
from vitalk.deploy.server.page.doors import Doors, sweep
from vitalk.deploy.server.page.drawing import BANDS, SHOWN, WAVE, draw_speech, phonemes, spectrogram, waveform
from vitalk.deploy.server.page.tables import TABLES, table
from vitalk.deploy.server.page.tokens import counts, reduction
from vitalk.deploy.server.page.uploads import Uploads
from vitalk.deploy.server.workers import Late, Lost
from vitalk.errors import UserError
from vitalk.measurement import find_record
from vitalk.speech.audio import Audio
from vitalk.speech.voice import Spoken

RATE = 24_000
SVG = "{http://www.w3.org/2000/svg}"


def said(symbols="həlˈoʊ", seconds=None, length=1.2):
    samples = np.sin(2 * np.pi * 1000 * np.arange(int(length * RATE)) / RATE).astype(np.float32)
    each = None if seconds is None else np.full(len(symbols), seconds, np.float32)
    return Spoken("hello", Audio(samples, RATE), list(symbols), each)


def drawn(svg):
    return ET.fromstring(svg)


def pixels(svg):
    data = drawn(svg).find(f"{SVG}image").get("href").partition(",")[2]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")).astype(int)


def test_stress_and_length_are_one_with_their_phoneme():
    found = phonemes(said(" tˈɑːn ", 0.1))
    assert [symbol for symbol, _, _ in found] == [" ", "t", "ˈɑː", "n", " "]
    assert found[2][1:] == pytest.approx((0.2, 0.5), abs=1e-6)


def test_phonemes_are_written_at_their_times():
    svg = draw_speech([said("ab", 0.6), said("cd", 0.6)])
    width = int(drawn(svg).get("width"))
    at = {t.text: float(t.get("x")) / width for t in drawn(svg).findall(f"{SVG}text") if len(t.text) == 1}
    assert at == pytest.approx({"a": 0.125, "b": 0.375, "c": 0.625, "d": 0.875}, abs=2e-3)


def test_a_voice_without_times_is_drawn_without_phonemes():
    svg = draw_speech([said()])
    assert not drawn(svg).findall(f"{SVG}path")
    assert pixels(svg).shape[0] == WAVE + BANDS


def test_symbols_are_escaped():
    assert "<a" not in draw_speech([said("<a&", 0.1)]).replace("&lt;a", "").partition("<text")[2]


def test_long_speech_is_cut():
    svg = draw_speech([said(length=SHOWN), said("xy", 0.5, length=5)])
    assert int(drawn(svg).get("width")) <= SHOWN * 320 + 1
    assert not [t for t in drawn(svg).findall(f"{SVG}text") if t.text in "xy"]


def test_a_tone_is_a_line_at_its_frequency():
    samples = said().audio.samples
    rows = spectrogram(samples, RATE, 300)
    assert rows.shape == (BANDS, 300)
    loudest = rows[:, 20:-20].argmax(0)
    assert np.allclose(BANDS * (1 - 1000 / 8000), loudest, atol=4)


def test_the_loudest_fills_the_waveform_and_silence_is_a_line():
    loud = waveform(said().audio.samples, 200)
    assert (loud == loud.max()).all(0).any()
    quiet = waveform(np.zeros(RATE, np.float32), 200)
    assert ((quiet == quiet.max()).sum(0) <= 3).all()


@given(st.integers(1, 400), st.integers(1, 40), st.floats(0, 1))
def test_as_many_tokens_are_left_as_asked_for_where_pairs_allow(patches, blocks, keep):
    left = counts(patches, blocks, keep)
    assert len(left) == blocks + 1 and left[0] == patches and left[-1] >= max(1, round(keep * patches))
    assert all(0 <= before - after <= before // 2 for before, after in pairwise(left))
    if keep >= 0.5:
        assert left[-1] == max(1, round(keep * patches))


def test_a_reduction_shows_what_it_says(tmp_path):
    picture = io.BytesIO()
    Image.effect_noise((40, 40), 90).save(picture, "PNG")
    png, left = reduction(picture.getvalue(), 0.25, 10_000)
    assert left[0] == 64 and left[-1] == 16
    width, height = Image.open(io.BytesIO(png)).size
    assert width > 4 * height  # five panels
    with pytest.raises(UserError, match="million pixels"):
        reduction(picture.getvalue(), 0.25, 1000)
    for nonsense in (None, "x", 0, -1, 1.1, float("nan"), [1]):
        with pytest.raises(UserError, match="keep rate"):
            reduction(picture.getvalue(), nonsense, 10_000)


def test_the_share_that_a_reduction_states_is_the_models_own():
    import torch

    from vitalk.deploy.load import load_model
    from vitalk.vision.merging import tome

    vit = load_model("vitalk_eye").model
    left = counts(vit.patch_embed.num_patches, len(vit.blocks), 0.4)
    trunk = tome(vit, [a - b for a, b in pairwise(left)]).eval()
    with torch.inference_mode():
        seen = [t.features.shape[1] - vit.num_prefix_tokens for t in trunk.walk(torch.zeros(1, 3, 32, 32))]
    assert seen == left


def test_without_torch_the_tab_says_what_to_install(monkeypatch):
    monkeypatch.setattr(tokens, "find_spec", lambda name: None)
    with gr.Blocks() as blocks:
        tokens.tokens_tab(None, None)
    assert any("pip install &quot;vitalk[train]&quot;" in str(getattr(b, "value", "")) for b in blocks.blocks.values())


@pytest.fixture
def own(tmp_path):
    """A page's folder with a picture, a link out of it, and a file beside it."""
    own, other = tmp_path / "own", tmp_path / "other.png"
    own.mkdir()
    other.write_bytes(b"secret")
    (own / "mine.png").write_bytes(b"mine")
    (own / "link.png").symlink_to(other)
    return own


def strangers(own):
    return [own.parent / "other.png", own / "link.png", own / ".." / "other.png", own, own / "gone.png", "mine.png",
            "/etc/passwd", "https://example.org/a.png", "//example.org/a.png", "\0"]  # fmt: skip


def test_only_files_of_the_page_are_read(own):
    uploads = Uploads(own, 10)
    assert uploads.read({"path": str(own / "mine.png")}) == b"mine"
    for named in strangers(own):
        with pytest.raises(UserError, match="no longer here"):
            uploads.read({"path": str(named)})
    for nothing in (None, {}, {"path": None}, {"path": 3}):
        with pytest.raises(UserError, match="choose a picture"):
            uploads.read(nothing)
    (own / "mine.png").write_bytes(b"much too long")
    with pytest.raises(UserError, match="longer than"):
        uploads.read({"path": str(own / "mine.png")})


@pytest.fixture
def doors(own):
    """A client of what stands behind the doors: it answers with the body."""

    async def echo(scope, receive, send):
        await Response(await Request(scope, receive).body())(scope, receive, send)

    return TestClient(Doors(echo, own, 100))


def test_what_the_page_does_not_use_is_shut(doors):
    shut = ["proxy=https://example.org", "run/say", "call/say", "api/say", "queue/status", "process_recording", "info",
            "vibe-edit", "deep_link", "component_server", "stream/x", "file/etc/passwd", "upload/x"]  # fmt: skip
    for path in (*(f"/gradio_api/{name}" for name in shut), "/monitoring", "/manifest.json", "/x", "/v1/models"):
        assert doors.get(path).status_code == doors.post(path).status_code == 404, path
    for path in ("/", "/theme.css", "/assets/a.js", "/static/js/b.js", "/gradio_api/queue/data"):
        assert doors.get(path).status_code == 200, path


def test_only_files_of_the_page_are_sent(doors, own):
    assert doors.get(f"/gradio_api/file={own}/mine.png").status_code == 200
    for named in strangers(own):
        assert doors.get("/gradio_api/file=" + quote(str(named))).status_code == 404, named


def test_events_name_files_of_the_page_alone(doors, own):
    body = {"data": [{"path": str(own / "mine.png"), "meta": {"_type": "gradio.FileData"}}, "path", 1], "fn_index": 0}
    assert doors.post("/gradio_api/queue/join", json=body).json() == body
    for named in (*map(str, strangers(own)), 3, ["x"], {"a": 1}):
        deep = {"data": [[{"value": {"path": named}}]]}
        assert doors.post("/gradio_api/queue/join", json=deep).status_code == 400, named
    hidden = f'{{"path": "/etc/passwd", "path": "{own}/mine.png"}}'
    assert doors.post("/gradio_api/queue/join", content=hidden).status_code == 400
    for broken in (b"{", b"[" * 100_000, b"\xff"):
        assert doors.post("/gradio_api/queue/join", content=broken).status_code == 400


def test_a_full_folder_takes_nothing_more(doors, own):
    (own / "large").mkdir()
    (own / "large" / "sound.wav").write_bytes(bytes(101))
    for path in ("upload", "queue/join"):
        answer = doors.post(f"/gradio_api/{path}", json={})
        assert answer.status_code == 429 and "try again" in answer.json()["detail"]
    assert doors.get("/").status_code == 200


def test_old_files_are_swept_away(own):
    for name in ("old/sound.wav", "old/new.wav", "older/sound.wav", "upload"):
        (own / name).parent.mkdir(exist_ok=True)
        (own / name).write_bytes(b"x")
    for name in ("old/sound.wav", "older/sound.wav", "upload", "old"):
        os.utime(own / name, (0, 0))
    sweep(own, 60)
    left = {str(path.relative_to(own)) for path in own.rglob("*")}
    assert left == {"mine.png", "link.png", "old", "old/new.wav", "older"}
    os.utime(own / "older", (0, 0))
    sweep(own, 60)
    assert not (own / "older").exists() and (own.parent / "other.png").exists()


class Asked:
    gate = Gate(1)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (UserError("there is nothing to say"), "There is nothing to say."),
        (HTTPException(429, "8 requests are waiting already; try again later"), "8 requests are waiting"),
        (Late(), "longer than this server allows"),
        (TimeoutError(), "longer than this server allows"),
        (Lost(), "The worker died"),
        (ZeroDivisionError("secret"), "The server failed; its log says more."),
    ],
)
def test_errors_are_sentences_and_empty_the_outputs(error, sentence, caplog):
    @guarded(Asked, 2)
    async def handler():
        assert Asked.gate.inside == 1
        raise error

    shown = asyncio.run(handler())
    assert sentence in shown[0] and 'role="alert"' in shown[0] and shown[1:] == (None, None)
    assert Asked.gate.inside == 0 and "secret" not in shown[0]
    assert ("ZeroDivisionError" in caplog.text) == isinstance(error, ZeroDivisionError)


def test_a_full_server_says_so():
    @guarded(Asked, 0)
    async def handler():
        return ("never",)

    with Asked.gate.entered():
        (shown,) = asyncio.run(handler())
    assert "1 requests are waiting already" in shown


def test_texts_are_escaped():
    assert "<b>" not in notice("<b>") and "<b>" not in figure("x", "<b>", "<b>", "<b>")
    assert told(UserError('no voice "<b>"')).startswith("No voice")


def test_every_record_becomes_a_table():
    names = [name for name in TABLES if find_record(name) is not None]
    assert {"bench_speech", "bench_vision"} <= set(names)
    for name in names:
        record = find_record(name)
        html = table("T", report.table({"command": "vitalk bench"} | record))
        assert html.count("<tr>") == len(record["rows"]) + 1
        assert html.count('<th scope="row">') == len(record["rows"])
        cells = {len(re.findall("<t[hd]", row)) for row in html.split("<tr>")[1:]}
        assert len(cells) == 1
        assert f"Measured by {record.get('command', 'vitalk bench')}" in html


def test_cells_with_bars_stay_cells():
    html = table("T", "| a | b |\n| --- | --- |\n| x \\| y | <z> |\n\nNote.")
    assert '<th scope="row">x | y</th><td>&lt;z&gt;</td>' in html and "<p>Note.</p>" in html
