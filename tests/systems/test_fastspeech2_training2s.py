"""Training FastSpeech 2s: slices, the discriminator's turn, resuming; and trained networks that speak in torch."""

import pytest
import torch
import yaml
from lightning import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint

from vitalk.errors import UserError
from vitalk.recipes import load_recipe
from vitalk.speech.acoustic.gated import fold
from vitalk.speech.acoustic.variance import Spread
from vitalk.speech.align.training import AlignerTraining
from vitalk.speech.features import Speech
from vitalk.speech.mel import mel_spec
from vitalk.speech.synthesizer import Prompt
from vitalk.speech.text.front import Front
from vitalk.systems.fastspeech2.speaking import trained_voice
from vitalk.systems.fastspeech2.training import FastSpeech2Training, load_trained
from vitalk.systems.fastspeech2.training2s import FastSpeech2sTraining, load_trained2s
from vitalk.training import run

BLOCKS = {"depth": 1, "hidden": 16, "kernels": (3, 1), "dropout": 0.0}
SIZE = {"dim": 16, "encoder": BLOCKS, "decoder": BLOCKS, "predictor": {"dropout": 0.0}}
WAVES = {"decoder_args": {"channels": 8, "layers": 4, "cycles": 2}, "discriminator_args": {"channels": 4, "layers": 4}}
HOP = 300


@pytest.fixture(scope="module")
def corpus(aligned):
    return aligned(batch_frames=200, wave=True)


@pytest.fixture
def batch(corpus):
    return next(iter(corpus.whole_dataloader("train")))


def training(corpus, build=True, **options):
    defaults = {"variant": "small", "model_args": SIZE, "slice_frames": 8, "gan_start": 2, "warmup_steps": 2}
    torch.manual_seed(1)
    module = FastSpeech2sTraining(corpus.n_symbols, corpus.n_speakers, **{**WAVES, **defaults, **options})
    if build:
        module.build(*corpus.spreads())
    return module


def quiet(steps, **options):
    return Trainer(
        accelerator="cpu", max_steps=steps, max_epochs=-1, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False, num_sanity_val_steps=0,
        **{"logger": False, "enable_checkpointing": False, "limit_val_batches": 0, **options},
    )  # fmt: skip


class Record(Callback):
    def __init__(self):
        self.rows, self.rates, self.judges = [], [], []

    def on_train_batch_end(self, trainer, module, *_):
        self.rows.append({k: float(v) for k, v in trainer.callback_metrics.items()})
        self.rates.append([o.param_groups[0]["lr"] for o in trainer.optimizers])
        self.judges.append(torch.nn.utils.parameters_to_vector(module.discriminator.parameters()).detach().clone())


def test_the_discriminator_joins_when_it_is_time(corpus):
    record = Record()
    trainer = quiet(5, callbacks=[record], limit_val_batches=1, val_check_interval=5, check_val_every_n_epoch=None)
    module = training(corpus, build=False, gan_start=3, gan_lr=5e-4, schedule="noam", lr=1e-3)
    last = module.discriminator.layers[-1]
    with torch.no_grad():  # every score is a quarter
        last.parametrizations.weight.original0.zero_()
        last.bias.fill_(0.25)
    trainer.fit(module, datamodule=corpus)
    assert trainer.global_step == len(record.rows) == 5, "a step is one of the generator"
    acoustic = {"mel", "duration", "pitch", "energy", "stft"}
    assert {f"train/{name}" for name in acoustic} == set(record.rows[2])
    assert set(record.rows[3]) - set(record.rows[2]) == {"train/adversarial", "train/discriminator", "train/gap"}
    assert {f"val/{name}" for name in acoustic} <= set(trainer.callback_metrics)
    assert record.rows[3]["train/adversarial"] == pytest.approx(0.75**2)
    assert record.rows[3]["train/discriminator"] == pytest.approx(0.75**2 + 0.25**2)
    moved = [bool((a != b).any()) for a, b in zip(record.judges, record.judges[1:], strict=False)]
    assert moved == [False, False, True, True]
    # Step 5 of the generator's schedule, whose peak is at 2; the discriminator's warm-up is over by then.
    assert record.rates[3][0] == pytest.approx(1e-3 * (5 / 2) ** -0.5)
    assert record.rates[3][1] == pytest.approx(5e-4 * (5 / 2) ** -0.5)


def test_the_generator_learns_through_the_slice_alone(corpus, batch):
    module = training(corpus)
    starts = torch.full((len(batch["ids"]),), 5)
    fake, real, losses = module.slices(batch, starts)
    assert fake.shape == real.shape == (len(starts), 8 * HOP)
    assert torch.equal(real, batch["wave"][:, 5 * HOP : 13 * HOP])
    hidden = []
    module.net.decoder.upsample.register_forward_pre_hook(lambda _, given: hidden.append(given[0]))
    _, _, losses = module.slices(batch, starts)
    losses["stft"].backward()
    assert hidden[0].shape == (len(starts), 16, 8)
    for part in (module.acoustic.symbols, module.net.decoder.upsample, module.acoustic.energy.embedding):
        assert sum(p.grad.abs().sum() for p in part.parameters()) > 0
    assert all(p.grad is None for p in module.acoustic.head.parameters()), "the mel decoder is an aid"


def test_short_clips_are_silent_behind_their_end(corpus, batch):
    frames = int(batch["mel_lengths"].max()) + 20
    module = training(corpus, slice_frames=frames)
    fake, real, losses = module.slices(batch, torch.zeros(len(batch["ids"]), dtype=torch.int64))
    beyond = torch.arange(frames * HOP) >= HOP * batch["mel_lengths"][:, None]
    assert fake.shape == (len(beyond), frames * HOP) and not fake[beyond].any() and not real[beyond].any()
    assert losses["stft"].isfinite()


def test_weights_are_heeded_and_the_adversarial_loss_has_its_own(corpus):
    losses = {name: torch.tensor(1.0) for name in ("mel", "stft", "adversarial")}
    assert training(corpus).weigh(losses) == 6
    assert training(corpus, weights={"stft": 0.5, "adversarial": 1.0}).weigh(losses) == 2.5


def test_spectra_come_closer(corpus):
    seed_everything(0, verbose=False)
    record = Record()
    quiet(40, callbacks=[record]).fit(
        training(corpus, False, lr=5e-3, gan_start=30, schedule="cosine"), datamodule=corpus
    )
    stft = [row["train/stft"] for row in record.rows]
    assert sum(stft[-5:]) < 0.8 * sum(stft[:5])
    assert record.rows[-1]["train/discriminator"] < record.rows[29 + 1]["train/discriminator"]


@pytest.mark.parametrize("averaged", [False, True])
def test_a_resumed_run_ends_as_if_it_had_not_been_broken_off(corpus, tmp_path, averaged):
    def fit(checkpoint=None):
        seed_everything(0, verbose=False)
        callbacks = [ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=3, save_top_k=-1)]
        callbacks += [EMAWeightAveraging(decay=0.8)] if averaged else []
        trainer = quiet(6, callbacks=callbacks, enable_checkpointing=True)
        # Slices as long as the longest hum begin at 0, and nothing drops out: no chance that a checkpoint could lack.
        module = training(corpus, build=False, slice_frames=100)
        trainer.fit(module, datamodule=corpus, ckpt_path=checkpoint, weights_only=False)
        return module.state_dict(), trainer

    whole, _ = fit()
    resumed, trainer = fit(tmp_path / "step=3.ckpt")
    assert trainer.global_step == 6 and whole.keys() == resumed.keys()
    for key, value in whole.items():
        torch.testing.assert_close(resumed[key], value, atol=1e-5, rtol=1e-4, msg=key)


@pytest.mark.parametrize("pitch", ["cwt", "phoneme"])
def test_trains_in_half_precision(corpus, batch, pitch):
    module = training(corpus, model_args={**SIZE, "pitch": pitch})
    with torch.autocast("cpu", torch.bfloat16):
        fake, _, losses = module.slices(batch, torch.zeros(len(batch["ids"]), dtype=torch.int64))
    module.weigh(losses).backward()
    assert fake.dtype == torch.float32
    assert all(p.grad.isfinite().all() for p in module.net.parameters() if p.grad is not None)


# The recipe


def test_the_recipe_trains_resumes_and_speaks(hums, tmp_path, monkeypatch):
    monkeypatch.setattr(Speech, "symbols", lambda _: "")  # six hums show none often enough
    _, config = load_recipe("fastspeech2", "2s-tiny")
    AlignerTraining(320, text_dim=8, dim=8).save_weights(tmp_path / "aligner.safetensors")
    config["model"]["init_args"] |= {"model_args": SIZE, **WAVES, "slice_frames": 8, "gan_start": 1}
    config["data"]["init_args"] |= {
        "aligner": str(tmp_path / "aligner.safetensors"), "cache": str(tmp_path / "cache"), "batch_frames": 200,
        "held_out": 0.25,
    }  # fmt: skip
    config["trainer"] |= {"max_steps": 2, "enable_progress_bar": False, "enable_model_summary": False}
    recipe = tmp_path / "small.yaml"
    recipe.write_text(yaml.safe_dump({"presets": {"2s-tiny": config}}, default_flow_style=False))
    told = (str(recipe), "2s-tiny", str(hums), tmp_path / "run")
    target = run(*told, [], interval=1)
    first, _ = load_trained2s(target)
    assert run(*told, ["--trainer.max_steps=3"], interval=1) == target
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=False)["global_step"] == 3
    net, about = load_trained2s(target)
    assert about["speakers"] == ["s0", "s1"] and net.slice_frames == 8 and len(net.decoder.stack.layers) == 4
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), net.parameters(), strict=True))
    assert trained_voice(target).speak("Hum.").rate == 24_000


@pytest.mark.parametrize(
    ("preset", "waves", "judge"),
    [("2s-tiny", 635_697, 3_249), ("2s-cpu", 3_791_201, 25_057), ("2s-paper", 9_629_377, 99_265)],
)
def test_presets_build_what_they_name(preset, waves, judge):
    name, config = load_recipe("fastspeech2", preset)
    told, data = config["model"]["init_args"], config["data"]["init_args"]
    assert name == f"fastspeech2-{preset}" and data["wave"] and told.get("mel") == data.get("mel")
    assert told["gan_start"] < config["trainer"]["max_steps"]
    with torch.device("meta"):
        module = FastSpeech2sTraining(320, **told)
        net = module.build(Spread(5.0, 0.3, 60.0, 600.0, log=True), Spread(30.0, 30.0, 0.0, 300.0))
        fold(net), fold(module.discriminator)
    assert net.decoder.hop == mel_spec(told.get("mel", "vitalk")).hop
    assert [sum(p.numel() for p in part.parameters()) for part in (net.decoder, module.discriminator)] == [waves, judge]


# Speaking


@pytest.fixture
def files(corpus, vocoder, tmp_path, monkeypatch):
    """The model.safetensors of a FastSpeech 2s, of a FastSpeech 2, and of a vocoder."""
    monkeypatch.setattr(Speech, "symbols", lambda _: "")
    paths = [tmp_path / f"{name}.safetensors" for name in ("waves", "mels")]
    module = training(corpus)
    plain = FastSpeech2Training(corpus.n_symbols, corpus.n_speakers, "small", SIZE)
    plain.build(*corpus.spreads())
    for made, path in zip((module, plain), paths, strict=True):
        torch.nn.init.constant_(made.acoustic.duration.linear.bias, 1.5)
        made.save_weights(path, corpus)
    return module.eval(), (*paths, vocoder())


@torch.inference_mode()
def test_2s_speaks_what_it_was_kept_with(corpus, files):
    module, (waves, _, _) = files
    voice, said = trained_voice(waves), []
    assert (voice.rate, voice.speakers) == (24_000, ["s0", "s1"])
    for utterance in Front("en-us").utterances("A hum. Another hum!"):
        out = module.net(torch.tensor([utterance.ids]), speaker=torch.tensor([1]))
        assert out.acoustic.mel is None, "the mel decoder does not run"
        assert out.wave.shape[1] == HOP * int(out.acoustic.mel_lengths)
        said += [out.wave[0], torch.zeros(int(utterance.pause * 24_000))]
    audio = voice.synthesize("A hum. Another hum!", Prompt(speaker="s1"))
    wanted = torch.cat(said)
    assert audio.samples.shape == wanted.shape
    torch.testing.assert_close(torch.from_numpy(audio.samples), wanted, atol=1e-5, rtol=1e-4)
    assert len(voice.speak("Hum.", speed=0.5).samples) > 1.5 * len(voice.speak("Hum.").samples)


@torch.inference_mode()
def test_fastspeech2_speaks_with_a_vocoder(files):
    _, (_, mels, vocoder) = files
    audio = trained_voice(mels, vocoder).speak("A hum.")
    assert audio.rate == 24_000 and len(audio.samples) % HOP == 0 and audio.rms() > -70


def test_refuses_models_that_do_not_fit(files, vocoder, tmp_path):
    _, (waves, mels, vocos) = files
    with pytest.raises(UserError, match=r"waves\.safetensors makes waveforms itself; leave the vocoder"):
        trained_voice(waves, vocos)
    with pytest.raises(UserError, match=r"mels\.safetensors makes spectrograms; give the model\.safetensors of a voc"):
        trained_voice(mels)
    with pytest.raises(UserError, match=r"waves\.safetensors holds no vocoder"):
        trained_voice(mels, waves)
    with pytest.raises(UserError, match=r"holds no FastSpeech 2; give"):
        trained_voice(vocos, vocos)
    with pytest.raises(UserError, match=r"holds no FastSpeech 2s; give"):
        load_trained2s(mels)
    with pytest.raises(UserError, match=r"holds no FastSpeech 2; give"):
        load_trained(waves)
    with pytest.raises(UserError, match="no trained model at"):
        trained_voice(tmp_path / "none.safetensors")
    with pytest.raises(UserError, match="hears mels of preset vocos"):
        trained_voice(mels, vocoder("vocos"))
    with pytest.raises(UserError, match=r"has no speaker s3; it has s0, s1"):
        trained_voice(waves).speak("Hum.", speaker="s3")


# What cannot be trained


def test_says_what_is_missing(corpus, batch):
    with pytest.raises(UserError, match="slice_frames=3 is too short for spectra; give 4 or more"):
        training(corpus, slice_frames=3)
    starts = torch.zeros(len(batch["ids"]), dtype=torch.int64)
    module = training(corpus)
    for name, sentence in (("wave", "set data.init_args.wave to true"), ("durations", "train an aligner")):
        lacking = {key: value for key, value in batch.items() if key != name}
        with pytest.raises(UserError, match=sentence):
            module.slices(lacking, starts)
    with pytest.raises(UserError, match="the data's mel is not the model's, hifigan; give both the same"):
        training(corpus, mel="hifigan").slices(batch, starts)


def test_a_loss_that_is_no_number_ends_the_run(aligned):
    module = training(data := aligned(batch_frames=200, wave=True), weights={"stft": float("nan")})
    with pytest.raises(UserError, match="the loss became nan at step 0"):
        quiet(1).fit(module, datamodule=data)
