"""Vocoders that train: both stages, what they log, resuming, and what they refuse."""

import pytest
import torch
import yaml
from lightning import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint
from torch.utils.data import DataLoader

from tests.speech.vocoder.fixtures import count, tones
from vitalk.errors import UserError
from vitalk.recipes import load_recipe
from vitalk.speech.mel import PRESETS, log_mel
from vitalk.speech.vocoder import training
from vitalk.speech.vocoder.discriminators import MultiPeriodDiscriminator, MultiScaleDiscriminator
from vitalk.speech.vocoder.generators import load_vocoder
from vitalk.speech.vocoder.training import Opponents, VocoderTraining, degraded

TINY = {"generator_args": {"dim": 32, "intermediate": 64, "layers": 2}, "lr": 3e-3}
ISTFT = {"channels": 16, "resblock": 2}


def loader(count, batch=4, samples=3600):
    waves = torch.cat([tones(batch, samples, seed=seed) for seed in range(count)])
    return DataLoader(waves, batch)


def quiet(**options):
    defaults = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "max_epochs": -1}
    return Trainer(
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, **defaults | options
    )  # fmt: skip


class Record(Callback):
    def __init__(self):
        self.rows = []

    def on_train_batch_end(self, trainer, module, *_):
        rates = [group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups]
        self.rows.append(({k: float(v) for k, v in trainer.callback_metrics.items()}, rates))


def test_a_tiny_vocoder_learns_in_both_stages():
    seed_everything(0, verbose=False)
    model = VocoderTraining(**TINY, gan_lr=3e-3, gan_start=35, gan_ramp=15, degrade=0.5)
    record = Record()
    trainer = quiet(max_steps=60, callbacks=[record])
    trainer.fit(model, loader(10, batch=2), loader(1))
    assert trainer.global_step == len(record.rows) == 60, "a step is one of the generator"
    mel = [row["train/mel"] for row, _ in record.rows]
    assert sum(mel[-5:]) < 0.6 * sum(mel[:5])
    first, last = record.rows[0][0], record.rows[-1][0]
    assert {"train/mel", "train/stft"} == set(first)
    new = {"train/adversarial", "train/features", "train/discriminator", "train/gap", "val/mel_l1", "val/stft"}
    assert new <= set(last)
    # A discriminator that learns nothing stays at a hinge loss of 2 for each of the two.
    assert last["train/discriminator"] < 3.9 and last["train/gap"] > 0


def test_rates_follow_the_cosine_and_fall_at_the_second_stage():
    record = Record()
    model = VocoderTraining(**TINY, gan_lr=1e-3, gan_start=4, warmup_steps=2)
    quiet(max_steps=8, callbacks=[record]).fit(model, loader(2, batch=1))
    generator, judges = zip(*[rates for _, rates in record.rows], strict=True)
    cosine = [(1 + torch.cos(torch.tensor(torch.pi * step / 8))).item() / 2 for step in range(9)]
    assert generator[0] == pytest.approx(3e-3) and generator[2] == pytest.approx(3e-3 * cosine[3])
    assert generator[3] == pytest.approx(1e-3 * cosine[4]) and generator[-1] == pytest.approx(0, abs=1e-9)
    assert judges[3] == pytest.approx(0.5e-3), "their own warm-up, when they join"
    assert judges[5] == pytest.approx(generator[5])


def test_the_generator_comes_to_heed_the_discriminators_slowly(monkeypatch):
    model = VocoderTraining(**TINY, gan_start=10, gan_ramp=4)
    weights = []
    for step in (0, 9, 10, 12, 13, 50):
        monkeypatch.setattr(VocoderTraining, "global_step", step)
        weights.append(model.gan_weight)
    assert weights == [0, 0, 0.25, 0.75, 1, 1]
    assert VocoderTraining(**TINY).gan_weight == 0 and VocoderTraining(**TINY).discriminators is None


@pytest.mark.parametrize("averaged", [False, True])
def test_a_resumed_run_ends_as_if_it_had_not_been_broken_off(tmp_path, averaged):
    def run(steps_from=None):
        seed_everything(0, verbose=False)
        model = VocoderTraining(**TINY, gan_start=3, gan_ramp=2)
        callbacks = [ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=4, save_top_k=-1)]
        callbacks += [EMAWeightAveraging(decay=0.8)] if averaged else []
        trainer = quiet(max_steps=8, callbacks=callbacks, enable_checkpointing=True)
        trainer.fit(model, loader(2, batch=2), loader(1, batch=2), ckpt_path=steps_from, weights_only=False)
        return model.state_dict(), trainer

    whole, trainer = run()
    resumed, _ = run(tmp_path / "step=4.ckpt")
    assert trainer.global_step == 8 and whole.keys() == resumed.keys()
    for key, value in whole.items():
        torch.testing.assert_close(resumed[key], value, atol=1e-5, rtol=1e-4, msg=key)


@pytest.mark.parametrize(
    ("generator", "args", "mel"),
    [("hifigan-v3", {"channels": 16}, "vitalk"), ("istftnet", ISTFT, "hifigan"), ("ms-istft", ISTFT, "tacotron2"),
     ("mb-istft", ISTFT, "vitalk"), ("vocos", TINY["generator_args"], "vocos")],
)  # fmt: skip
def test_every_generator_trains_at_its_mel_and_is_kept(generator, args, mel, tmp_path):
    model = VocoderTraining(generator, args, mel, lr=2e-3)
    trainer = quiet(max_steps=2)
    trainer.fit(model, loader(1, batch=2), loader(1, batch=2))
    assert ("train/bands" in trainer.callback_metrics) == (generator == "mb-istft")
    model.save_weights(tmp_path / "model.safetensors")
    again, preset = load_vocoder(tmp_path / "model.safetensors")
    heard = log_mel(tones(1, 3600), PRESETS[mel])
    with torch.inference_mode():
        torch.testing.assert_close(again(heard), model.eval()(heard), atol=1e-5, rtol=1e-4)
    more = VocoderTraining(generator, args, mel, init=str(tmp_path / "model.safetensors"))
    assert preset == mel and torch.equal(
        torch.nn.utils.parameters_to_vector(more.generator.parameters()),
        torch.nn.utils.parameters_to_vector(model.generator.parameters()),
    )
    with pytest.raises(UserError, match=r"does not fit vocos; give the same generator"):
        VocoderTraining("vocos", {"dim": 8, "layers": 1}, mel, init=str(tmp_path / "model.safetensors"))


def test_the_losses_of_hifi_gan_go_with_its_discriminators(monkeypatch):
    small = (lambda: MultiPeriodDiscriminator((4, 8, 8), (2, 3)), lambda: MultiScaleDiscriminator(16))
    kept = training.OPPONENTS["hifigan"]
    assert kept.make == (MultiPeriodDiscriminator, MultiScaleDiscriminator)
    monkeypatch.setitem(
        training.OPPONENTS, "hifigan", Opponents(small, kept.weights, kept.kind, kept.reduction)
    )  # fmt: skip
    seed_everything(0, verbose=False)
    model = VocoderTraining(**TINY, gan_start=0, gan_ramp=0, discriminators="hifigan")
    record = Record()
    quiet(max_steps=1, callbacks=[record]).fit(model, loader(1))
    # Untrained scores are near 0: (1 - D(x))^2 is about 1 for each of the two and three parts, which are summed.
    assert record.rows[0][0]["train/discriminator"] == pytest.approx(5, abs=1)
    assert record.rows[0][0]["train/adversarial"] == pytest.approx(5, abs=1)


def test_the_mel_loss_hears_the_whole_band():
    model = VocoderTraining("vocos", TINY["generator_args"], "hifigan")
    assert model.spec.fmax == 8000 and model.mel_loss.spec.fmax is None
    target = model._target(tones(1, 4096))
    torch.testing.assert_close(target.mel, log_mel(tones(1, 4096), model.spec))
    torch.testing.assert_close(target.full, log_mel(tones(1, 4096), model.mel_loss.spec))


def test_degraded_mels_are_smoother_and_unlike():
    torch.manual_seed(0)
    mel = torch.randn(200, 20, 40)
    found = degraded(mel, 1.0)
    assert found.shape == mel.shape and found.isfinite().all()
    distances = (found - mel).square().mean((1, 2)).sqrt()
    assert distances.min() < 0.1 and distances.max() > 0.6, "from clean to blurred"
    assert found.std() < mel.std()
    flat = degraded(torch.full((50, 20, 40), -3.0), 1.0)
    assert (flat + 3).abs().mean() < 0.1, "blur keeps the level, also at the ends"


def test_refuses_bad_names_segments_and_losses():
    with pytest.raises(UserError, match=r"no discriminators voco; .* Did you mean vocos?"):
        VocoderTraining(**TINY, discriminators="voco")
    with pytest.raises(UserError, match="segments of 900 samples are too short; give 1200 at least"):
        quiet(max_steps=1).fit(VocoderTraining(**TINY), loader(1, samples=1000))
    broken = DataLoader(torch.full((2, 3600), float("nan")), 2)
    with pytest.raises(UserError, match="the loss became nan at step 0"):
        quiet(max_steps=1).fit(VocoderTraining(**TINY), broken)


@pytest.mark.parametrize("preset", ["tiny", "cpu", "paper"])
def test_recipes_build_what_they_name(preset):
    name, config = load_recipe("vocoder", preset)
    args = config["model"]["init_args"]
    mel = config["data"]["init_args"]["mel"]
    assert name == f"vocoder-{preset}" and set(config) == {"seed_everything", "model", "data", "trainer"}
    assert args["gan_start"] < config["trainer"]["max_steps"]
    model = VocoderTraining(**args, mel=mel)
    assert count(model.generator) == {"tiny": 190_898, "cpu": 1_684_850, "paper": 13_531_650}[preset]


def test_the_command_line_trains_it(tmp_path):
    from vitalk.speech.audio import Audio
    from vitalk.training import run

    for i, wave in enumerate(tones(6, 9000).numpy()):
        Audio(wave, 24_000).save(tmp_path / "corpus" / f"{i}.wav")
    _, config = load_recipe("vocoder", "tiny")
    config["model"]["init_args"] |= {**TINY, "gan_start": 2, "gan_ramp": 1}
    config["data"]["init_args"] |= {"segment": 3600, "batch_size": 2, "cache": str(tmp_path / "cache")}
    config["trainer"] |= {"max_steps": 4, "val_check_interval": 2, "enable_progress_bar": False,
                          "enable_model_summary": False}  # fmt: skip
    recipe = tmp_path / "small.yaml"
    recipe.write_text(yaml.safe_dump({"presets": {"tiny": config}}))
    target = run(str(recipe), "tiny", str(tmp_path / "corpus"), tmp_path / "run", [], interval=2)
    vocoder, mel = load_vocoder(target)
    assert mel == "vitalk" and vocoder(torch.randn(1, 80, 6)).shape == (1, 1800)
    assert (tmp_path / "run" / "last.ckpt").exists()
