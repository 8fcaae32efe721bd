"""FastSpeech 2 against its best-known reimplementation, the paper's own invariants, and ONNX."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.parity import parity
from vitalk.errors import UserError
from vitalk.speech.acoustic import variance
from vitalk.speech.acoustic.fft_block import length_mask, masked
from vitalk.speech.acoustic.gated import fold
from vitalk.speech.wavelet import f0_from_spectrogram, pitch_spectrogram
from vitalk.systems.fastspeech2 import (
    Encoding,
    FastSpeech2,
    FastSpeech2s,
    Predictor,
    Spread,
    Targets,
    WaveDecoder,
    WaveDiscriminator,
    cut,
    fastspeech2,
    fastspeech2_ming,
    fastspeech2_small,
    fastspeech2s,
    from_ming024,
    random_starts,
)

TINY = {"dim": 16, "mels": 5, "encoder": Encoding(1, 2, 24, (3, 1)), "decoder": Encoding(1, 2, 24, (3, 1))}
RAW = Spread(2.0, 1.5, 0.0, 9.0)
LENGTHS = torch.tensor([7, 4])
LEVELS = [("cwt", "frame"), ("frame", "phoneme"), ("phoneme", "frame"), ("phoneme", "phoneme")]


def tiny(**options):
    torch.manual_seed(0)
    model = FastSpeech2(12, **{**TINY, "energy_spread": RAW, **options}).eval()
    nn.init.constant_(model.duration.linear.bias, 1.3)  # untrained, it would hardly speak
    return model


def text(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, 12, (2, 7), generator=generator), torch.randint(1, 5, (2, 7), generator=generator)


def levels(model, durations):
    """Pitch and energy of two items, at the model's levels, and durations that are zero in the padding."""
    durations = durations * length_mask(LENGTHS, 7)
    width = {"phoneme": 7, "frame": int(durations.sum(1).max())}
    pitch, energy = torch.rand(2, width[model.pitch_level]), torch.rand(2, width[model.energy_level])
    return durations, 100 + 200 * pitch, 5 * energy


# Sizes


@pytest.mark.parametrize(
    ("build", "least", "most"),
    [
        (lambda: fastspeech2(76), 24.4, 24.6),
        (lambda: fastspeech2(76, variance_predictor=Predictor(5, 5)), 27.0, 27.15),
        (lambda: fastspeech2_ming(361), 34.55, 34.65),
        (lambda: fastspeech2_small(320), 4.0, 6.0),
    ],
)
def test_sizes_are_the_published_ones(build, least, most):
    with torch.device("meta"):
        count = sum(p.numel() for p in build().parameters()) / 1e6
    assert least <= count <= most


# Parity with ming024/FastSpeech2


def agree(name, known, output, mask):
    """Compare where there is something; the reimplementation leaves rests in the padding, here are zeros."""
    record = known["outputs"][name]
    assert list(output.shape) == record["shape"], name
    kept = mask.expand(output.shape).flatten()[record["index"]].numpy()
    inside = {key: np.asarray(record[key])[kept].tolist() for key in ("index", "value")}
    assert parity.distance(output.numpy(), {**record, **inside}) < 1e-4, name


def spill(model, monkeypatch):
    """Let padding run into the convolutions of predictors and post-net, as it does in ming024/FastSpeech2."""
    monkeypatch.setattr(variance, "masked", lambda x, mask: x)
    for predictor in (model.duration, model.pitch.predictor, model.energy.predictor):
        predictor.register_forward_hook(lambda _, given, out: masked(out, given[1]))
    refine = model.postnet.forward
    rest = model.head.bias[:, None]
    model.postnet.forward = lambda mel, mask: refine(torch.where(mask[:, None], mel, rest), None)


@torch.inference_mode()
def test_agrees_with_ming024(monkeypatch):
    known = parity.load(Path(__file__).parents[1] / "parity" / "fastspeech2.small.json")
    blocks = Encoding(2, 2, 96)
    model = fastspeech2_ming(361, dim=64, encoder=blocks, decoder=blocks, predictor=Predictor(hidden=48)).eval()
    assert sum(p.numel() for p in model.parameters()) == known["params"]
    official = {key: torch.from_numpy(value) for key, value in parity.filled_state(known).items()}
    missing, unexpected = model.load_state_dict(from_ming024(official), strict=False)
    assert not unexpected and {key.rsplit(".", 1)[1] for key in missing} == {"mean", "std", "edges"}
    spill(model, monkeypatch)

    given = {name: torch.from_numpy(parity.tensor(name, **spec)) for name, spec in known["inputs"].items()}
    lengths, seen = torch.tensor([12, 9]), {}
    text = length_mask(lengths, 12)
    model.encoder.blocks[0].register_forward_hook(lambda _, __, out: seen.update(encoder_block_0=out))
    model.encoder.register_forward_hook(lambda _, __, out: seen.update(encoder=out))
    ids = given["tokens"] * text
    out = model(ids, lengths, given["durations"] * text, given["pitch"], given["energy"])
    for name in ("encoder_block_0", "encoder"):
        agree(name, known, seen[name], text[..., None])
    for name, output in (("pitch", out.pitch_prediction), ("energy", out.energy_prediction)):
        agree(name, known, output, text)
    agree("log_duration", known, out.log_durations, text)
    for name, output in (("adapted", out.hidden), ("mel", out.mel_coarse.mT), ("mel_post", out.mel.mT)):
        agree(name, known, output, out.frame_mask[..., None])

    # Its energy is scaled by the factor of the pitch, 1.3, whatever the energy's own says.
    free = model(ids, lengths, pitch_factor=1.3, energy_factor=1.3)
    for name, output in (("durations", free.durations), ("pitch", free.pitch), ("energy", free.energy)):
        agree(f"free_{name}", known, output, text)
    agree("free_mel_post", known, free.mel.mT, free.frame_mask[..., None])


def test_converts_what_whole_checkpoints_hold_besides():
    state = {
        "module.encoder.position_enc": torch.zeros(1, 9, 4),
        "module.variance_adaptor.pitch_bins": torch.zeros(255),
        "module.speaker_emb.weight": torch.zeros(3, 4),
        **{f"module.decoder.layer_stack.0.slf_attn.w_{k}s.bias": torch.full((4,), i) for i, k in enumerate("kvq")},
    }
    converted = from_ming024(state)
    assert set(converted) == {"pitch.embedding.edges", "speakers.weight", "decoder.blocks.0.attn.qkv.bias"}
    assert converted["decoder.blocks.0.attn.qkv.bias"].tolist() == [2] * 4 + [0] * 4 + [1] * 4


# Invariants


@torch.inference_mode()
@pytest.mark.parametrize(("pitch", "energy"), LEVELS)
@pytest.mark.parametrize("told", [True, False])
def test_padding_changes_nothing(pitch, energy, told):
    model, (ids, durations) = tiny(pitch=pitch, energy=energy, postnet=True, rounding="total"), text()
    durations, f0, loudness = levels(model, durations)
    together = model(ids, LENGTHS, *((durations, f0, loudness) if told else ()))
    for i, length in enumerate(LENGTHS.tolist()):
        frames = int(together.mel_lengths[i])
        width = {"phoneme": length, "frame": frames}
        known = (f0[i : i + 1, : width[model.pitch_level]], loudness[i : i + 1, : width[model.energy_level]])
        alone = model(ids[i : i + 1, :length], None, *((durations[i : i + 1, :length], *known) if told else ()))
        assert alone.mel.shape[2] == frames == int(alone.mel_lengths)
        for name in ("mel", "mel_coarse"):
            assert torch.allclose(getattr(together, name)[i, :, :frames], getattr(alone, name)[0], atol=1e-5)
            assert not getattr(together, name)[i, :, frames:].any()
        for name in ("log_durations", "pitch", "energy", "energy_prediction"):
            got, wanted = getattr(together, name)[i], getattr(alone, name)[0]
            assert torch.allclose(got[: len(wanted)], wanted, rtol=1e-4, atol=1e-5) and not got[len(wanted) :].any()


@given(st.integers(0, 100))
@settings(max_examples=8, deadline=None)
@torch.inference_mode()
def test_the_spectrogram_is_as_long_as_the_durations_say(seed):
    model, (ids, durations) = tiny(pitch="phoneme"), text(seed)
    out = model(ids, LENGTHS, durations)
    assert torch.equal(out.mel_lengths, (durations * length_mask(LENGTHS, 7)).sum(1))
    assert out.mel.shape == (2, 5, out.mel_lengths.max())
    for speed, factor in ((0.5, 2), (0.25, 4)):
        assert torch.equal(model(ids, LENGTHS, durations, speed=speed).mel_lengths, factor * out.mel_lengths)


@torch.inference_mode()
def test_a_longer_symbol_leaves_the_others_alone():
    model, (ids, durations) = tiny(), text()
    longer = durations.clone()
    longer[:, 3] += 5
    assert torch.equal(model(ids, None, longer).durations - model(ids, None, durations).durations, longer - durations)


@torch.inference_mode()
@pytest.mark.parametrize("pitch", ["cwt", "frame", "phoneme"])
def test_factors_act_on_their_own_quantity(pitch):
    model, (ids, _) = tiny(pitch=pitch), text()
    if pitch == "cwt":
        model.pitch.predictor.linear.bias[-1] = 5  # voiced
    plain = model(ids)
    higher, louder = model(ids, pitch_factor=1.2), model(ids, energy_factor=1.2)
    assert torch.allclose(higher.pitch, 1.2 * plain.pitch) and plain.pitch[:, 0].min() > 0
    assert torch.allclose(louder.energy, 1.2 * plain.energy) and torch.equal(louder.pitch, plain.pitch)
    assert not torch.equal(plain.mel, higher.mel) and not torch.equal(plain.mel, louder.mel)
    assert torch.equal(model(ids, pitch_factor=torch.tensor([1.2])).mel, higher.mel)


@torch.inference_mode()
def test_wavelet_pitch_is_the_curve_that_it_predicts():
    model, time = tiny().pitch, torch.arange(300)
    spectrogram, mean, std = pitch_spectrogram(5.2 + 0.2 * torch.sin(time[None].double() / 9))
    made = model.predict(torch.randn(1, 300, 16))
    voiced = torch.ones(1, 300)
    voiced[:, 100:120] = -1
    f0 = model.f0(replace(made, spectrogram=spectrogram.float(), mean=mean.float(), std=std.float(), voiced=voiced))
    wanted = f0_from_spectrogram(spectrogram, mean, std).float()
    assert torch.allclose(f0[voiced > 0], wanted[voiced > 0], rtol=1e-4) and not f0[voiced < 0].any()
    assert made.mean.isfinite().all() and (made.std > 0).all()


def wavelet_targets(durations):
    frames = int(durations.sum(1).max())
    curve = 5.2 + 0.2 * torch.randn(2, frames)
    spectrogram, mean, std = pitch_spectrogram(curve)
    return {"spectrogram": spectrogram, "voiced": curve > 5.2, "pitch_mean": mean, "pitch_std": std}


@pytest.mark.parametrize(("pitch", "energy"), LEVELS)
def test_losses_leave_padding_out_and_reach_every_weight(pitch, energy):
    model, (ids, durations) = tiny(pitch=pitch, energy=energy, postnet=True), text()
    durations, f0, loudness = levels(model, durations)
    out = model(ids, LENGTHS, durations, f0, loudness)
    told = {"pitch": f0} if pitch != "cwt" else wavelet_targets(durations)
    targets = Targets(torch.randn_like(out.mel), durations, loudness, **told)
    losses = model.losses(out, targets)
    names = {"pitch"} if pitch != "cwt" else {"spectrogram", "voiced", "pitch_mean", "pitch_std"}
    assert set(losses) == {"mel", "mel_coarse", "duration", "energy"} | names
    spoilt = replace(targets, mel=targets.mel.masked_fill(~out.frame_mask[:, None], torch.nan))
    for name, value in model.losses(out, spoilt).items():
        assert torch.equal(value, losses[name]) and value.isfinite()
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    perfect = replace(out, mel=targets.mel, log_durations=durations.float().log1p())
    perfect.energy_prediction = model.energy.scale.normalise(loudness)
    again = model.losses(perfect, targets)
    assert max(again[name].item() for name in ("mel", "duration", "energy")) < 1e-6


@pytest.mark.parametrize(("pitch", "energy"), LEVELS)
def test_trains_and_speaks_in_half_precision(pitch, energy):
    model, (ids, durations) = tiny(pitch=pitch, energy=energy, postnet=True, predictor_gradient=0.1), text()
    durations, f0, loudness = levels(model, durations)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(ids, LENGTHS, durations, f0, loudness)
        told = {"pitch": f0} if pitch != "cwt" else wavelet_targets(durations)
        losses = model.losses(out, Targets(torch.randn_like(out.mel), durations, loudness, **told))
        assert model(ids, LENGTHS, pitch_factor=1.2).mel.isfinite().all()
    sum(losses.values()).backward()
    assert out.pitch.dtype == out.log_durations.dtype == torch.float32
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_sizes_may_come_from_a_recipe():
    sizes = {"encoder": {"depth": 1, "hidden": 24, "kernels": [3, 1]}, "predictor": {"layers": 1, "dropout": 0.1}}
    model = tiny(**sizes, variance_predictor={"kernel": 5})
    assert len(model.encoder.blocks) == 1 and len(model.duration.convs) == 1 and len(model.pitch.predictor.convs) == 2


def test_predictors_may_be_kept_from_the_encoder():
    ids, durations = text()
    norms = []
    for gradient in (1.0, 0.1, 0.0):
        model = tiny(pitch="phoneme", energy="phoneme", predictor_gradient=gradient)
        out = model(ids, None, durations, mel=False)
        out.log_durations.square().sum().backward()
        norms.append(0.0 if model.symbols.weight.grad is None else float(model.symbols.weight.grad.norm()))
    assert norms[0] > 0 and np.isclose(norms[1], 0.1 * norms[0], rtol=1e-3) and norms[2] == 0


def test_learns_to_say_one_sentence():
    model = tiny(pitch="phoneme", energy="phoneme").train()
    ids, durations = text()
    durations, f0, loudness = levels(model, durations)
    mel = torch.randn(2, 5, int(durations.sum(1).max()))
    optimiser, first = torch.optim.Adam(model.parameters(), 3e-3), None
    for _ in range(60):
        losses = model.losses(model(ids, LENGTHS, durations, f0, loudness), Targets(mel, durations, loudness, f0))
        optimiser.zero_grad()
        sum(losses.values()).backward()
        optimiser.step()
        first = first or {name: value.item() for name, value in losses.items()}
    assert losses["mel"] < 0.8 * first["mel"] and losses["duration"] < 0.5 * first["duration"]


@torch.inference_mode()
def test_voices_and_vectors_are_heard():
    model, (ids, durations) = tiny(speakers=3, condition=4), text()
    one = model(ids, None, durations, speaker=torch.tensor([0, 0]), condition=torch.zeros(2, 4)).mel
    for speaker, condition in (
        (torch.tensor([1, 0]), torch.zeros(2, 4)),
        (torch.tensor([0, 0]), torch.eye(2, 4).flip(0)),
    ):
        other = model(ids, None, durations, speaker=speaker, condition=condition).mel
        assert not torch.allclose(one[0], other[0])


def test_refuses_what_does_not_fit():
    model, (ids, durations) = tiny(), text()
    with pytest.raises(UserError, match="one symbol or more"):
        model(ids[:, :0])
    with pytest.raises(UserError, match="durations of shape"):
        model(ids, None, durations[:, :3])
    with pytest.raises(UserError, match="pitch of shape"):
        model(ids, None, durations, torch.ones(2, 3))
    with pytest.raises(UserError, match="knows no speaker"):
        model(ids, speaker=torch.tensor([0, 0]))
    with pytest.raises(UserError, match="needs a speaker"):
        tiny(speakers=2)(ids)
    with pytest.raises(UserError, match="crop it"):
        model.losses(model(ids, None, durations), Targets(torch.zeros(2, 5, 3), durations, durations))
    with pytest.raises(UserError, match="cwt, frame or phoneme"):
        tiny(pitch="word")
    with pytest.raises(UserError, match="log=True"):
        tiny(f0_spread=RAW)


# ONNX


class OneVoice(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids, speed, pitch, energy):
        return self.model(ids, speed=speed, pitch_factor=pitch, energy_factor=energy).mel


@pytest.mark.filterwarnings("ignore")
def test_the_small_model_is_one_graph(tmp_path):
    import onnxruntime as ort

    torch.manual_seed(0)
    model = OneVoice(fastspeech2_small(40)).eval()
    nn.init.constant_(model.model.duration.linear.bias, 1.5)
    ids = torch.randint(1, 40, (1, 90))
    example = (ids[:, :17], *(torch.ones(1) for _ in range(3)))
    names = ["ids", "speed", "pitch", "energy"]
    torch.onnx.export(
        model, example, dynamo=True, dynamic_shapes=({1: torch.export.Dim("text")}, None, None, None),
        opset_version=20, input_names=names, output_names=["mel"], verbose=False,
    ).save(tmp_path / "voice.onnx")  # fmt: skip
    session = ort.InferenceSession(tmp_path / "voice.onnx")
    for length, *factors in ((17, 1.0, 1.0, 1.0), (1, 1.0, 1.0, 1.0), (90, 0.7, 1.3, 0.8), (41, 1.9, 0.8, 2.0)):
        fed = [ids[:, :length], *(torch.tensor([factor]) for factor in factors)]
        with torch.inference_mode():
            expected = model(*fed).numpy()
        (mel,) = session.run(None, {name: value.numpy() for name, value in zip(names, fed, strict=True)})
        assert mel.shape == expected.shape and np.abs(mel - expected).max() < 1e-4


# FastSpeech 2s


def test_the_waveform_decoder_has_the_paper_s_form():
    with torch.device("meta"):
        decoder = fold(WaveDecoder())
        assert decoder.stack.receptive_field == 6139 and len(decoder.stack.layers) == 30
        assert decoder.upsample.kernel_size == (512,) and decoder.upsample.padding == (128,)
        assert decoder(torch.zeros(1, 80, 256)).shape == (1, 20_480)
        assert sum(p.numel() for p in fold(WaveDiscriminator()).parameters()) == 99_265
        assert [p.dilation[0] for p in WaveDiscriminator().layers[::2]] == [1, 1, 2, 3, 4, 5, 6, 7, 8, 1]
        model = fastspeech2s(76, hop=300)
        assert model.decoder.hop == 300


@torch.inference_mode()
@pytest.mark.parametrize("hop", [4, 7, 10])
def test_any_hop_makes_that_many_samples_a_frame(hop):
    decoder = WaveDecoder(16, hop, 4, 4, 2).eval()
    hidden = torch.randn(2, 9, 16)
    together = decoder(hidden * length_mask(torch.tensor([9, 5]), 9)[..., None], length_mask(torch.tensor([9, 5]), 9))
    assert together.shape == (2, 9 * hop) and not together[1, 5 * hop :].any()
    assert torch.allclose(together[1, : 5 * hop], decoder(hidden[1:, :5])[0], atol=1e-5)


def test_slices_are_parts_of_the_whole():
    x = torch.arange(20.0).view(2, 10)
    assert cut(x, torch.tensor([3, 8]), 4).tolist() == [[3, 4, 5, 6], [18, 19, 0, 0]]
    assert cut(x[..., None].expand(-1, -1, 3), torch.tensor([0, 1]), 2).shape == (2, 2, 3)
    assert cut(x > 5, torch.tensor([3, 8]), 4).tolist() == [[False, False, False, True], [True, True, False, False]]
    starts = torch.stack([random_starts(torch.tensor([30, 80, 82]), 80) for _ in range(60)])
    assert not starts[:, :2].any() and starts[:, 2].unique().tolist() == [0, 1, 2]


def test_2s_trains_on_slices_and_speaks_whole():
    model, (ids, durations) = FastSpeech2s(tiny(), WaveDecoder(16, 6, 4, 4, 2), slice_frames=5), text()
    durations, f0, loudness = levels(model.acoustic, durations)
    judge, starts = WaveDiscriminator(4), torch.tensor([2, 6])
    out = model(ids, LENGTHS, durations, f0, loudness, starts=starts, mel=True)
    assert out.wave.shape == (2, 30) and out.acoustic.mel is not None
    (1 - judge(out.wave)).square().mean().backward()
    assert model.acoustic.symbols.weight.grad.abs().sum() > 0 and model.decoder.upsample.bias.grad is not None
    with torch.inference_mode():
        whole = model.eval()(ids, LENGTHS, durations, f0, loudness)
        assert whole.acoustic.mel is None and whole.wave.shape[1] == 6 * int(whole.acoustic.mel_lengths.max())
        before = model(ids, LENGTHS).wave
        assert torch.allclose(model.decoder.fold() and model(ids, LENGTHS).wave, before, atol=1e-5)


def test_2s_refuses_a_decoder_of_another_width():
    with pytest.raises(UserError, match="same dim"):
        FastSpeech2s(tiny(), WaveDecoder(24, 6, 4, 4, 2))
