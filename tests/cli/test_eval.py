"""``vitalk eval speech``, as a user calls it."""

import json
import subprocess
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from vitalk.cli.evaluate import app
from vitalk.errors import UserError
from vitalk.speech.audio import Audio
from vitalk.speech.judge import evaluate as judge


class Parrot:
    """Stands in for Whisper."""

    name = "parrot"

    def language(self, lang):
        if lang != "en":
            raise UserError(f"the recogniser {self.name} does not know the language {lang}.")

    def transcribe(self, audio, lang):
        return "Hello world"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    pytest.importorskip("jiwer")
    pytest.importorskip("faster_whisper")
    real = judge.evaluate
    stand_in = {"judges": ("words",), "recogniser": Parrot()}
    monkeypatch.setattr(judge, "evaluate", lambda folder, **options: real(folder, **options | stand_in))
    wave = 0.1 * np.sin(np.arange(8000) / 9)
    (tmp_path / "speech").mkdir()
    for name in ("a", "b"):
        Audio(wave.astype(np.float32), 16_000).save(tmp_path / "speech" / f"{name}.wav")
    (tmp_path / "speech" / "metadata.csv").write_text("a|Hello world\nb|Hello, new world\nc|Nothing\n")
    return tmp_path / "speech"


def run(*args):
    return CliRunner().invoke(app, ["speech", *map(str, args)], catch_exceptions=False)


def test_a_table_and_a_folder_with_the_report(folder, tmp_path):
    done = run(folder, "-o", tmp_path / "out")
    assert done.exit_code == 0
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "WER, all words 20.00 % 0.00 to 33.33 2" in lines and "b, WER 33 %" in lines
    assert "note: 1 of the 3 texts in metadata.csv have no recording" in lines
    assert lines[-1] == f"written: {tmp_path}/out/report.json, report.md"
    assert len(json.loads((tmp_path / "out" / "report.json").read_text())["rows"]) == 2


def test_one_recording_and_nothing_written(folder, tmp_path):
    done = run(folder, "--limit", 1)
    assert done.exit_code == 0 and "WER, all words" in done.stdout and "written" not in done.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["speech"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--plots", 2], "--plots needs a folder"),
        (["--normaliser", "none"], "--normaliser is one of seed, whisper, got none"),
        (["--text", "none.csv"], "there is no file none.csv"),
        (["--reference", "none"], "there is no folder none"),
        (["--lang", "xx"], "does not know the language xx"),
        (["--speaker", "none.wav"], "there is no sound file at none.wav"),
    ],
)
def test_bad_options_are_one_sentence(folder, args, message):
    with pytest.raises(UserError, match=message):
        run(folder, *args)


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom vitalk.cli.evaluate import app\n"
        "try: app(['speech', '--help'])\nexcept SystemExit: pass\n"
        "print('HEAVY', sorted({'torch', 'numpy', 'matplotlib', 'faster_whisper'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert "HEAVY []" in done.stdout and "--speaker" in done.stdout


def test_voices_are_judged_on_sentences(tmp_path, monkeypatch):
    pytest.importorskip("jiwer")
    pytest.importorskip("faster_whisper")
    from vitalk.speech.judge import voices

    real = voices.evaluate_voices
    stand_in = {"judges": ("words",), "recogniser": Parrot()}
    monkeypatch.setattr(voices, "evaluate_voices", lambda names, **options: real(names, **options | stand_in))
    (tmp_path / "list.txt").write_text("Hello world\nHello, new world\n")
    done = run("--voice", "espeak", "--text", tmp_path / "list.txt", "-o", tmp_path / "out")
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert done.exit_code == 0 and "WER, all words 20.00 % 0.00 to 33.33 2" in lines
    assert lines[-1] == f"written: {tmp_path}/out/report.json, report.md, metadata.jsonl, 2 recordings"
    assert any(line.startswith("time to first audio") for line in lines) and "espeak/002, WER 33 %" in lines


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["somewhere", "--voice", "espeak"], "there is a folder somewhere and a --voice espeak; give one of them"),
        ([], "say what to judge: a folder of recordings, or --voice"),
        (["--voice", "nobody"], r"there is no voice nobody; there are .*kokoro, espeak and voice files"),
        (["--voice", "espeak", "--voice", "espeak"], "the voice espeak is given twice"),
        (["--voice", "espeak", "--text", "none.txt"], "there is no file none.txt"),
        (["--voice", "espeak", "--lang", "es"], "give a list of sentences in es with --text"),
    ],
)
def test_bad_voices_are_one_sentence(args, message):
    with pytest.raises(UserError, match=message):
        run(*args)
