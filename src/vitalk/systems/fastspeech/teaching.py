"""What the teacher teaches: its mels and the durations in its attention, from one pass, computed once and kept.

Sequence-level distillation of FastSpeech (arXiv 1905.09263, sections 3.3 and 4.2).
"""

import hashlib
import io
from collections.abc import Iterable, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from vitalk.errors import UserError
from vitalk.files import write_whole
from vitalk.speech.align.durations import DAMAGE
from vitalk.speech.corpus import Clip
from vitalk.speech.features import LengthBatches, Speech, Utterances, collate
from vitalk.systems.transformer_tts.model import Output, TransformerTTS
from vitalk.systems.transformer_tts.training import load_trained


@dataclass(frozen=True)
class Lesson:
    """One utterance as the teacher has it.

    mel: log-mel [mels, frames], float16. durations: int64 [text], in sum the frames. focus: rate of the head that they
    are of. stopped: whether the teacher found the end itself; True where it was told the recording.
    """

    mel: np.ndarray
    durations: np.ndarray
    focus: float
    stopped: bool


class LessonCache:
    """Lessons on disk, one npz file an utterance, each whole or absent; damaged ones count as absent."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def get(self, utterance: str) -> Lesson | None:
        """The lesson of an utterance, None where it is absent or damaged."""
        try:
            with np.load(self._path(utterance), allow_pickle=False) as kept:
                lesson = Lesson(
                    kept["mel"], kept["durations"].astype(np.int64), float(kept["focus"]), bool(kept["stopped"])
                )
        except DAMAGE:
            return None
        return lesson if lesson.mel.ndim == 2 and lesson.durations.sum() == lesson.mel.shape[1] else None

    def put(self, utterance: str, lesson: Lesson) -> None:
        """Keep the lesson of an utterance. Raises UserError where the folder cannot be written to."""
        buffer = io.BytesIO()
        np.savez(
            buffer, mel=lesson.mel, durations=lesson.durations.astype(np.int32), focus=np.float32(lesson.focus),
            stopped=lesson.stopped,
        )  # fmt: skip
        write_whole(self._path(utterance), buffer.getvalue())

    def __getitem__(self, utterance: str) -> Lesson:
        if (found := self.get(utterance)) is None:
            raise UserError(f"{self.folder} has no sound lesson of {utterance}; start the training again")
        return found

    def __contains__(self, utterance: str) -> bool:
        return self.get(utterance) is not None

    def _path(self, utterance: str) -> Path:
        return self.folder / f"{utterance}.npz"


@torch.inference_mode()
def teach(
    teacher: TransformerTTS,
    loader: Iterable[dict[str, Any]],
    cache: LessonCache,
    free: bool = False,
    speakers: list[int] | None = None,
) -> int:
    """Keep what a teacher makes of every utterance of a loader; returns how many were made.

    free: it speaks by itself, as in the paper; else it is told the recording's frames, and its mels are as long as
    those. Mels and durations are of the same pass. speakers: the teacher's number of each of the loader's.
    Lessons that are there already stay, so that a stopped run goes on where it was.
    """
    from rich.progress import track

    teacher.eval()
    device, made = next(teacher.parameters()).device, 0
    total = len(loader) if isinstance(loader, Sized) else None
    for batch in track(loader, "lessons", total=total, transient=True):
        rows = [i for i, name in enumerate(batch["utterances"]) if name not in cache]
        if not rows:
            continue
        chosen = {name: value[rows].to(device) for name, value in batch.items() if isinstance(value, Tensor)}
        out = _pass(teacher, chosen, free, speakers)
        for i, row in enumerate(rows):
            cache.put(batch["utterances"][row], _lesson(out, i))
        made += len(rows)
    return made


def _pass(teacher: TransformerTTS, batch: dict[str, Tensor], free: bool, speakers: list[int] | None) -> Output:
    speaker = batch["speaker"]
    if speakers is not None:
        speaker = torch.tensor(speakers, device=speaker.device)[speaker]
    speaker = None if teacher.speakers is None else speaker
    if free:
        return teacher(batch["ids"], batch["text_lengths"], speaker=speaker)
    told = batch["mel"], batch["mel_lengths"], speaker
    return teacher(batch["ids"], batch["text_lengths"], *told, maps=len(teacher.decoder))


def _lesson(out: Output, i: int) -> Lesson:
    frames, symbols = int(out.mel_lengths[i]), int(out.text_mask[i].sum())
    mel = out.mel[i, :, :frames].float().cpu().numpy().astype(np.float16)
    stopped = out.stopped is None or bool(out.stopped[i])
    return Lesson(mel, out.durations[i, :symbols].cpu().numpy(), float(out.focus[i]), stopped)


class TaughtUtterances(Utterances):
    """``Utterances`` with the durations of lessons and, unless ``real``, with their mels."""

    def __init__(self, clips: list[Clip], data: "TaughtSpeech", lessons: LessonCache, real: bool):
        super().__init__(clips, data.cache, data.speakers, None)
        self.lessons, self.real = lessons, real

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = super().__getitem__(index)
        lesson = self.lessons[row["utterance"]]
        row["durations"] = torch.from_numpy(lesson.durations)
        if not self.real:
            row["mel"] = torch.from_numpy(lesson.mel).float()
        return row


class TaughtSpeech(Speech):
    """A speech corpus as a teacher has it: ``Speech`` whose durations, and mels, are those of a Transformer TTS.

    teacher: model.safetensors of its training. free: see ``teach``. mels: the "teacher"'s, which is the paper's
    distillation, or the "real" ones with the teacher's durations, which goes without ``free``. focus: utterances in
    which no head of the teacher has this focus rate are left out, as are those whose end it did not find; a half is
    the least that gives durations worth learning. The other arguments are those of ``Speech``.
    Lessons are kept beside the features. f0 and energy of a batch are the recording's.
    Raises UserError for a teacher that does not fit the corpus, and where nothing is left to learn from.
    """

    def __init__(
        self,
        teacher: str,
        free: bool = False,
        mels: Literal["teacher", "real"] = "teacher",
        focus: float = 0.5,
        path: str | list[str] | None = None,
        speakers: list[str] | None = None,
        lang: str = "en-us",
        mel: str = "vitalk",
        fmin: float = 60.0,
        fmax: float = 600.0,
        batch_frames: int = 8_000,
        workers: int = 1,
        held_out: float = 0.02,
        split_by: Literal["clip", "speaker"] = "clip",
        cache: str | None = None,
        limit: int | None = None,
        longest: int = 1_600,
        seed: int = 0,
    ):
        super().__init__(
            path, speakers, lang, mel, fmin, fmax, batch_frames, workers, held_out, split_by, cache=cache, limit=limit,
            longest=longest, seed=seed,
        )  # fmt: skip
        self.save_hyperparameters()
        # Arguments of ``Speech`` that are none here, and of which LightningCLI tells nothing.
        self.hparams.update(aligner=None, wave=False)
        if free and mels == "real":
            raise UserError("a teacher that speaks freely gives no durations of real mels; leave free or mels out")
        self.lessons: LessonCache | None = None

    def setup(self, stage: str | None = None) -> None:
        """Let the teacher make what is missing, and leave out what it is not sure of."""
        if self.lessons is not None:
            return
        super().setup(stage)
        o = self.hparams
        net, about = load_trained(o.teacher)
        if about["mel"] != o.mel or about["lang"] != o.lang:
            raise UserError(
                f"{o.teacher} makes mels of preset {about['mel']} of {about['lang']}, the corpus has {o.mel} of "
                f"{o.lang}; train one for the other"
            )
        if net.speakers is not None and (strange := sorted(set(self.speakers) - set(about["speakers"]))):
            raise UserError(f"{o.teacher} has never heard {strange[0]}; name its speakers with speakers")
        numbers = [about["speakers"].index(name) for name in self.speakers] if net.speakers is not None else None
        self.lessons = self._lessons(net, numbers)
        for part in ("train", "test"):
            self._keep(part)

    def _lessons(self, net: TransformerTTS, numbers: list[int] | None) -> LessonCache:
        told = b"".join(value.cpu().numpy().tobytes() for value in net.state_dict().values())
        name = hashlib.sha256(told).hexdigest()[:16]
        lessons = LessonCache(self.cache.folder / f"lessons-{'free-' if self.hparams.free else ''}{name}")
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        for part in ("train", "test"):
            rows = Utterances(getattr(self, part), self.cache, self.speakers, None)
            batches = LengthBatches(self.frames[part], self.hparams.batch_frames)
            loader = DataLoader(rows, batch_sampler=batches, collate_fn=collate)
            teach(net.to(device), loader, lessons, self.hparams.free, numbers)
        return lessons

    def _keep(self, part: str) -> None:
        o, clips = self.hparams, getattr(self, part)
        found = [self.lessons[self.cache.name(clip)] for clip in clips]
        good = [x.stopped and x.focus >= o.focus and x.mel.shape[1] <= o.longest for x in found]
        if not any(good):
            best = max(lesson.focus for lesson in found)
            raise UserError(
                f"the teacher {o.teacher} is not sure of any of the {len(clips)} clips of the {part} part (the best "
                f"focus rate is {best:.2f}, {sum(x.stopped for x in found)} found their end); train it longer, lower "
                "focus, or train on durations of an aligner with real mels"
            )
        setattr(self, part, [clip for clip, kept in zip(clips, good, strict=True) if kept])
        self.frames[part] = np.array([x.mel.shape[1] for x, kept in zip(found, good, strict=True) if kept])

    def _loader(self, part: Literal["train", "test"], batches: LengthBatches) -> DataLoader:
        rows = TaughtUtterances(getattr(self, part), self, self.lessons, self.hparams.mels == "real")
        workers = self.hparams.workers
        return DataLoader(
            rows, batch_sampler=batches, collate_fn=collate, num_workers=workers,
            persistent_workers=workers > 0, pin_memory=torch.cuda.is_available(),
        )  # fmt: skip
