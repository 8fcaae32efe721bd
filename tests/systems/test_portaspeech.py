"""PortaSpeech against its official model, and the paper's own invariants."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.parity import parity
from vitalk.errors import UserError
from vitalk.speech.acoustic.fft_block import length_mask
from vitalk.speech.text.symbols import to_ids, utterance_ids
from vitalk.systems.portaspeech import (
    Noise,
    PortaSpeech,
    PostNet,
    Variational,
    from_natspeech,
    portaspeech,
    portaspeech_small,
    word_index,
)
from vitalk.systems.portaspeech.linguistic import in_blocks, place_within, sinusoids

TINY = {
    "mels": 8, "dim": 16, "depth": 1, "word_depth": 1, "hidden": 24, "kernel": 3,
    "variational": {"dim": 12, "kernel": 3, "encoder": 2, "decoder": 2, "latent": 4, "prior": 2, "prior_dim": 8},
    "postnet": {"dim": 8, "steps": 4, "layers": 2, "share": 2, "temperature": 0.6},
}  # fmt: skip
LENGTHS = torch.tensor([9, 6])
SPACE = to_ids(" ")[0]


def tiny(**options):
    """A model that is past its beginning, where couplings would do nothing."""
    torch.manual_seed(0)
    model = PortaSpeech(40, **{**TINY, **options}).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    nn.init.constant_(model.linguistic.duration.linear.bias, 2.0)  # untrained, it would hardly speak
    return model


def text(seed=0):
    """Two items of three words and of two, durations whose sums are no multiples of four."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(20, 40, (2, 9), generator=generator)
    ids[0, 3] = ids[1, 2] = SPACE
    return ids, torch.randint(1, 6, (2, 9), generator=generator) * length_mask(LENGTHS, 9)


def drawn(seed=0):
    """Noise whose beginning is the same for every length and number of items."""
    table = torch.randn(2, 16, 400, generator=torch.Generator().manual_seed(seed))
    return lambda shape: table[: shape[0], : shape[1], : shape[2]]


# Sizes


@pytest.mark.parametrize(("build", "whole", "parts"), [
    (portaspeech, 25_978_817, (10_667_952, 7_515_856, 4_752_576, 2_081_280, 554_881)),
    (portaspeech_small, 8_157_361, (3_579_424, 2_220_944, 1_265_024, 664_192, 247_041)),
])  # fmt: skip
def test_sizes_are_those_of_the_release(build, whole, parts):
    with torch.device("meta"):
        model = build(79)  # symbols of LJSpeech

    def count(*modules):
        return sum(p.numel() for module in modules for p in module.parameters())

    text = model.linguistic
    told = (model.postnet, model.generator, nn.ModuleList([text.symbols, text.encoder]), text.words, text.duration)
    assert count(model) == whole and tuple(count(part) for part in told) == parts


# Parity with NATSpeech


def known_model():
    known = parity.load(Path(__file__).parents[1] / "parity" / "portaspeech.small.json")
    sizes = Variational(24, 3, 3, 2, 8, 2, 16), PostNet(24, 4, 3, 2, 0.6)
    model = PortaSpeech(40, 80, 32, 2, 2, 1, 48, 3, *sizes).eval()
    state = {key: torch.from_numpy(np.asarray(value)) for key, value in parity.filled_state(known).items()}
    model.load_state_dict(from_natspeech({f"model.{key}": value for key, value in state.items()}))
    return known, model


def agree(name, known, output, mask=None):
    """Compare where there is something; in the padding the release leaves rests, here are zeros."""
    record = known["outputs"][name]
    assert list(output.shape) == record["shape"], name
    if mask is not None:
        kept = mask.expand(output.shape).flatten()[record["index"]].numpy()
        record = {**record, **{key: np.asarray(record[key])[kept].tolist() for key in ("index", "value")}}
    assert parity.distance(output.numpy(), record) < 1e-4, name


@torch.inference_mode()
def test_agrees_with_natspeech():
    known, model = known_model()
    assert sum(p.numel() for p in model.parameters()) == known["params"]
    given = {name: torch.from_numpy(parity.tensor(name, **spec)) for name, spec in known["inputs"].items()}
    counts = torch.tensor([[2, 3, 1, 3], [3, 1, 4, 0]])
    words = torch.stack([torch.arange(4).repeat_interleave(row, output_size=9) for row in counts[:1]] * 2)
    words[1] = torch.tensor([0, 0, 0, 1, 2, 2, 2, 2, 0])
    durations = torch.zeros(2, 9, dtype=torch.int64)
    firsts = counts.cumsum(1) - counts
    durations.scatter_add_(1, firsts.clamp(max=8), given["word_durations"] * (counts > 0))
    lengths = counts.sum(1)
    ids = given["tokens"] * length_mask(lengths, 9)

    hidden, _ = model.linguistic.encode(ids, lengths, None)
    reading = model.linguistic(ids, lengths, durations, words=words)
    condition, mask = reading.condition, reading.frame_mask
    agree("phoneme_encoder", known, hidden)
    agree("word_durations_predicted", known, reading.predicted)
    agree("decoder_input", known, condition.mT)
    agree("attention", known, reading.attn, mask[..., None])

    # Nothing is masked but what the release masks: its mel is no zero in the padding here.
    mel, generator = given["mel"].mT, model.generator
    mean, logs = generator.encode(mel, condition, mask)
    z, divergence = generator.divergence(mean, logs, given["posterior_noise"], condition, mask)
    agree("posterior_mean", known, mean)
    agree("posterior_logs", known, logs)
    agree("prior_latent", known, generator.prior(z, generator.condition(condition), mask[:, ::4]))
    agree("kl", known, divergence[None])
    agree("vae_mel", known, generator.decode(z, condition, mask).mT, mask[..., None])

    def decode(z):  # as the release does, which leaves a bias in the padding, where the post-net sees it
        return generator.head(generator.decoder(generator.expand(z), condition, mask))

    agree("vae_mel", known, decode(z).mT)
    noise, gained = model.postnet(mel, torch.cat([decode(z), condition], 1), mask)
    agree("post_flow_z", known, noise)
    # The release divides every item's determinant by the length of every item; the diagonal is each by its own.
    agree("post_flow_logdet", known, gained[None] / mask.sum(1)[:, None] / 80)

    z = generator.sample(condition, lambda _: given["prior_noise"])
    agree("inferred_vae_mel", known, decode(z).mT)
    sharp = model.postnet.inverse(0.6 * given["post_noise"], torch.cat([decode(z), condition], 1))
    agree("inferred_mel", known, sharp.mT)


@torch.inference_mode()
def test_the_loss_of_the_post_net_divides_each_item_by_its_own_length():
    model, (ids, durations) = tiny(), text()
    reading = model.linguistic(ids, LENGTHS, durations)
    mel = torch.randn(2, 8, reading.frame_mask.shape[1]) * reading.frame_mask[:, None]
    coarse = model.reconstruct(reading, mel, drawn())[0]
    both = model.likelihood_loss(coarse, reading, mel)
    alone = []
    for i, length in enumerate(LENGTHS.tolist()):
        frames = int(reading.frame_mask[i].sum())
        one = model.linguistic(ids[i : i + 1, :length], None, durations[i : i + 1, :length])
        alone.append(model.likelihood_loss(coarse[i : i + 1, :, :frames], one, mel[i : i + 1, :, :frames]) * frames)
    assert torch.allclose(both, sum(alone) / reading.frame_mask.sum(), rtol=1e-4)


def test_converts_voices_and_joins_projections():
    state = {
        "spk_id_proj.weight": torch.zeros(3, 4),
        "post_flow.flows.1.eye": torch.eye(4),
        **{f"encoder.encoder.attn_layers.0.conv_{k}.weight": torch.full((4, 4, 1), i) for i, k in enumerate("kvq")},
    }
    converted = from_natspeech(state)
    assert set(converted) == {"linguistic.speakers.weight", "linguistic.encoder.blocks.0.attn.qkv.weight"}
    assert converted["linguistic.encoder.blocks.0.attn.qkv.weight"][::4, 0].tolist() == [2, 0, 1]


# Words


def test_words_stand_between_spaces_and_marks():
    gaps = tiny().linguistic.gaps
    assert gaps.shape == (40,) and gaps[SPACE] and not gaps[0]
    ids = torch.tensor([utterance_ids("hi, ðɛɹ.")])
    wide = PortaSpeech(320, **TINY).linguistic.gaps
    assert word_index(ids, wide)[0].tolist() == [0, 1, 1, 2, 2, 3, 3, 3, 4, 4]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=8))
@settings(max_examples=40, deadline=None)
def test_durations_come_in_whole_blocks(durations):
    given = torch.tensor([durations, durations[::-1]])
    made = in_blocks(given)
    total = sum(durations)
    assert (made.sum(1) == max(total // 4 * 4, 4)).all() and (made >= 0).all()
    if total >= 4:
        assert (made <= given).all() and int((given - made).sum(1).max()) <= 3


def test_places_are_fractions_of_a_word():
    sizes, index = torch.tensor([[2, 1, 3]]), torch.tensor([[0, 0, 1, 2, 2, 2]])
    assert torch.allclose(place_within(index, sizes), torch.tensor([[0.5, 1.0, 1.0, 1 / 3, 2 / 3, 1.0]]))
    waves = sinusoids(torch.tensor([[0.5]]), 8)[0, 0]
    assert torch.allclose(waves[[0, 4]], torch.tensor([0.5]).sin().new_tensor([np.sin(0.5), np.cos(0.5)]))
    assert torch.allclose(waves[3], torch.tensor(0.5e-4)), "the lowest frequency is a ten-thousandth"


@given(st.integers(0, 100))
@settings(max_examples=8, deadline=None)
@torch.inference_mode()
def test_frames_look_at_their_own_word_alone(seed):
    model, (ids, durations) = tiny(), text(seed)
    reading = model.linguistic(ids, LENGTHS, durations)
    words = word_index(ids, model.linguistic.gaps)
    ends = reading.word_durations.cumsum(1)
    for i, length in enumerate(LENGTHS.tolist()):
        for frame in range(int(ends[i, -1])):
            own = (words[i] == int((ends[i] <= frame).sum())) & (torch.arange(9) < length)
            assert reading.attn[i, frame, own].sum().item() == pytest.approx(1, abs=1e-5)
            assert not reading.attn[i, frame, ~own].any()
        assert not reading.attn[i, int(ends[i, -1]) :].any()
    assert torch.equal(reading.durations.sum(1), reading.word_durations.sum(1))
    assert torch.equal(reading.asked.sum(1), durations.sum(1))
    assert not reading.condition.mT[~reading.frame_mask].any()


@torch.inference_mode()
def test_one_word_a_symbol_aligns_hard():
    model, (ids, durations) = tiny(), text()
    reading = model.linguistic(ids[:1], None, durations[:1], words=torch.arange(9)[None])
    assert torch.equal(reading.durations, reading.word_durations)
    assert ((reading.attn - 1).abs() < 1e-6).sum() == reading.attn.shape[1]


# Invariants of the whole


@torch.inference_mode()
@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("prior", [2, 0])
def test_padding_changes_nothing(told, prior):
    model, (ids, durations) = tiny(variational={**TINY["variational"], "prior": prior}), text()
    together = model(ids, LENGTHS, durations if told else None, draw=drawn())
    for i, length in enumerate(LENGTHS.tolist()):
        known = durations[i : i + 1, :length] if told else None
        alone = model(ids[i : i + 1, :length], None, known, draw=lambda shape, i=i: drawn()((2, *shape[1:]))[i : i + 1])
        frames = int(together.mel_lengths[i])
        assert alone.mel.shape[2] == frames == int(alone.mel_lengths) and frames % 4 == 0
        for name in ("mel", "mel_coarse"):
            assert torch.allclose(getattr(together, name)[i, :, :frames], getattr(alone, name)[0], atol=1e-4)
            assert not getattr(together, name)[i, :, frames:].any()
        assert torch.equal(together.durations[i, :length], alone.durations[0])


@torch.inference_mode()
def test_speech_is_as_long_as_its_words():
    model, (ids, durations) = tiny(), text()
    out = model(ids, LENGTHS, durations)
    assert torch.equal(out.mel_lengths, durations.sum(1) // 4 * 4) and out.mel.shape == (2, 8, out.mel_lengths.max())
    assert torch.equal(model(ids, LENGTHS, durations, speed=0.25).mel_lengths, 4 * durations.sum(1))
    assert model(ids, LENGTHS, durations, speed=100).mel_lengths.tolist() == [4, 4], "nothing is silent"
    z = model.generator.sample(out.reading.condition, drawn(), out.reading.frame_mask)
    assert z.shape == (2, 4, out.mel.shape[2] // 4)


@torch.inference_mode()
def test_chance_decides_within_its_temperature():
    model, (ids, durations) = tiny(), text()

    def said(seed, **options):
        torch.manual_seed(seed)
        return model(ids, LENGTHS, durations, **options)

    assert torch.equal(said(1).mel, said(1).mel) and not torch.allclose(said(1).mel, said(2).mel)
    coarse = said(1, postnet=False)
    assert torch.equal(coarse.mel, coarse.mel_coarse) and torch.equal(coarse.mel, said(1).mel_coarse)
    mode = said(1, temperature=0.0)
    condition = torch.cat([mode.mel_coarse, mode.reading.condition], 1)
    noise, _ = model.postnet(mode.mel, condition, mode.reading.frame_mask)
    assert noise.abs().max() < 1e-3, "the most likely mel is that of no noise"
    assert (said(1).mel - mode.mel).abs().mean() < (said(1, temperature=2.0).mel - mode.mel).abs().mean()
    torch.testing.assert_close(said(1, temperature=0.6).mel, said(1).mel)


@torch.inference_mode()
def test_folded_it_says_the_same():
    model, (ids, durations) = tiny(), text()
    before = model(ids, LENGTHS, durations, draw=drawn()).mel
    for _ in range(2):
        assert torch.allclose(model.fold()(ids, LENGTHS, durations, draw=drawn()).mel, before, atol=1e-4)
    assert not any("parametrizations" in name for name, _ in model.named_parameters())


def test_losses_leave_padding_out_and_reach_every_weight():
    model, (ids, durations) = tiny().train(), text()
    reading = model.linguistic(ids, LENGTHS, durations)
    mel = torch.randn(2, 8, int(durations.sum(1).max()))
    torch.manual_seed(0)
    losses = model.losses(reading, mel, -5.0)
    assert set(losses) == {"mel", "ssim", "kl", "duration", "sentence"}
    spoilt = mel.clone()
    spoilt[..., : reading.frame_mask.shape[1]].masked_fill_(~reading.frame_mask[:, None], torch.nan)
    torch.manual_seed(0)
    for name, value in model.losses(reading, spoilt, -5.0).items():
        assert torch.equal(value, losses[name]) and value.isfinite()
    sum(losses.values()).backward()
    left = [name for name, p in model.named_parameters() if p.grad is None]
    assert left and all(name.startswith("postnet") for name in left)
    coarse, _ = model.reconstruct(reading, mel[..., : reading.frame_mask.shape[1]])
    before = model.generator.head.weight.grad.clone()
    model.likelihood_loss(coarse, reading, mel[..., : reading.frame_mask.shape[1]]).backward()
    assert torch.equal(model.generator.head.weight.grad, before), "the post-net's loss ends at the post-net"
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_divergences_agree_in_the_mean():
    # Fresh, the flow does nothing, so that the sample's divergence is in the mean that of the normal distributions.
    torch.manual_seed(0)
    flow = PortaSpeech(40, **TINY).generator
    plain = PortaSpeech(40, **{**TINY, "variational": {**TINY["variational"], "prior": 0}}).generator
    mean, logs, condition = torch.randn(1, 4, 3), 0.3 * torch.randn(1, 4, 3), torch.randn(1, 16, 12)
    with torch.no_grad():
        samples = [flow.divergence(mean, logs, torch.randn(1, 4, 3), condition)[1] for _ in range(400)]
        exact = plain.divergence(mean, logs, torch.randn(1, 4, 3), condition)[1]
    assert torch.allclose(torch.stack(samples).mean(), exact, atol=0.1) and exact > 0
    standard = plain.divergence(torch.zeros(1, 4, 3), torch.zeros(1, 4, 3), torch.randn(1, 4, 3), condition)[1]
    assert standard == 0


def test_durations_are_compared_by_words():
    model, (ids, durations) = tiny(), text()
    reading, mel = model.linguistic(ids, LENGTHS, durations), torch.randn(2, 8, int(durations.sum(1).max()))
    off = (reading.predicted.log1p() - reading.asked.float().log1p())[reading.word_mask]
    for kind, wanted in (("l1", off.abs().mean()), ("mse", off.square().mean())):
        assert torch.allclose(model.losses(reading, mel, -5.0, kind)["duration"], wanted)
    reading.predicted = reading.asked.float()
    perfect = model.losses(reading, mel, -5.0)
    assert perfect["duration"] < 1e-6 and perfect["sentence"] == 0


def test_trains_and_speaks_in_half_precision():
    model, (ids, durations) = tiny(), text()
    with torch.autocast("cpu", torch.bfloat16):
        reading = model.linguistic(ids, LENGTHS, durations)
        mel = torch.randn(2, 8, reading.frame_mask.shape[1])
        losses = model.losses(reading, mel, -5.0)
        losses["post"] = model.likelihood_loss(model.reconstruct(reading, mel)[0], reading, mel)
        assert model(ids, LENGTHS).mel.isfinite().all()
    sum(losses.values()).backward()
    assert torch.equal(reading.durations.sum(1), reading.word_durations.sum(1))
    assert all(p.grad.isfinite().all() for p in model.parameters())


@torch.inference_mode()
def test_voices_are_heard():
    model, (ids, durations) = tiny(speakers=3), text()
    one, other = (model(ids, None, durations, speaker=torch.tensor([s, 1]), draw=drawn()).mel for s in (0, 2))
    assert not torch.allclose(one[0], other[0]) and torch.allclose(one[1], other[1], atol=1e-5)


def test_noise_is_always_the_same_and_normal():
    noise = Noise()
    values = noise((1, 80, 400))
    assert torch.equal(values, Noise()((1, 80, 400))) and torch.equal(values[..., :7], noise((1, 80, 7)))
    assert (
        abs(values.mean()) < 0.02 and abs(values.std() - 1) < 0.02 and not torch.equal(values, Noise(1)((1, 80, 400)))
    )
    long = noise((1, 80, 2000))
    assert long.isfinite().all() and not torch.equal(long[..., 1000:], long[..., :1000])


def test_refuses_what_does_not_fit():
    model, (ids, durations) = tiny(), text()
    with pytest.raises(UserError, match="one symbol or more"):
        model(ids[:, :0])
    with pytest.raises(UserError, match="durations of shape"):
        model(ids, None, durations[:, :3])
    with pytest.raises(UserError, match="knows no speaker"):
        model(ids, speaker=torch.tensor([0, 0]))
    with pytest.raises(UserError, match="needs a speaker"):
        tiny(speakers=2)(ids)
    with pytest.raises(UserError, match=r"no speaker \[0, 2\]; numbers go from 0 to 1"):
        tiny(speakers=2)(ids, speaker=torch.tensor([0, 2]))
    with pytest.raises(UserError, match="a mel of 3 frames does not fit"):
        model.losses(model.linguistic(ids, LENGTHS, durations), torch.zeros(2, 8, 3))
