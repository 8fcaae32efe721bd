"""Training FastSpeech 2 on batches of a corpus, keeping it, and judging its claim."""

import pytest
import torch
from lightning import Trainer, seed_everything

from vitalk.cli.export import export
from vitalk.errors import UserError
from vitalk.experiments import budget, short_run
from vitalk.speech.align.training import AlignerTraining
from vitalk.speech.features import Speech
from vitalk.speech.voice import Voice
from vitalk.systems.fastspeech2 import reproduce
from vitalk.systems.fastspeech2.training import FastSpeech2Training, ForVoice, load_trained
from vitalk.training import run

BLOCKS = {"depth": 1, "hidden": 16, "kernels": (3, 1)}
SIZE = {"dim": 16, "encoder": BLOCKS, "decoder": BLOCKS}


@pytest.fixture(scope="module")
def corpus(aligned):
    return aligned()


def training(corpus, steps=1, **options):
    module = FastSpeech2Training(corpus.n_symbols, corpus.n_speakers, warmup_steps=2, model_args=SIZE, **options)
    module.build(*corpus.spreads())
    return module


@pytest.mark.parametrize("schedule", ["noam", "cosine"])
def test_the_losses_fall(corpus, schedule):
    seed_everything(0, verbose=False)
    module = training(corpus, variant="small", schedule=schedule, lr=1e-2)
    batch = next(iter(corpus.whole_dataloader("train")))
    before = float(module.eval().loss(batch)[0])
    with budget("test", 1):
        short_run(module.train(), corpus, 30)
    assert float(module.eval().loss(batch)[0]) < 0.7 * before


@pytest.mark.parametrize("pitch", ["cwt", "frame", "phoneme"])
@pytest.mark.parametrize("energy", ["frame", "phoneme"])
def test_every_level_of_pitch_and_energy_trains(corpus, pitch, energy):
    module = FastSpeech2Training(
        corpus.n_symbols, corpus.n_speakers, model_args={**SIZE, "pitch": pitch, "energy": energy}
    )
    module.build(*corpus.spreads())
    loss, found = module.loss(next(iter(corpus.whole_dataloader("train"))))
    loss.backward()
    names = {"spectrogram", "voiced", "pitch_mean", "pitch_std"} if pitch == "cwt" else {"pitch"}
    assert set(found) == {"mel", "duration", "energy"} | names and torch.isfinite(loss)
    assert module.net.pitch.predictor.linear.weight.grad.abs().sum() > 0


def test_weights_of_losses_are_heeded(corpus):
    batch = next(iter(corpus.whole_dataloader("train")))
    module = training(corpus, variant="small", weights={"mel": 0.0, "duration": 2.0}).eval()
    total, found = module.loss(batch)
    torch.testing.assert_close(total, 2 * found["duration"] + found["energy"] + found["pitch"])


def test_the_network_is_built_from_the_data_kept_and_loaded(corpus, tmp_path):
    module = FastSpeech2Training(corpus.n_symbols, corpus.n_speakers, "small", SIZE)
    trainer = Trainer(
        accelerator="cpu", max_steps=2, max_epochs=-1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=corpus)
    module.save_weights(tmp_path / "model.safetensors", corpus)
    net, about = load_trained(tmp_path / "model.safetensors")
    assert about.pop("follows") == ["speed", "pitch", "energy"]
    assert about == {"mel": "vitalk", "lang": "en-us", "speakers": ["s0", "s1"], "symbols": corpus.symbols()}
    ids, speaker = torch.randint(1, 60, (1, 7)), torch.tensor([1])
    factors = [torch.tensor([v]) for v in (0.9, 1.1, 1.0)]
    mel, durations = ForVoice(net)(ids, speaker, *factors)
    expected, _ = ForVoice(module.net.eval())(ids, speaker, *factors)
    torch.testing.assert_close(mel, expected)
    assert mel.shape[2] == int(durations.sum())


def test_a_trained_network_and_a_vocoder_are_exported_as_a_voice(corpus, vocoder, tmp_path):
    acoustic = tmp_path / "acoustic.safetensors"
    module = training(corpus, variant="small")
    torch.nn.init.constant_(module.net.duration.linear.bias, 1.8)
    module.save_weights(acoustic, corpus)
    export(str(acoustic), tmp_path / "hum.onnx", vocoder=vocoder(), licence="CC0")
    voice = Voice.load(tmp_path / "hum.onnx")
    assert (voice.name, voice.lang, voice.speakers) == ("hum", "en-us", ["s0", "s1"])
    assert voice.about["symbols"] == corpus.symbols() and voice.about["licence"] == "CC0"
    stored = sum(p.numel() for p in module.net.parameters()) * 2
    assert (tmp_path / "hum.onnx").stat().st_size < 1.5 * stored + 300_000
    with pytest.raises(UserError, match="name the vocoder"):
        export(str(acoustic), tmp_path / "x.onnx")
    with pytest.raises(UserError, match="holds no vocoder"):
        export(str(acoustic), tmp_path / "x.onnx", vocoder=acoustic)
    with pytest.raises(UserError, match="hears mels of preset vocos"):
        export(str(acoustic), tmp_path / "x.onnx", vocoder=vocoder("vocos"))
    assert not (tmp_path / "x.onnx").exists()


def test_from_a_corpus_to_a_voice_by_the_recipes(hums, tmp_path):
    cache = f"--data.init_args.cache={tmp_path / 'cache'}"
    few = ["--trainer.max_steps=1", "--trainer.enable_progress_bar=false"]
    aligner = run("aligner", "tiny", str(hums), tmp_path / "aligner", [*few, cache])
    assert AlignerTraining.load(aligner).hparams.n_symbols > 0
    told = f"--data.init_args.aligner={aligner}"
    acoustic = run("fastspeech2", "tiny", str(hums), tmp_path / "acoustic", [*few, cache, told])
    vocoder = run("vocoder", "tiny", str(hums), tmp_path / "vocoder", [*few, cache, "--data.init_args.segment=1200"])
    export(str(acoustic), tmp_path / "hum.onnx", vocoder=vocoder)
    assert Voice.load(tmp_path / "hum.onnx").speakers == ["s0", "s1"]


def test_symbols_that_are_rare_do_not_count(corpus):
    assert set(corpus.symbols(least=1)) == set(" hˈʌm") and corpus.symbols(least=10**6) == ""


def test_data_without_durations_is_refused(corpus):
    batch = next(iter(corpus.whole_dataloader("train")))
    del batch["durations"]
    with pytest.raises(UserError, match="train an aligner"):
        training(corpus, variant="small").loss(batch)


def test_arms_differ_only_in_what_the_decoder_is_told(corpus, monkeypatch):
    monkeypatch.setattr(reproduce, "SIZE", SIZE)
    monkeypatch.setattr(Speech, "n_speakers", 1, raising=False)
    batch = next(iter(corpus.whole_dataloader("train")))
    seen = {name: reproduce.make(name, corpus, 10).targets(batch) for name in reproduce.ARMS}
    for name, left_out in reproduce.ARMS.items():
        for quantity in ("pitch", "energy"):
            told = getattr(seen[name], quantity)
            if quantity in left_out:
                assert told.unique().numel() == 1
            else:
                torch.testing.assert_close(told, getattr(seen["full"], quantity))


@pytest.mark.parametrize(
    ("held_out", "verdict"),
    [
        ((0.40, 0.41, 0.45, 0.47), "reproduced"),
        ((0.40, 0.46, 0.45, 0.47), "direction only"),
        ((0.40, 0.39, 0.40, 0.40), "not reproduced"),
    ],
)
def test_the_verdict_follows_from_the_figures(held_out, verdict):
    rows = {
        name: [(0.3, value + d) for d in (0.0, 0.001, 0.002)]
        for name, value in zip(reproduce.ARMS, held_out, strict=True)
    }
    for i, name in enumerate(reproduce.ARMS):
        rows[name][0] = (0.3, rows[name][0][1] + 0.0005 * i)
    assert reproduce.judge(rows, 3.0) == verdict
    assert reproduce.judge(rows, 1.9) == ("direction only" if verdict == "reproduced" else verdict)
    paces = {"own": 1.0, "teacher": 2.0, "student": 0.75}
    told = reproduce.report(rows, "nothing", {"pitch": {"model": 20.0, "mean": 30.0}}, paces)
    assert "take 2.8 times as long together" in told.measured
    assert told.verdict == verdict and told.details["predicted"]["pitch"] == {"model": 20.0, "mean": 30.0}
    assert f"by {held_out[0] - 0.299:.3f} with both" in told.measured and "3 seeds" in told.data
    assert reproduce.judge({name: r[:1] for name, r in rows.items()}, 3.0) == "not reproduced"  # one seed shows nothing


def test_predictions_are_compared_with_means(corpus, monkeypatch):
    monkeypatch.setattr(reproduce, "SIZE", SIZE)
    monkeypatch.setattr(Speech, "n_speakers", 1, raising=False)
    model = reproduce.make("full", corpus, 10)
    for head in (model.net.duration, model.net.pitch.predictor, model.net.energy.predictor):
        for p in head.linear.parameters():
            torch.nn.init.zeros_(p)
    found = reproduce.predictions(model, corpus)
    batch = next(iter(corpus.whole_dataloader("test")))
    there = batch["durations"] > 0
    # Zeros mean no frame at all, and the corpus' mean energy.
    assert found["duration"]["model"] == pytest.approx(float(batch["durations"][there].float().mean()))
    assert found["energy"]["model"] == pytest.approx(found["energy"]["mean"], rel=1e-4)
    assert 0 < found["pitch"]["mean"] < found["pitch"]["model"] < 200
    usual = reproduce.usual_durations(corpus)
    trained = [row for clip in range(len(corpus.train)) for row in [corpus.whole_dataloader("train").dataset[clip]]]
    hum = int(trained[0]["ids"][3])
    lasts = torch.cat([row["durations"][(row["ids"] == hum) & (row["durations"] > 0)] for row in trained]).float()
    assert usual[hum] == pytest.approx(float(lasts.mean())) and usual.shape == (corpus.n_symbols,)


@pytest.mark.data
def test_measures_on_real_speech(monkeypatch, kokoro):
    monkeypatch.setattr(reproduce, "SIZE", SIZE)
    monkeypatch.setattr(reproduce, "SEEDS", 1)
    monkeypatch.setattr(reproduce, "TIMED", 3)
    found = reproduce.measure(0.05, kokoro)
    assert found.verdict == "not reproduced" and len(found.details["held_out"]) == 4
    assert set(found.details["predicted"]) == {"duration", "energy", "pitch"}
    assert all(seconds > 0 for seconds in found.details["step_seconds"].values())
