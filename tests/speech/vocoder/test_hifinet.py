"""HiFiNet: from mels of 16 kHz to waves of 48 kHz, its data and its discriminator of the upper band."""

import warnings

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from tests.speech.vocoder.fixtures import count, tones
from tests.speech.vocoder.test_training import quiet
from vitalk.errors import UserError
from vitalk.recipes import load_recipe
from vitalk.speech.audio import Audio
from vitalk.speech.mel import PRESETS, log_mel
from vitalk.speech.resample import Resample
from vitalk.speech.vocoder.data import Segments
from vitalk.speech.vocoder.discriminators import BandDiscriminator
from vitalk.speech.vocoder.generators import create, load_vocoder, output_rate, save_vocoder
from vitalk.speech.vocoder.hifigan import remove_weight_norm
from vitalk.speech.vocoder.training import VocoderTraining

SPEC = PRESETS["16k"]
TINY = {"dim": 16, "intermediate": 32, "layers": 1}
NAMES = {"hifinet": {"channels": 32}, "hifinet-large": {"channels": 32}, "hifinet-istft": TINY}


@pytest.mark.parametrize(
    ("name", "size"), [("hifinet", 354_145), ("hifinet-large", 3_369_249), ("hifinet-istft", 3_938_402)]
)
def test_sizes_are_those_planned(name, size):
    generator = remove_weight_norm(create(name, SPEC))
    assert sum(p.numel() for p in generator.parameters()) == size


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_a_second_of_mel_is_a_second_of_48_khz(name, tmp_path):
    generator = create(name, SPEC, NAMES[name]).eval()
    mel = torch.randn(1, 80, 80)
    wave = generator(mel)
    assert wave.shape == (1, 48_000) and output_rate(generator, SPEC) == 48_000
    save_vocoder(tmp_path / "v.safetensors", generator, name, NAMES[name], "16k")
    again, preset = load_vocoder(tmp_path / "v.safetensors")
    assert preset == "16k" and output_rate(again, SPEC) == 48_000
    torch.testing.assert_close(again(mel), wave, atol=1e-5, rtol=1e-4)


def test_other_rates_are_asked_for_by_their_stages():
    assert output_rate(create("hifinet-istft", PRESETS["vitalk"], TINY), PRESETS["vitalk"]) == 48_000
    stages = {"channels": 32, "rates": [5, 5, 4, 3], "kernels": [11, 11, 8, 7]}
    assert output_rate(create("hifinet", SPEC, stages), SPEC) == 24_000
    assert output_rate(create("vocos", SPEC, TINY), SPEC) == 16_000
    with pytest.raises(UserError, match="makes 600 samples of 256 at 22050 Hz, which is no whole rate"):
        create("hifinet", PRESETS["hifigan"])


def test_trains_against_all_its_discriminators(tmp_path):
    torch.manual_seed(0)
    told = {"gan_start": 1, "gan_ramp": 0, "discriminators": "hifinet-small", "lr": 2e-3, "rate": 48_000}
    model = VocoderTraining("hifinet-istft", TINY, "16k", **told)
    assert (model.mel_loss.spec.rate, model.mel_loss.spec.hop, model.mel_loss.spec.n_mels) == (48_000, 600, 128)
    waves = DataLoader(tones(2, 7200, 48_000), 2)
    trainer = quiet(max_steps=2)
    trainer.fit(model, waves, waves)
    assert {"train/mel", "train/stft", "train/adversarial", "train/discriminator"} <= set(trainer.callback_metrics)
    assert len(model.discriminators) == 3 and model.discriminators[2].parts[0].low == pytest.approx(1 / 3)
    model.save_weights(tmp_path / "model.safetensors")
    assert load_vocoder(tmp_path / "model.safetensors")[0](torch.randn(1, 80, 4)).shape == (1, 2400)


def test_the_mel_that_is_heard_knows_nothing_above_8_khz():
    model = VocoderTraining("hifinet-istft", TINY, "16k")
    low = Resample(16_000, 48_000)(0.05 * torch.randn(1, 8000))
    high = 0.1 * torch.sin(torch.pi / 2 * torch.arange(24_000).double()).float()  # 12 kHz
    both, alone = model._target(low + high), model._target(low)
    assert both.mel.shape == (1, 80, 40) and both.full.shape == (1, 128, 40)
    torch.testing.assert_close(both.mel[..., 3:-3], alone.mel[..., 3:-3], atol=0.01, rtol=0)
    assert (both.full - alone.full).abs().max() > 3
    torch.testing.assert_close(alone.full, log_mel(low, model.mel_loss.spec))


def test_the_band_discriminator_hears_its_band_alone():
    torch.manual_seed(0)
    judge = BandDiscriminator(4, low=1 / 3)
    time = torch.arange(4800) / 48_000
    waves = [torch.sin(2 * torch.pi * hertz * time)[None] * torch.hann_window(4800) for hertz in (2000, 16_000)]
    silent, low, high = (judge(wave)[0][0] for wave in (torch.zeros(1, 4800), *waves))
    assert (silent - low).abs().max() < 0.05 * (silent - high).abs().max()
    wave = waves[1].requires_grad_()
    judge(wave)[0][0].sum().backward()
    assert wave.grad.isfinite().all() and wave.grad.abs().sum() > 0
    assert count(BandDiscriminator(16), gains=False) < count(BandDiscriminator(), gains=False)


@pytest.fixture
def folder(tmp_path):
    """Six recordings of 48 kHz, three of which hold something up to the top, three up to 8 kHz."""
    draw = np.random.default_rng(0)
    for i in range(6):
        noise = (0.1 * draw.standard_normal(24_000)).astype(np.float32)
        full = Audio(noise, 48_000)
        Audio(noise[:8000], 16_000).resampled(48_000).save(tmp_path / "narrow" / f"{i}.wav")
        full.save(tmp_path / "full" / f"{i}.wav")
    return tmp_path


def test_recordings_that_were_upsampled_are_told(folder):
    def ready(part):
        data = Segments(str(folder / part), "16k", 7200, rate=48_000, cache=str(folder / "cache"), hold_out=0.2)
        data.prepare_data()
        data.setup()
        return data

    with pytest.warns(UserWarning, match=r"hold nothing above [78],\d{3} Hz, so that waves of 48,000 Hz"):
        ready("narrow")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = ready("full")
    assert data.rate == 48_000 and data.waves["train"][0, 0].shape == (7200,)


def test_refuses_rates_and_discriminators_that_do_not_fit():
    with pytest.raises(UserError, match="hifinet-istft makes waves of 48000 Hz, the data's are of 24000 Hz"):
        VocoderTraining("hifinet-istft", TINY, "16k", rate=24_000)
    with pytest.raises(UserError, match="hifinet judges what lies above the mel's band, where vocos makes nothing"):
        VocoderTraining("vocos", TINY, "16k", gan_start=0, discriminators="hifinet")
    with pytest.raises(UserError, match="segments of 2400 samples are too short; give 3072 at least"):
        VocoderTraining("hifinet-istft", TINY, "16k")._target(torch.zeros(1, 2400))


@pytest.mark.parametrize(
    ("preset", "rate"), [("hifinet-tiny", 24_000), ("hifinet-cpu", 48_000), ("hifinet-paper", 48_000)]
)
def test_recipes_build_what_they_name(preset, rate):
    _, config = load_recipe("vocoder", preset)
    data = config["data"]["init_args"]
    model = VocoderTraining(**config["model"]["init_args"], mel=data["mel"], rate=data["rate"])
    assert model.rate == rate and data["segment"] % model.generator.hop == 0
    assert config["model"]["init_args"]["gan_start"] < config["trainer"]["max_steps"]
