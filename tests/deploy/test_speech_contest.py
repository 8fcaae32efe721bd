"""What ``vitalk bench speech`` measures, on a voice that babbles, and what it makes of it."""

import json

import pytest

from vitalk.deploy import speech_contest
from vitalk.deploy.speech_contest import RATIOS, in_own_process, main, measure, one_sentence, summarize
from vitalk.errors import UserError
from vitalk.report import table
from vitalk.speech.audio import Audio
from vitalk.speech.judge.report import Interval


def test_every_voice_is_measured_in_processes_of_its_own(voice_file):
    found = measure({"babble": voice_file, "espeak": "espeak"}, ["Good morning.", "How are you?"], rounds=1)
    for costs in found.values():
        assert set(costs) == {"real_time_factor", "first_audio_seconds", "cold_start_seconds", "peak_bytes"}
        assert 0 < costs["first_audio_seconds"] < costs["cold_start_seconds"] and costs["real_time_factor"] > 0
        assert 20e6 < costs["peak_bytes"] < 2e9
    assert found["espeak"]["real_time_factor"] < 0.5


def test_the_child_says_one_sentence(tmp_path):
    command = one_sentence("espeak", tmp_path / "said.wav")
    main(*command[3:])
    assert Audio.load(tmp_path / "said.wav").seconds > 1
    ours = one_sentence("voices/x.onnx", tmp_path / "said.wav")
    assert ours[3] == "speak" and ours[-4:] == ["--voice", "voices/x.onnx", "-o", str(tmp_path / "said.wav")]


def test_a_child_that_fails_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"time nobody failed: .*there is no voice nobody"):
        in_own_process("nobody", ["Hello."])


def test_each_cost_is_followed_by_kokoros_cost_by_it():
    kokoro = {"real_time_factor": 0.8, "first_audio_seconds": 2.0, "cold_start_seconds": 4.0, "peak_bytes": 6e8,
              "bytes": 9e7}  # fmt: skip
    ours = {key: value / 10 for key, value in kokoro.items()}
    means = {"vitalk": {"wer_pooled": Interval(0.03, 0.02, 0.04, 9), "ovrl": Interval(3.1, 3, 3.2, 9)}, "kokoro": {}}
    rows = summarize({"vitalk": ours, "kokoro": kokoro}, means, {"kokoro": "Kokoro-82M int8"})
    assert [row["name"] for row in rows] == ["vitalk", "Kokoro-82M int8"]
    assert all(rows[0][ratio] == pytest.approx(10) and rows[1][ratio] == 1 for ratio in RATIOS)
    assert rows[0]["wer"] == 0.03 and rows[0]["dnsmos"] == 3.1 and rows[1]["wer"] is None
    drawn = table({"rows": rows, "note": "Ratios.", "command": "vitalk bench speech", "machine": "EPYC"})
    assert "| real time factor | ratio speed | first audio seconds |" in drawn and "| WER, % | DNSMOS |" in drawn
    assert "| vitalk | 0.08 | 10× | 0.2 | 10× | 0.4 | 10× | 60.00 | 10× | 9.00 | 10× | 3.00 | 3.10 |" in drawn
    assert drawn.endswith("Ratios.\n\nMeasured by `vitalk bench speech` on EPYC.")


def test_the_whole_record_and_what_is_refused_first(voice_file, monkeypatch):
    for module in ("jiwer", "faster_whisper", "speechmos.dnsmos"):
        pytest.importorskip(module)
    from vitalk.speech.judge import evaluate, voices

    asked = {}

    def judged(names, limit, **_):
        means = {label: {"wer_pooled": Interval(0.1, 0.0, 0.2, 3)} for label in voices.labels(names)}
        asked["names"], asked["limit"] = [str(name) for name in names], limit
        return type("Report", (), {"by_speaker": lambda self: means})(), []

    costs = dict.fromkeys(RATIOS.values(), 1.0)
    monkeypatch.setattr(speech_contest, "measure", lambda voices, texts, rounds: {v: dict(costs) for v in voices})
    monkeypatch.setattr(voices, "evaluate_voices", judged)
    monkeypatch.setattr(evaluate, "ready", lambda *_, **__: ([], None))
    monkeypatch.setattr("vitalk.speech.peers.files_of", lambda name: [voice_file])
    record = speech_contest.compare(voice_file, rounds=2, limit=3)
    assert asked == {"names": [str(voice_file), "kokoro", "espeak"], "limit": 3}
    assert [row["name"] for row in record["rows"]] == ["babble", "Kokoro-82M int8", "espeak-ng"]
    assert record["rows"][0]["bytes"] == voice_file.stat().st_size and record["machine"]
    assert record["judged"]["espeak"]["wer_pooled"]["high"] == 0.2
    assert "20 sentences" in record["note"] and "2 rounds" in record["note"] and "3 everyday" in record["note"]
    assert json.loads(json.dumps(record)) == record
    with pytest.raises(UserError, match="there is no voice nobody"):
        speech_contest.compare("nobody")
