"""Transformer TTS against its best-known reimplementation; invariants of attention, caches and the stop token."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.parity import parity
from vitalk.errors import UserError
from vitalk.systems.transformer_tts import (
    Layers,
    Refinement,
    TransformerTTS,
    durations_from,
    focus_rates,
    from_soobinseo,
    guided_attention_loss,
    losses,
    transformer_tts,
    transformer_tts_fs2,
    transformer_tts_small,
    transformer_tts_soobinseo,
    transformer_tts_teacher,
)
from vitalk.systems.transformer_tts.baseline import Tacotron
from vitalk.systems.transformer_tts.layers import EncoderLayer, EncoderPrenet, ScaledPositions
from vitalk.systems.transformer_tts.losses import mel_distance, stop_loss, stop_targets
from vitalk.systems.transformer_tts.reproduce import forward_share

BLOCKS = Layers(2, 2, 24, (3, 3))
TINY = {"mels": 5, "dim": 16, "encoder": BLOCKS, "decoder": BLOCKS, "prenet": (8, 8), "postnet": Refinement(8)}
LENGTHS, FRAMES = torch.tensor([7, 4]), torch.tensor([13, 8])
KINDS = [
    {},
    {"norm": "pre"},
    {"frames_per_step": 3},
    {"postnet": None, "decoder": Layers(2, 2, 24)},
    {"concat": True, "first_position": 1},
    {"frames_per_step": 2, "postnet": Refinement(8, causal=True)},
]


def tiny(**options):
    torch.manual_seed(0)
    return TransformerTTS(12, **{**TINY, **options}).eval()


def text():
    generator = torch.Generator().manual_seed(1)
    return torch.randint(1, 12, (2, 7), generator=generator), torch.randn(2, 5, 13, generator=generator)


# Sizes and parity


@pytest.mark.parametrize(
    ("build", "millions"),
    [
        (lambda: transformer_tts(100), 52.997),
        (lambda: transformer_tts_teacher(51), 60.105),
        (lambda: transformer_tts_teacher(51, encoder=Layers(6, 2, 1536), decoder=Layers(6, 2, 1536)), 31.794),
        (lambda: transformer_tts_fs2(76), 25.394),
        (lambda: transformer_tts_soobinseo(149), 9.018),
        (lambda: transformer_tts_small(320), 4.561),
    ],
)
def test_sizes_are_those_that_the_docstrings_tell(build, millions):
    with torch.device("meta"):
        assert sum(p.numel() for p in build().parameters()) / 1e6 == pytest.approx(millions, abs=1e-3)


def official(**options):
    known = parity.load(Path(__file__).parents[1] / "parity" / "transformer-tts.small.json")
    model = transformer_tts_soobinseo(149, 64, 48, mels=20, **options).eval()
    return known, model, {key: torch.from_numpy(value) for key, value in parity.filled_state(known).items()}


@torch.inference_mode()
def test_agrees_with_soobinseo():
    known, model, state = official()
    assert sum(p.numel() for p in model.parameters()) == known["params"]
    state["encoder.pos_emb.weight"] = torch.zeros(1024, 64)
    counter = "decoder.postconvnet.pre_batchnorm.num_batches_tracked"
    state |= {f"module.{counter}": torch.tensor(7)}
    model.load_state_dict(from_soobinseo(state))
    assert model.postnet.norms[0].num_batches_tracked == 7
    given = {name: torch.from_numpy(parity.tensor(name, **spec)) for name, spec in known["inputs"].items()}
    seen = {}
    model.text.register_forward_hook(lambda _, __, out: seen.update(prenet=out))
    memory, _ = model.encode(given["characters"])
    # Told what the fixture tells: its mel input as it is, without the zero frame in front.
    model._before = lambda mel: mel.transpose(1, 2)
    out = model(given["characters"], mel=given["mel_input"].transpose(1, 2), maps=3)
    found = {
        "encoder_prenet": seen["prenet"],
        "memory": memory,
        "mel": out.mel_coarse.mT,
        "mel_post": out.mel.mT,
        "stop_logit": out.stop[..., None],
        "cross_attention_0": out.maps[:, 0].transpose(0, 1).flatten(0, 1),
    }
    x, layer = model.text_positions(seen["prenet"]), model.encoder[0]
    found["encoder_attention_0"] = layer.attn(x, layer.attn.pair(x), maps=True)[1].transpose(0, 1).flatten(0, 1)
    for name, record in known["outputs"].items():
        assert parity.distance(found[name].numpy(), record) < 1e-4, name


def test_converts_more_frames_a_step():
    state = official()[2]
    for name, shape in (
        ("decoder.mel_linear.linear_layer.weight", (60, 64)),
        ("decoder.mel_linear.linear_layer.bias", (60,)),
        ("decoder.postconvnet.conv1.conv.weight", (64, 60, 5)),
        ("decoder.postconvnet.conv2.conv.weight", (60, 64, 5)),
        ("decoder.postconvnet.conv2.conv.bias", (60,)),
    ):
        state[name] = torch.randn(shape)
    model = official(frames_per_step=3)[1]
    missing, unexpected = model.load_state_dict(from_soobinseo(state), strict=False)
    assert not unexpected and all(key.endswith("num_batches_tracked") for key in missing)
    assert model(torch.ones(1, 4, dtype=torch.long), mel=torch.randn(1, 20, 10)).mel.shape == (1, 20, 10)


# Caches and masks


@torch.inference_mode()
@pytest.mark.parametrize("options", KINDS)
def test_with_and_without_cache_frames_are_the_same(options):
    model, (ids, _) = tiny(**options), text()
    model.stop.bias.fill_(-9)
    free = model.generate(ids, LENGTHS, seed=None, most=20)
    made = free.mel if free.mel_coarse is None else free.mel_coarse
    told = model(ids, LENGTHS, made, free.mel_lengths, maps=2)
    for name in ("mel", "stop", "maps", "focus"):
        assert torch.allclose(getattr(free, name), getattr(told, name), atol=1e-4), name
    assert torch.equal(free.durations, told.durations) and torch.equal(free.durations.sum(1), free.mel_lengths)
    assert not free.stopped.any() and 20 <= free.mel_lengths.min() <= free.mel_lengths.max() < 20 + model.r


@torch.inference_mode()
@pytest.mark.parametrize("options", KINDS)
def test_padding_changes_nothing(options):
    model, (ids, mel) = tiny(**options), text()
    together = model(ids, LENGTHS, mel, FRAMES, maps=2)
    alone = model(ids[1:, :4], None, mel[1:, :, :8], maps=2)
    assert torch.allclose(together.mel[1, :, :8], alone.mel[0], atol=1e-5) and not together.mel[1, :, 8:].any()
    assert torch.allclose(together.maps[1, :, :, : int(alone.steps), :4], alone.maps[0], atol=1e-5)
    assert not together.maps[1, ..., 4:].any() and torch.equal(together.durations[1, :4], alone.durations[0])
    free, single = model(ids, LENGTHS), model(ids[1:, :4])
    frames = int(single.mel_lengths)
    assert int(free.mel_lengths[1]) == frames and bool(free.stopped[1]) == bool(single.stopped)
    assert torch.allclose(free.mel[1, :, :frames], single.mel[0], atol=1e-5)


@torch.inference_mode()
def test_every_utterance_ends_on_its_own():
    model, (ids, _) = tiny(), text()
    model.stop.weight.zero_()
    model.stop.bias.fill_(-1)
    capped = model(ids, LENGTHS)
    assert capped.mel_lengths.tolist() == [170, 140] and not capped.stopped.any()
    calls = []

    def late(_, __, out):  # the first utterance ends at step 5, the second at step 9
        calls.append(0)
        return out + 3.0 * torch.tensor([len(calls) == 5, len(calls) == 9])[:, None, None]

    model.stop.register_forward_hook(late)
    out = model(ids, LENGTHS)
    assert out.mel_lengths.tolist() == [5, 9] and out.stopped.all() and len(calls) == 9
    assert out.mel.shape == (2, 5, 9) and not out.mel[0, :, 5:].any()
    assert torch.equal(out.durations.sum(1), out.mel_lengths)


@torch.inference_mode()
@given(st.integers(0, 12))
@settings(max_examples=8, deadline=None)
def test_no_frame_sees_what_comes_later(at):
    model, (ids, mel) = tiny(), text()
    changed = mel.clone()
    changed[:, :, at] += 1
    a, b = model(ids, None, mel), model(ids, None, changed)
    assert torch.equal(a.mel_coarse[:, :, : at + 1], b.mel_coarse[:, :, : at + 1])
    assert torch.equal(a.stop[:, : at + 1], b.stop[:, : at + 1])
    assert at == 12 or not torch.allclose(a.mel_coarse[:, :, at + 1 :], b.mel_coarse[:, :, at + 1 :])


@torch.inference_mode()
def test_dropout_while_speaking_hangs_on_the_seed():
    model, (ids, _) = tiny(), text()
    model.stop.bias.fill_(-9)
    one, again, other, none = (model.generate(ids, seed=seed, most=6).mel for seed in (1, 1, 2, None))
    assert torch.equal(one, again) and not torch.allclose(one, other) and not torch.allclose(one, none)


# Layers


def test_positions_begin_with_sine_and_cosine_of_zero_and_learn_their_weight():
    positions = ScaledPositions(6, dropout=0.0)
    assert positions.table(1, torch.zeros(1, 6))[0, 0].tolist() == [0, 1, 0, 1, 0, 1]
    positions(torch.zeros(1, 5, 6))[..., 0].sum().backward()
    assert positions.alpha.grad.abs() > 0
    fixed = ScaledPositions(6, scaled=False)
    assert not fixed.alpha.requires_grad and fixed.alpha == 1
    assert ScaledPositions(6, first=1).table(1, torch.zeros(1, 6)).equal(fixed.table(2, torch.zeros(1, 6))[:, 1:])


@torch.inference_mode()
def test_without_positions_and_convolutions_the_encoder_knows_no_order():
    torch.manual_seed(0)
    layer, x, order = EncoderLayer(16, Layers(1, 2, 24)).eval(), torch.randn(1, 9, 16), torch.randperm(9)
    assert torch.allclose(layer(x)[:, order], layer(x[:, order]), atol=1e-5)


def test_batch_norm_learns_from_symbols_alone():
    torch.manual_seed(0)
    ids = torch.randint(1, 9, (1, 6))
    one, other = EncoderPrenet(9, 4, 8, dropout=0.0), EncoderPrenet(9, 4, 8, dropout=0.0)
    other.load_state_dict(one.state_dict())
    padded = torch.cat([ids, torch.zeros(1, 5, dtype=torch.long)], 1)
    mask = torch.arange(11)[None] < 6
    assert torch.allclose(one(ids), other(padded, mask)[:, :6], atol=1e-5)
    for a, b in zip(one.norms, other.norms, strict=True):
        assert torch.allclose(a.running_mean, b.running_mean, atol=1e-6)
        assert torch.allclose(a.running_var, b.running_var, atol=1e-6)


def test_pre_nets_end_around_zero_where_they_are_re_centred():
    model, bent = tiny(), tiny(recentre=False)
    ids, mel = text()
    for net in (model, bent):
        ends = net.text(ids), net.prenet(mel.mT)
        assert all((end < 0).any() == (net is model) for end in ends)
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in bent.parameters())


# Attention over time


maps_of = st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 7), st.integers(0, 99))


@given(maps_of)
@settings(max_examples=25, deadline=None)
def test_durations_always_sum_to_the_frames(sizes):
    heads, steps, symbols, seed = sizes
    torch.manual_seed(seed)
    maps = torch.randn(2, 2, heads, steps, symbols).mul(3).softmax(-1)
    lengths = torch.tensor([steps, max(steps // 2, 1)])
    for r in (1, 3):
        frames = lengths * r - torch.tensor([min(r - 1, 1), 0])
        durations, rates = durations_from(maps, lengths, frames, r)
        assert torch.equal(durations.sum(1), frames) and (durations >= 0).all()
        assert (rates >= 1 / symbols - 1e-6).all() and (rates <= 1 + 1e-6).all()
    assert torch.equal(rates, focus_rates(maps, lengths).flatten(1).amax(1))


def test_the_most_focused_head_is_read():
    path = torch.tensor([0, 0, 1, 2, 2, 2])
    maps = torch.full((1, 2, 2, 6, 4), 0.25)
    maps[0, 1, 0] = torch.nn.functional.one_hot(path, 4).float()
    assert focus_rates(maps, torch.tensor([6]))[0].tolist() == [[0.25, 0.25], [1.0, 0.25]]
    durations, rate = durations_from(maps, torch.tensor([6]), torch.tensor([6]))
    assert durations.tolist() == [[2, 1, 3, 0]] and rate == 1
    assert durations_from(maps, torch.tensor([6]), torch.tensor([11]), 2)[0].tolist() == [[4, 2, 5, 0]]
    assert forward_share(maps, torch.tensor([6])) == 1
    assert forward_share(maps.flip(3), torch.tensor([6])) == pytest.approx(3 / 5)


def test_guided_attention_is_cheap_on_the_diagonal():
    steps = torch.tensor([8])
    diagonal = torch.eye(8)[None, None]
    assert guided_attention_loss(diagonal, steps, steps) == 0
    assert guided_attention_loss(diagonal.flip(-1), steps, steps) > 0.3
    corner = torch.zeros(1, 1, 1, 8)
    corner[..., 7] = 1
    expected = 1 - torch.tensor(-((7 / 8) ** 2) / (2 * 0.4**2)).exp()
    assert torch.allclose(guided_attention_loss(corner, torch.tensor([1]), steps), expected)
    padded = torch.nn.functional.pad(diagonal.flip(-1), (0, 3, 0, 2))
    assert torch.allclose(
        guided_attention_loss(padded, steps, steps), guided_attention_loss(diagonal.flip(-1), steps, steps)
    )


# Losses


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_an_utterance_ends_once(steps):
    target = stop_targets(torch.tensor(steps), 9)
    assert (target.sum(1) == 1).all() and target.argmax(1).tolist() == [s - 1 for s in steps]


def test_the_end_counts_more_often_by_its_weight():
    logits, steps = torch.zeros(1, 4), torch.tensor([4])
    log2 = torch.log(torch.tensor(2.0))
    assert torch.allclose(stop_loss(logits, steps, 1.0), log2)
    assert torch.allclose(stop_loss(logits, steps, 5.0), log2 * (3 + 5) / 4)
    assert torch.allclose(stop_loss(torch.zeros(1, 9), steps, 5.0), log2 * 2)  # padding has no say


@pytest.mark.parametrize("options", KINDS)
def test_losses_leave_padding_out_and_reach_every_weight(options):
    model, (ids, mel) = tiny(**options).train(), text()
    out = model(ids, LENGTHS, mel, FRAMES, maps=2)
    found = losses(out, mel, guided=True)
    assert set(found) == {"mel", "stop", "guided"} | ({"mel_coarse"} if model.postnet else set())
    spoilt = mel.masked_fill(~out.frame_mask[:, None], torch.nan)
    assert torch.equal(losses(out, spoilt)["mel"], found["mel"])
    sum(found.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert model.positions.alpha.grad.abs() > 0 and model.text_positions.alpha.grad.abs() > 0
    assert losses(replace(out, mel=mel), mel, "l1")["mel"] == 0


def test_works_in_half_precision():
    model, (ids, mel) = tiny(decoder=BLOCKS).train(), text()
    with torch.autocast("cpu", torch.bfloat16):
        found = losses(model(ids, LENGTHS, mel, FRAMES, maps=1), mel, guided=True)
        free = model.eval()(ids, LENGTHS)
    sum(found.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters()) and free.mel.isfinite().all()


def test_learns_one_sentence():
    model, (ids, mel) = tiny(prenet_dropout=0.0, norm="pre").train(), text()
    optimiser, first = torch.optim.Adam(model.parameters(), 1e-2), None
    for _ in range(100):
        found = losses(model(ids, LENGTHS, mel, FRAMES), mel)
        optimiser.zero_grad()
        sum(found.values()).backward()
        optimiser.step()
        first = first or {name: value.item() for name, value in found.items()}
    assert found["mel_coarse"] < 0.7 * first["mel_coarse"] and found["stop"] < 0.5 * first["stop"]


def test_speakers_are_heard_and_checked():
    model, (ids, mel) = tiny(speakers=2), text()
    one, other = (model(ids, LENGTHS, mel, FRAMES, torch.tensor([i, 0])).mel for i in (0, 1))
    assert torch.equal(one[1], other[1]) and not torch.allclose(one[0], other[0])
    for wrong in (torch.tensor([0, 2]), torch.tensor([-1, 0])):
        with pytest.raises(UserError, match=r"there is no speaker .*; numbers go from 0 to 1"):
            model(ids, speaker=wrong)
    with pytest.raises(UserError, match="needs a speaker"):
        model(ids)
    with pytest.raises(UserError, match="knows no speaker"):
        tiny()(ids, speaker=torch.tensor([0, 0]))


def test_refuses_what_does_not_fit():
    model, (ids, mel) = tiny(), text()
    with pytest.raises(UserError, match="one symbol or more"):
        model(ids[:, :0])
    with pytest.raises(UserError, match=r"give \[batch, 5, frames\]"):
        model(ids, None, mel[:, :4])
    with pytest.raises(UserError, match="choose post or pre"):
        tiny(norm="both")
    with pytest.raises(UserError, match="1 frame or more"):
        tiny(frames_per_step=0)
    with pytest.raises(UserError, match="among 3 heads"):
        tiny(encoder={"depth": 1, "heads": 3})
    with pytest.raises(UserError, match='no mel distance "l3"'):
        losses(model(ids, None, mel), mel, "l3")
    with pytest.raises(UserError, match="crop it"):
        mel_distance(mel, mel[:, :, 1:], torch.ones(2, 13, dtype=torch.bool))


# The baseline


def test_the_recurrent_baseline_trains():
    torch.manual_seed(0)
    net, (ids, mel) = Tacotron(12, 5, 16), text()
    made, stop = net(ids, mel)
    assert made.shape == mel.shape and stop.shape == (2, 13)
    (made.square().mean() + stop.square().mean()).backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())
