"""Training DelightfulTTS on batches of a corpus, keeping it, speaking with HiFiNet, and judging its claims."""

import copy
import json

import numpy as np
import pytest
import torch
from lightning import Trainer, seed_everything

from vitalk.cli.export import export
from vitalk.errors import UserError
from vitalk.experiments import budget, short_run
from vitalk.speech.features import Speech
from vitalk.speech.mel import mel_spec
from vitalk.speech.vocoder.generators import create, save_vocoder
from vitalk.speech.voice import Voice
from vitalk.systems.delightfultts import reproduce, wideband
from vitalk.systems.delightfultts.training import DelightfulTTSTraining, ForVoice, load_for_voice, load_trained
from vitalk.trained import trained_voice
from vitalk.training import run

BLOCKS = {"depth": 1, "heads": 2, "kernel": 3}
SIZE = {"dim": 16, "encoder": BLOCKS, "decoder": BLOCKS, "utterance_dim": 6, "tokens": 4,
        "reference": {"channels": [8, 8], "strides": [2, 2], "gru": 8}}  # fmt: skip
VOCODER = {"dim": 16, "intermediate": 32, "layers": 1}


@pytest.fixture(scope="module")
def corpus(aligned):
    return aligned(mel="16k")


def training(corpus, **options):
    told = {"variant": "small", "model_args": SIZE, "warmup_steps": 2, **options}
    module = DelightfulTTSTraining(corpus.n_symbols, corpus.n_speakers, **told)
    module.build(*corpus.spreads())
    return module


def quiet(steps, **options):
    return Trainer(
        accelerator="cpu", max_steps=steps, max_epochs=-1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False, **options,
    )  # fmt: skip


def batch_of(corpus):
    return next(iter(corpus.whole_dataloader("train")))


def test_the_losses_fall(corpus):
    seed_everything(0, verbose=False)
    module = training(corpus, schedule="cosine", lr=1e-2, mix_from=0.5)
    before = module.eval().losses(batch_of(corpus))
    with budget("test", 1):
        short_run(module.train(), corpus, 40)
    after = module.eval().losses(batch_of(corpus))
    assert set(after) == {"mel", "ssim", "duration", "pitch", "utterance", "phoneme"}
    assert after["mel"] < 0.7 * before["mel"] and after["duration"] < before["duration"]


@pytest.mark.parametrize("variant", ["paper", "voicesmith", "multilingual", "coqui"])
def test_every_variant_trains(corpus, variant):
    gates = {"speaker_dim": 4, "language_dim": 2} if variant in ("voicesmith", "multilingual") else {"speaker_dim": 4}
    size = {**SIZE, **({} if variant == "paper" else gates)}
    module = training(corpus, variant=variant, model_args=size, languages=[0, 1] if "language_dim" in size else None)
    loss, found = module.loss(batch_of(corpus))
    loss.backward()
    assert torch.isfinite(loss) and ("energy" in found) == (variant == "coqui")
    assert module.net.speakers.weight.grad.abs().sum() > 0
    if "language_dim" in size:
        assert module.net.languages.weight.grad.abs().sum(1).min() > 0, "the second speaker's language is the second"
    weights = {"utterance": 0.5, "phoneme": 0.5}
    total = sum(weights.get(name, 1) * value for name, value in found.items())
    torch.testing.assert_close(loss, total)


def test_predicted_prosody_is_mixed_in_at_the_end(corpus, monkeypatch):
    module = training(corpus, mix_from=0.5)
    assert module.train()._mixed(100) is None, "without a trainer there is no end"
    module._trainer = type("Trainer", (), {"estimated_stepping_batches": 10, "global_step": 4})()
    assert module._mixed(100) is None
    module._trainer.global_step = 5
    assert 20 < int(module._mixed(100).sum()) < 80
    assert module.eval()._mixed(100) is None


def test_an_aligner_inside_learns_along(corpus):
    seed_everything(0, verbose=False)
    module = training(corpus, model_args={**SIZE, "aligner": True}, binarise_from=0)
    batch = {name: value for name, value in batch_of(corpus).items() if name != "durations"}
    found = module.losses(batch)
    assert {"forward_sum", "binarisation"} <= set(found)
    sum(found.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.net.aligner.parameters())
    _, targets, _ = module.told(batch)
    assert torch.equal(targets.durations.sum(1), batch["mel_lengths"])
    assert set(module.losses(batch_of(corpus))) & {"forward_sum"} == set(), "durations of the data come first"


def test_kept_and_loaded_it_says_the_same(corpus, tmp_path):
    module = DelightfulTTSTraining(corpus.n_symbols, corpus.n_speakers, "small", SIZE, languages=[1, 0])
    trainer = quiet(2, num_sanity_val_steps=0)
    trainer.fit(module, datamodule=corpus)
    assert {"val/mel", "val/mel_predicted", "val/utterance"} <= set(trainer.callback_metrics)
    module.save_weights(tmp_path / "model.safetensors", corpus)
    net, about = load_trained(tmp_path / "model.safetensors")
    assert about.pop("follows") == ["speed", "pitch", "energy"]
    assert about == {"mel": "16k", "lang": "en-us", "speakers": ["s0", "s1"], "symbols": corpus.symbols()}
    ids, speaker = torch.randint(1, 60, (1, 7)), torch.tensor([1])
    factors = [torch.tensor([v]) for v in (0.9, 1.1, 1.0)]
    say, _ = load_for_voice(tmp_path / "model.safetensors")
    mel, durations = say(ids, speaker, *factors)
    torch.testing.assert_close(mel, ForVoice(module.net.eval(), torch.tensor([1, 0]))(ids, speaker, *factors)[0])
    own = net(ids, speaker=speaker, language=torch.tensor([0]), speed=0.9, pitch_factor=1.1)
    torch.testing.assert_close(mel, own.mel)
    assert mel.shape[2] == int(durations.sum())


@pytest.fixture
def files(corpus, tmp_path, monkeypatch):
    """The model.safetensors of an acoustic model, and of a HiFiNet for it."""
    monkeypatch.setattr(Speech, "symbols", lambda _: "")
    module = training(corpus)
    torch.nn.init.constant_(module.net.duration.linear.bias, 1.8)
    paths = tmp_path / "acoustic.safetensors", tmp_path / "vocoder.safetensors"
    module.save_weights(paths[0], corpus)
    save_vocoder(paths[1], create("hifinet-istft", mel_spec("16k"), VOCODER), "hifinet-istft", VOCODER, "16k")
    return paths


def test_speaks_48_khz_with_hifinet_and_16_khz_without(files):
    acoustic, vocoder = files
    voice = trained_voice(acoustic, vocoder)
    audio = voice.speak("A hum.", speaker="s1")
    assert voice.rate == audio.rate == 48_000 and len(audio.samples) % 600 == 0 and audio.rms() > -70
    plain = trained_voice(acoustic)
    assert plain.rate == 16_000
    sound = plain.speak("A hum.", speaker="s1")
    assert sound.seconds == pytest.approx(audio.seconds), "the same frames"
    with pytest.raises(UserError, match=r"has no speaker s3; it has s0, s1"):
        voice.speak("Hum.", speaker="s3")


def test_the_voice_of_torch_gives_the_vocoders_own_samples(files):
    voice = trained_voice(*files)
    say = voice.session.say
    fed = {"ids": torch.randint(1, 60, (1, 9)), "speaker": torch.tensor([0])}
    fed |= {name: torch.ones(1) for name in ("speed", "pitch", "energy")}
    real, imag = voice.session.run([], {name: value.numpy() for name, value in fed.items()})
    from vitalk.speech.vocoder.istft_numpy import overlap_add

    got = overlap_add(real[0] + 1j * imag[0], voice.about["n_fft"], voice.about["hop"])
    with torch.inference_mode():
        np.testing.assert_allclose(got, say(**fed)[0].numpy(), atol=1e-5, rtol=1e-4)


def test_is_exported_as_a_voice_of_48_khz(files, tmp_path):
    acoustic, vocoder = files
    export(str(acoustic), tmp_path / "hum.onnx", vocoder=vocoder, licence="CC0")
    voice = Voice.load(tmp_path / "hum.onnx")
    assert (voice.rate, voice.speakers, voice.about["hop"], voice.about["n_fft"]) == (48_000, ["s0", "s1"], 600, 2400)
    ours, theirs = (v.speak("A hum.", speaker="s1") for v in (voice, trained_voice(acoustic, vocoder)))
    assert len(ours.samples) == len(theirs.samples)


def test_the_recipe_trains_resumes_and_speaks(hums, tmp_path):
    cache = f"--data.init_args.cache={tmp_path / 'cache'}"
    few = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", cache]
    mel = "--data.init_args.mel=16k"
    aligner = run("aligner", "tiny", str(hums), tmp_path / "aligner", [*few, mel, "--trainer.max_steps=1"])
    told = [*few, f"--data.init_args.aligner={aligner}"]
    run("delightfultts", "tiny", str(hums), tmp_path / "run", [*told, "--trainer.max_steps=1"], interval=1)
    path = run("delightfultts", "tiny", str(hums), tmp_path / "run", [*told, "--trainer.max_steps=2"], interval=1)
    state = torch.load(tmp_path / "run" / "last.ckpt", weights_only=False)
    assert state["global_step"] == 2 and (tmp_path / "run" / "best.ckpt").exists()
    assert trained_voice(tmp_path / "run").rate == 16_000
    tune = ["--trainer.max_steps=1", "--trainer.accelerator=cpu", "--data.init_args.workers=0",
            "--data.init_args.held_out=0.1", "--model.init_args.variant=small", f"--model.init_args.init={path}",
            "--model.init_args.model_args=" + json.dumps(load_args(path))]  # fmt: skip
    tuned = run("delightfultts", "finetune", str(hums), tmp_path / "tuned", [*told, *tune])
    before, after = (load_trained(p)[0].state_dict() for p in (path, tuned))
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert moved == {"speakers.weight"}
    mean = before["speakers.weight"].mean(0)
    assert (after["speakers.weight"] - mean).abs().max() < 1e-3, "new voices begin as the mean of those known"


def load_args(path):
    from vitalk.speech.acoustic.training import read_trained

    return json.loads(read_trained(path)[0]["arguments"])["model_args"]


def test_says_what_is_missing(corpus, tmp_path):
    batch = {name: value for name, value in batch_of(corpus).items() if name != "durations"}
    with pytest.raises(UserError, match=r"train an aligner .* or set model_args\.aligner"):
        training(corpus).loss(batch)
    with pytest.raises(UserError, match="3 languages are named for 2 speakers"):
        training(corpus, languages=[0, 1, 2])
    training(corpus).save_weights(tmp_path / "model.safetensors", corpus)
    odd = training(corpus, model_args={**SIZE, "dim": 8})
    with pytest.raises(UserError, match="does not fit this model"):
        odd._start_from(str(tmp_path / "model.safetensors"))
    with pytest.raises(UserError, match="speaker_steps=5 needs speakers to tune"):
        alone = DelightfulTTSTraining(corpus.n_symbols, 1, "small", SIZE, speaker_steps=5)
        alone.build(*corpus.spreads())


# The measurement


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(
        reproduce, "SIZE", {k: v for k, v in SIZE.items() if not isinstance(v, dict) or k == "reference"}
    )
    monkeypatch.setattr(reproduce, "BLOCKS", BLOCKS)
    monkeypatch.setattr(Speech, "n_speakers", 1, raising=False)
    monkeypatch.setattr(wideband, "SIZE", {**VOCODER, "n_fft": 1200, "hop": 300})


def test_arms_are_of_one_size(corpus, small, monkeypatch):
    monkeypatch.setattr(reproduce, "SIZE", {**reproduce.SIZE, "dim": 64})
    nets = {name: reproduce.make(name, corpus, 10).net for name in reproduce.ARMS}
    counts = {name: reproduce.parameters(net.encoder) + reproduce.parameters(net.decoder) for name, net in nets.items()}
    assert counts["conformer"] == counts["attention first"] == counts["swish"]
    assert counts["fft"] == pytest.approx(counts["conformer"], rel=0.01)
    assert not nets["no prosody"].prosody and len(nets["conformer"].prosody) == 2
    assert list(nets["attention first"].encoder.blocks[0].parts) == ["feed1", "attn", "conv1", "feed2"]


def test_errors_are_of_held_out_speech(corpus, small):
    data = copy.copy(corpus)
    data.frames, data.train = dict(corpus.frames), list(corpus.train)
    reproduce.shorten(data)
    assert len(data.train) < len(corpus.train) and len(data.train) == len(data.frames["train"])
    found = reproduce.errors(reproduce.make("conformer", data, 10), data)
    names = {"heard", "predicted", "utterance", "utterance zero", "phoneme", "phoneme zero"}
    assert names <= set(found) <= names | {"longer"} and all(np.isfinite(list(found.values())))
    assert set(reproduce.errors(reproduce.make("no prosody", data, 10), data)) - {"longer"} == {"heard", "predicted"}
    sizes = [len(b["ids"]) for longer in (False, True) for b in reproduce.held_out(data, longer)]
    assert sum(sizes) == len(data.test)


def test_bands_are_compared_with_the_recording():
    waves = 0.1 * torch.randn(2, 24_000)
    found = wideband.compare(lambda _: waves, waves)
    assert found["hifinet"]["above"] == found["hifinet"]["below"] == 0
    assert found["resampled"]["below"] < 2 < 20 < found["resampled"]["above"] and found["resampled"]["level"] < -20
    assert found["griffin-lim"]["below"] > found["resampled"]["below"]


def row(conformer=0.40, fft=0.42, predicted=0.43, nothing=0.45, zero=0.8):
    ours = {"heard": conformer, "predicted": predicted, "utterance": 0.6, "utterance zero": zero, "phoneme": 0.7,
            "phoneme zero": zero, "longer": 0.5}  # fmt: skip
    others = {"attention first": 0.41, "swish": 0.41, "fft": fft, "no prosody": nothing}
    return {"conformer": ours, **{name: {"heard": v, "predicted": v, "longer": v} for name, v in others.items()}}


BANDS = {
    "hifinet": {"above": 9.0, "below": 7.0, "level": -1.0},
    "resampled": {"above": 30.0, "below": 0.2, "level": -30.0},
    "griffin-lim": {"above": 30.0, "below": 8.0, "level": -30.0},
}
SILENT = {**BANDS, "hifinet": {"above": 31.0, "below": 7.0, "level": -30.0}}


@pytest.mark.parametrize(
    ("rows", "bands", "verdict"),
    [
        ([row(), row()], BANDS, "reproduced"),
        ([row(), row(fft=0.399)], BANDS, "direction only"),
        ([row(), row(predicted=0.46)], BANDS, "direction only"),
        ([row(zero=0.65), row()], BANDS, "direction only"),
        ([row(fft=0.39), row(fft=0.39)], BANDS, "not reproduced"),
        ([row(), row()], SILENT, "not reproduced"),
        ([row()], BANDS, "not reproduced"),  # one seed shows nothing
    ],
)
def test_the_verdict_follows_from_the_figures(rows, bands, verdict):
    assert reproduce.judge(rows, bands) == verdict
    told = reproduce.report(rows, bands, "nothing")
    assert told.verdict == verdict and f"{len(rows)} seeds" in told.data and "no 48 kHz speech" in told.data
    assert "0.400 with prosody heard" in told.measured and "Griffin-Lim 8.0 dB" in told.baseline
    json.dumps(told.details)


@pytest.mark.data
def test_measures_on_real_speech(monkeypatch, kokoro, small):
    monkeypatch.setattr(reproduce, "SEEDS", 1)
    monkeypatch.setattr(reproduce, "PILOT", 1)
    found = reproduce.measure(0.05, kokoro)
    assert found.verdict == "not reproduced" and set(found.details["seeds"][0]) == set(reproduce.ARMS)
    assert set(found.details["bands"]) == {"hifinet", "resampled", "griffin-lim"}
