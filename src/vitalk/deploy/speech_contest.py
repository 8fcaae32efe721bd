"""Our voice, Kokoro-82M (its teacher) and espeak-ng on the same sentences, side by side.

As in ``contest`` every voice is timed in a process of its own, ``python -m vitalk.deploy.speech_contest time VOICE``,
and the voices take turns, several rounds, so that a machine that drifts is fair to all.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from vitalk.errors import UserError

from .contest import THREADS_ENV

THREADS = 2  # of onnxruntime, while warm voices are timed
TIMED = 20  # sentences of the list that are timed
GREETING = "Good morning, how are you today?"
RATIOS = {  # ratio -> the cost that it is of
    "ratio_speed": "real_time_factor",
    "ratio_first_audio": "first_audio_seconds",
    "ratio_cold_start": "cold_start_seconds",
    "ratio_memory": "peak_bytes",
    "ratio_size": "bytes",
}
NOTE = (
    "Ratios are Kokoro's figure by the row's: 10× is a tenth of what Kokoro takes. Real-time factor (synthesis by "
    "sound) and time to first audio, that of the first sentence, are those of a warm voice on {threads} threads, text "
    "front end included, over {timed} sentences; cold start and peak memory those of a whole process that writes one "
    "sentence to a file. Medians of {rounds} rounds in turns. MB: the model; of espeak-ng its English data. WER "
    "(Whisper base, its own normaliser, all words) and DNSMOS (overall, at -23 dB): {judged} everyday sentences."
)


def compare(voice: str | Path | None = None, rounds: int = 3, limit: int | None = None) -> dict[str, Any]:
    """Measure and judge; rows, the judges' means with intervals, settings, the machine.

    voice: ours, a name or a file, the embedded one where None. rounds: times that each is timed. limit: of the
    sentences that are judged. Progress is shown on stderr. Raises UserError before anything is measured where a
    voice, a package of the extras bench and eval, or sound is missing.
    """
    from vitalk.measurement import machine
    from vitalk.speech.judge.evaluate import ready
    from vitalk.speech.judge.recordings import Recording, spread
    from vitalk.speech.judge.texts import read_texts
    from vitalk.speech.judge.voices import evaluate_voices, labels
    from vitalk.speech.peers import PEERS, files_of
    from vitalk.speech.voice import Voice, find_voice

    ours = find_voice(voice)
    Voice.load(ours)
    voices = labels([ours, *PEERS])
    sizes = {label: sum(path.stat().st_size for path in files_of(name)) for label, name in voices.items()}
    texts = read_texts()
    judging = {"judges": ("words", "quality"), "normaliser": "whisper"}
    _, recogniser = ready([Recording("", text) for _, text in texts], **judging)
    timed = [text for _, text in spread(texts, TIMED)]
    costs = measure(voices, timed, rounds)
    report, _ = evaluate_voices(list(voices.values()), limit=limit, recogniser=recogniser, **judging)
    means = report.by_speaker()
    note = NOTE.format(threads=THREADS, timed=len(timed), rounds=rounds, judged=len(spread(texts, limit)))
    return {
        "machine": machine(), "threads": THREADS, "rounds": rounds, "note": note,
        "rows": summarize({label: cost | {"bytes": sizes[label]} for label, cost in costs.items()}, means, PEERS),
        "judged": {label: {key: value._asdict() for key, value in found.items()} for label, found in means.items()},
    }  # fmt: skip


def measure(voices: dict[str, str | Path], texts: list[str], rounds: int) -> dict[str, dict[str, float]]:
    """Label -> seconds and bytes of each voice, medians over the rounds."""
    from rich.console import Console
    from rich.progress import Progress

    from vitalk.memory import peak_memory

    seen: dict[str, list[dict[str, float]]] = {label: [] for label in voices}
    with Progress(console=Console(stderr=True)) as progress, tempfile.TemporaryDirectory() as folder:
        task = progress.add_task("measuring", total=(rounds + 1) * len(voices))
        for _ in range(rounds):
            for label, name in voices.items():
                progress.update(task, description=f"timing {label}")
                start = time.perf_counter()
                _run(one_sentence(name, Path(folder) / "said.wav"))
                seen[label].append({"cold_start_seconds": time.perf_counter() - start} | in_own_process(name, texts))
                progress.advance(task)
        found = {
            label: {key: statistics.median(r[key] for r in runs) for key in runs[0]} for label, runs in seen.items()
        }
        for label, name in voices.items():
            progress.update(task, description=f"memory of {label}")
            found[label]["peak_bytes"] = peak_memory(one_sentence(name, Path(folder) / "said.wav"))
            progress.advance(task)
    return found


def one_sentence(name: str | Path, file: Path) -> list[str]:
    """The command that starts, writes one sentence to ``file`` and ends: ``vitalk speak`` for our voices."""
    from vitalk.speech.peers import PEERS

    if name in PEERS:
        return [sys.executable, "-m", "vitalk.deploy.speech_contest", "say", str(name), GREETING, str(file)]
    program = "from vitalk.cli import main; main()"
    return [sys.executable, "-c", program, "speak", GREETING, "--voice", str(name), "-o", str(file)]


def in_own_process(name: str | Path, texts: list[str]) -> dict[str, float]:
    """``timed`` of a voice in a fresh process. Raises UserError where it fails, with its last words."""
    command = [sys.executable, "-m", "vitalk.deploy.speech_contest", "time", str(name)]
    return json.loads(_run(command, json.dumps(texts)).splitlines()[-1])


def timed(name: str, texts: list[str]) -> dict[str, float]:
    """Real-time factor over all texts, and the median seconds until the first audio of one, by a warm voice.

    Warm: the longest text, which sizes the memory, and the first have been said before.
    """
    from vitalk.speech.judge.voices import say
    from vitalk.speech.peers import open_voice

    voice = open_voice(name, THREADS)
    for text in (max(texts, key=len), texts[0]):
        say(voice, text)
    said = [say(voice, text) for text in texts]
    spent, sound = sum(seconds for _, seconds, _ in said), sum(audio.seconds for audio, _, _ in said)
    return {"real_time_factor": spent / sound, "first_audio_seconds": statistics.median(first for *_, first in said)}


def summarize(
    costs: dict[str, dict[str, float]], means: dict[str, dict[str, Any]], titles: dict[str, str]
) -> list[dict[str, Any]]:
    """A row a voice: its costs, each followed by Kokoro's cost by it, word error rate and DNSMOS.

    means: of a label the judges' "wer_pooled", a fraction, and "ovrl", missing where a judge could say nothing.
    """
    rows = []
    for label, cost in costs.items():
        row: dict[str, Any] = {"name": titles.get(label, label)}
        for ratio, key in RATIOS.items():
            row |= {key: cost[key], ratio: costs["kokoro"][key] / cost[key]}
        judged = {"wer": "wer_pooled", "dnsmos": "ovrl"}
        row |= {key: means[label][found].mean if found in means[label] else None for key, found in judged.items()}
        rows.append(row)
    return rows


def _run(command: list[str], text: str = "") -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True, env={**os.environ, **THREADS_ENV})
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"{' '.join(command[-5:])} failed: {last}")
    return done.stdout


def main(verb: str, name: str, *more: str) -> None:
    """``time NAME``: print what ``timed`` finds for the texts on stdin, as JSON; ``say NAME TEXT FILE``."""
    if verb == "time":
        print(json.dumps(timed(name, json.load(sys.stdin))))
        return
    from vitalk.speech.peers import open_voice

    open_voice(name).synthesize(more[0]).save(more[1])


if __name__ == "__main__":
    main(*sys.argv[1:])
