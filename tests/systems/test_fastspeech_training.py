"""Teaching FastSpeech: lessons of a teacher, training on them or on an aligner's durations, speaking, judging."""

import numpy as np
import pytest
import torch
from lightning import seed_everything

from vitalk.cli.export import export
from vitalk.errors import UserError
from vitalk.experiments import budget, short_run
from vitalk.speech.features import Speech
from vitalk.speech.voice import Voice
from vitalk.systems.fastspeech import Lesson, LessonCache, TaughtSpeech, reproduce, teach
from vitalk.systems.fastspeech.training import FastSpeechTraining, ForVoice, load_trained
from vitalk.systems.transformer_tts.training import TransformerTTSTraining
from vitalk.systems.transformer_tts.training import load_trained as load_teacher
from vitalk.trained import trained_voice
from vitalk.training import run

LAYERS = {"depth": 1, "heads": 2, "hidden": 16}
BLOCKS = {**LAYERS, "kernels": (3, 1)}
SIZE = {"dim": 16, "encoder": BLOCKS, "decoder": BLOCKS}
TEACHER = {"dim": 16, "encoder": LAYERS, "decoder": LAYERS, "prenet": (8,), "postnet": None, "frames_per_step": 4}


@pytest.fixture(scope="module")
def options(hums, tmp_path_factory):
    cache = str(tmp_path_factory.mktemp("cache"))
    return {"path": str(hums), "cache": cache, "workers": 0, "held_out": 0.25, "batch_frames": 400}


@pytest.fixture(scope="module")
def corpus(aligned, options):
    return aligned(**options)


@pytest.fixture(scope="module")
def teacher(corpus, tmp_path_factory):
    torch.manual_seed(0)
    module = TransformerTTSTraining(corpus.n_symbols, corpus.n_speakers, "small", TEACHER)
    module.build(*corpus.spreads()).stop.bias.data.fill_(5.0)  # it ends at its first step
    path = tmp_path_factory.mktemp("teacher") / "model.safetensors"
    module.save_weights(path, corpus)
    return path


def taught(options, teacher, **more):
    data = TaughtSpeech(str(teacher), **{"focus": 0.0, **options, **more})
    data.setup()
    return data


def training(corpus, **more):
    told = {"variant": "small", "model_args": SIZE, "warmup_steps": 2, **more}
    module = FastSpeechTraining(corpus.n_symbols, corpus.n_speakers, **told)
    module.build(*corpus.spreads())
    return module


def test_lessons_are_whole_or_absent(tmp_path):
    cache = LessonCache(tmp_path / "lessons")
    lesson = Lesson(np.ones((5, 6), np.float16), np.array([2, 0, 4]), 0.75, True)
    cache.put("one", lesson)
    found = cache["one"]
    assert found.durations.tolist() == [2, 0, 4] and (found.focus, found.stopped) == (0.75, True)
    assert found.mel.dtype == np.float16 and "one" in cache and "two" not in cache
    cache.put("odd", Lesson(lesson.mel, np.array([2, 1]), 0.5, True))  # durations of another mel
    (tmp_path / "lessons" / "cut.npz").write_bytes((tmp_path / "lessons" / "one.npz").read_bytes()[:200])
    assert "odd" not in cache and "cut" not in cache
    with pytest.raises(UserError, match="no sound lesson of two"):
        cache["two"]


def test_a_teacher_that_is_told_the_recording_keeps_its_length(corpus, options, teacher):
    data = taught(options, teacher)
    plain, batch = next(iter(corpus.whole_dataloader("train"))), next(iter(data.whole_dataloader("train")))
    assert batch["utterances"] == plain["utterances"] and torch.equal(batch["mel_lengths"], plain["mel_lengths"])
    assert not torch.allclose(batch["mel"], plain["mel"]) and batch["mel"].shape == plain["mel"].shape
    assert torch.equal(batch["durations"].sum(1), batch["mel_lengths"])
    real = next(iter(taught(options, teacher, mels="real").whole_dataloader("train")))
    assert torch.equal(real["mel"], plain["mel"]) and torch.equal(real["durations"], batch["durations"])


def test_mels_and_durations_are_of_the_same_pass(corpus, options, teacher):
    data, (net, _) = taught(options, teacher), load_teacher(teacher)
    batch = next(iter(corpus.whole_dataloader("train")))
    with torch.inference_mode():
        out = net(
            batch["ids"], batch["text_lengths"], batch["mel"], batch["mel_lengths"], batch["speaker"], maps=1
        )  # fmt: skip
    for i, name in enumerate(batch["utterances"]):
        lesson, frames = data.lessons[name], int(batch["mel_lengths"][i])
        assert np.allclose(lesson.mel, out.mel[i, :, :frames].numpy(), atol=1e-2)
        assert lesson.durations.tolist() == out.durations[i, : batch["text_lengths"][i]].tolist()
        assert lesson.focus == pytest.approx(float(out.focus[i]), abs=1e-5)


def test_a_free_teacher_speaks_at_its_own_length_and_only_once(options, teacher):
    data = taught(options, teacher, free=True)
    batch = next(iter(data.whole_dataloader("train")))
    assert set(batch["mel_lengths"].tolist()) == {4} and set(data.frames["train"].tolist()) == {4}
    assert torch.equal(batch["durations"].sum(1), batch["mel_lengths"])
    made = {path: path.stat().st_mtime_ns for path in data.lessons.folder.iterdir()}
    assert len(made) == 8 and not taught(options, teacher).lessons.folder.samefile(data.lessons.folder)
    taught(options, teacher, free=True)
    assert made == {path: path.stat().st_mtime_ns for path in data.lessons.folder.iterdir()}


def test_what_the_teacher_is_not_sure_of_is_left_out(options, teacher):
    data = taught(options, teacher)
    clips = [*data.train, *data.test]
    rates = sorted(data.lessons[data.cache.name(clip)].focus for clip in clips)
    assert rates[0] < rates[1]
    some = taught(options, teacher, focus=rates[1])
    assert len(some.train) + len(some.test) == len(clips) - 1
    assert all(len(some.frames[part]) == len(getattr(some, part)) for part in ("train", "test"))
    with pytest.raises(UserError, match=r"not sure of any .* lower focus"):
        taught(options, teacher, focus=0.99)


def test_speakers_are_the_teachers_by_name(options, teacher, corpus):
    alone = taught(options, teacher, speakers=["s1"])
    both = taught(options, teacher)
    name = alone.cache.name(alone.train[0])
    assert np.array_equal(alone.lessons[name].mel, both.lessons[name].mel)
    calls = []

    class Net(torch.nn.Linear):
        speakers, decoder = object(), ()

        def forward(self, *_, speaker):
            calls.append(speaker.tolist())
            raise StopIteration

    with pytest.raises((StopIteration, RuntimeError)):
        batch = {"utterances": ["new"], "speaker": torch.tensor([0]), "ids": torch.ones(1, 2), "text_lengths": None}
        teach(Net(1, 1), [batch | {"text_lengths": torch.tensor([2])}], LessonCache("nowhere"), True, [1])
    assert calls == [[1]]


def test_refuses_teachers_that_do_not_fit(options, teacher, corpus, tmp_path, hums):
    with pytest.raises(UserError, match="leave free or mels out"):
        TaughtSpeech(str(teacher), free=True, mels="real", **options)
    with pytest.raises(UserError, match=r"makes mels of preset vitalk .* the corpus has hifigan"):
        taught(options, teacher, mel="hifigan")
    with pytest.raises(UserError, match="holds no Transformer TTS"):
        student = tmp_path / "student.safetensors"
        training(corpus).save_weights(student, corpus)
        taught(options, student)
    lines = (hums / "metadata.jsonl").read_text().replace('"s1"', '"other"')
    (tmp_path / "metadata.jsonl").write_text(lines)
    (tmp_path / "wavs").symlink_to(hums / "wavs")
    with pytest.raises(UserError, match="never heard other"):
        taught({**options, "path": str(tmp_path)}, teacher)


@pytest.mark.parametrize("schedule", ["noam", "cosine"])
@pytest.mark.parametrize("source", ["aligner", "teacher"])
def test_the_losses_fall(corpus, options, teacher, schedule, source):
    seed_everything(0, verbose=False)
    data = corpus if source == "aligner" else taught(options, teacher)
    module = training(data, schedule=schedule, lr=1e-2)
    batch = next(iter(data.whole_dataloader("train")))
    before = module.eval().losses(batch)
    with budget("test", 1):
        short_run(module.train(), data, 30)
    after = module.eval().losses(batch)
    assert set(after) == {"mel", "duration"}
    assert sum(after.values()) < 0.7 * sum(before.values())


def test_distance_and_weights_are_heeded(corpus):
    batch = next(iter(corpus.whole_dataloader("train")))
    module = training(corpus, weights={"mel": 0.0, "duration": 2.0}, distance="l1").eval()
    total, found = module.loss(batch)
    torch.testing.assert_close(total, 2 * found["duration"])
    off = (module(batch).mel - batch["mel"]).abs()[module(batch).frame_mask[:, None].expand_as(batch["mel"])]
    torch.testing.assert_close(found["mel"], off.mean())


def test_says_what_is_missing(corpus):
    batch = next(iter(corpus.whole_dataloader("train")))
    del batch["durations"]
    with pytest.raises(UserError, match="the data has no durations; name the"):
        training(corpus).losses(batch)


def test_a_trained_student_and_a_vocoder_are_exported_as_a_voice(corpus, vocoder, tmp_path):
    acoustic = tmp_path / "acoustic.safetensors"
    module = training(corpus)
    torch.nn.init.constant_(module.net.duration.linear.bias, 1.8)
    module.save_weights(acoustic, corpus)
    export(str(acoustic), tmp_path / "hum.onnx", vocoder=vocoder(), licence="CC0")
    voice = Voice.load(tmp_path / "hum.onnx")
    with pytest.raises(UserError, match=r"the voice hum cannot change its pitch, got 1\.2; leave it out"):
        voice.speak("hum", pitch=1.2)
    assert (voice.name, voice.speakers) == ("hum", ["s0", "s1"])


def test_a_voice_follows_tempo_alone(corpus):
    net, one = training(corpus).net.eval(), torch.ones(1)
    torch.nn.init.constant_(net.duration.linear.bias, 1.8)
    voice, ids, speaker = ForVoice(net, ("speed",)), torch.randint(1, 60, (1, 7)), torch.tensor([1])
    mel, durations = voice(ids, speaker, one, one, one)
    slow, _ = voice(ids, speaker, 0.5 * one, one, one)
    assert mel.shape[2] == int(durations.sum()) and abs(slow.shape[2] - 2 * mel.shape[2]) <= 1
    same, _ = voice(ids, speaker, one, 1.2 * one, one)
    assert torch.equal(same, mel)


def test_from_a_corpus_to_a_voice_by_the_recipes(hums, tmp_path):
    few = ["--trainer.max_steps=1", "--trainer.enable_progress_bar=false"]
    few.append(f"--data.init_args.cache={tmp_path / 'cache'}")
    teacher = run("transformer-tts", "tiny", str(hums), tmp_path / "teacher", few)
    lessons = f"--data.init_args.teacher={teacher}"
    student = run("fastspeech", "tiny", str(hums), tmp_path / "student", [*few, lessons])
    net, about = load_trained(student)
    assert about["speakers"] == ["s0", "s1"] and net.speakers.num_embeddings == 2
    run("fastspeech", "tiny", str(hums), tmp_path / "student", ["--trainer.max_steps=2", *few[1:], lessons])
    assert not torch.equal(load_trained(student)[0].head.weight, net.head.weight)
    aligner = run("aligner", "tiny", str(hums), tmp_path / "aligner", few)
    told = f"--data.init_args.aligner={aligner}"
    run("fastspeech", "aligned-tiny", str(hums), tmp_path / "aligned", [*few, told])
    voice = trained_voice(tmp_path / "aligned")
    voice.about["symbols"] = "hˈʌm "
    torch.nn.init.constant_(voice.session.say.acoustic.net.duration.linear.bias, 1.8)
    plain, fast = voice.speak("hum", speaker="s1"), voice.speak("hum", speed=2.0, speaker="s1")
    assert fast.seconds < 0.7 * plain.seconds


# The claims


def speeds(*ratios):
    frames = (100, 300, 600)
    return [
        {"frames": n, "teacher": r * 0.1, "student": 0.1, "vocoder": 0.1} for n, r in zip(frames, ratios, strict=True)
    ]


def control(f0=1.0, length=1.0):
    return [{"speed": speed, "f0": f0, "length": length} for speed in reproduce.SPEEDS]


@pytest.mark.parametrize(
    ("ratios", "tempo", "verdict"),
    [
        ((20, 45, 80), control(1.02, 0.98), "reproduced"),
        ((20, 45, 50), control(), "direction only"),
        ((45, 20, 80), control(), "direction only"),
        ((20, 45, 80), control(1.2), "direction only"),
        ((20, 45, 80), control(float("nan")), "direction only"),
        ((20, 45, 80), control(1.0, 1.1), "direction only"),
        ((20, 45, 80), [], "direction only"),
        ((0.5, 45, 80), control(1.2), "not reproduced"),
    ],
)
def test_the_verdict_follows_from_the_figures(ratios, tempo, verdict):
    assert reproduce.judge(speeds(*ratios), tempo) == verdict
    trained = {"aligned": [0.4, 0.5], "taught": [0.5, 0.6], "real": [0.6, 0.7]}
    told = reproduce.report(speeds(*ratios), tempo, trained, 0.8, "nothing")
    assert told.verdict == verdict and "0.550 taught" in told.measured and "0.650 by real" in told.measured
    assert reproduce.ratio(speeds(*ratios)[1]) == pytest.approx(ratios[1])
    assert reproduce.ratio(speeds(*ratios)[1], whole=True) == pytest.approx((ratios[1] + 1) / 2)


def test_tempo_is_compared_by_length_and_pitch(corpus, monkeypatch):
    monkeypatch.setattr(Speech, "n_speakers", 1, raising=False)
    monkeypatch.setattr(reproduce, "STUDENT", SIZE)
    monkeypatch.setattr(reproduce, "griffin_lim", lambda mel, spec: sawtooth(mel.shape[2] * spec.hop))
    model = reproduce.make(corpus, 10)
    torch.nn.init.constant_(model.net.duration.linear.bias, 2.5)
    for row in reproduce.tempo(model, corpus):
        assert row["length"] == pytest.approx(1, abs=0.05) and row["f0"] == pytest.approx(1, abs=0.02)


def sawtooth(samples):
    time = torch.arange(samples) / 24_000
    return sum(torch.sin(2 * torch.pi * 150 * k * time) / k for k in range(1, 20))[None] * 0.2


@pytest.mark.data
def test_measures_on_real_speech(monkeypatch, kokoro):
    small = {"STUDENT": SIZE, "TEACHER": TEACHER, "SEEDS": 1, "LENGTHS": (6, 12), "SAID": 1}
    for name, value in small.items():
        monkeypatch.setattr(reproduce, name, value)
    layers = {"depth": 1, "heads": 1, "hidden": 8}
    tiny = {"dim": 8, "encoder": layers, "decoder": layers}
    for name in ("fastspeech", "transformer_tts_teacher"):
        made = getattr(reproduce, name)
        monkeypatch.setattr(reproduce, name, lambda n, made=made: made(n, **tiny))
    found = reproduce.measure(0.02, kokoro)
    assert set(found.details["held_out"]) == set(reproduce.ARMS) and 0 < found.details["focus"] <= 1
    assert len(found.details["speeds"]) == 2 and len(found.details["tempo"]) == len(reproduce.SPEEDS)
