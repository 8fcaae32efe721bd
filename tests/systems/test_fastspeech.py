"""FastSpeech: the length regulator's promises in the whole model, and its losses."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitalk.errors import UserError
from vitalk.systems.fastspeech import (
    FastSpeech,
    fastspeech,
    fastspeech_rerun,
    fastspeech_small,
    losses,
)
from vitalk.systems.transformer_tts import Layers

BLOCKS = Layers(1, 2, 24, (3, 3))
LENGTHS = torch.tensor([7, 4])


def tiny(**options):
    torch.manual_seed(0)
    model = FastSpeech(12, **{"mels": 5, "dim": 16, "encoder": BLOCKS, "decoder": BLOCKS, **options}).eval()
    torch.nn.init.constant_(model.duration.linear.bias, 1.3)  # untrained, it would hardly speak
    return model


def text(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, 12, (2, 7), generator=generator), torch.randint(0, 5, (2, 7), generator=generator)


@pytest.mark.parametrize(
    ("build", "count"),
    [
        (lambda: fastspeech(51), 50_542_929),
        (lambda: fastspeech_rerun(76), 23_530_321),
        (lambda: fastspeech_small(320), 5_034_897),
        (lambda: fastspeech(51).encoder.blocks[0], 4_133_760),
        (lambda: fastspeech_rerun(76).encoder.blocks[0], 2_886_912),
    ],
)
def test_sizes_are_those_that_follow_from_the_paper(build, count):
    with torch.device("meta"):
        assert sum(p.numel() for p in build().parameters()) == count


@torch.inference_mode()
@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("rounding", ["each", "total"])
def test_padding_changes_nothing(told, rounding):
    model, (ids, durations) = tiny(rounding=rounding), text()
    together = model(ids, LENGTHS, durations if told else None)
    for i, length in enumerate(LENGTHS.tolist()):
        alone = model(ids[i : i + 1, :length], None, durations[i : i + 1, :length] if told else None)
        frames = int(alone.mel_lengths)
        assert alone.mel.shape[2] == frames == int(together.mel_lengths[i])
        assert torch.allclose(together.mel[i, :, :frames], alone.mel[0], atol=1e-5)
        assert not together.mel[i, :, frames:].any() and not together.durations[i, length:].any()


@torch.inference_mode()
@given(st.integers(0, 100))
@settings(max_examples=8, deadline=None)
def test_tempo_scales_the_length_and_leaves_single_symbols_alone(seed):
    model, (ids, durations) = tiny(), text(seed)
    durations[:, 0] += 1
    out = model(ids, None, durations)
    assert torch.equal(out.durations, durations) and out.mel.shape[2] == int(durations.sum(1).max())
    assert torch.equal(model(ids, None, durations, speed=0.5).durations, 2 * durations)
    slower = model(ids, None, durations, speed=1 / 1.3).durations
    assert torch.equal(slower, (1.3 * durations + 0.5 + 1e-6).floor().long())
    pause = torch.where(torch.arange(7) == 3, 0.5, 1.0)
    paused = model(ids, None, durations, speed=pause).durations - durations
    assert torch.equal(paused[:, 3], durations[:, 3]) and int(paused.sum()) == int(durations[:, 3].sum())


@torch.inference_mode()
def test_the_papers_example_of_tempo():
    model, ids, durations = tiny(), torch.ones(1, 4, dtype=torch.long), torch.tensor([[2, 2, 3, 1]])
    assert model(ids, None, durations, speed=1 / 1.3).durations.tolist() == [[3, 3, 4, 1]]
    assert model(ids, None, durations, speed=2.0).durations.tolist() == [[1, 1, 2, 1]]


@torch.inference_mode()
def test_says_something_and_never_too_much():
    model, (ids, _) = tiny(), text()
    model.duration.linear.bias.fill_(-50)
    assert model(ids).mel_lengths.tolist() == [1, 1]
    model.duration.linear.bias.fill_(50)
    assert model(ids).mel_lengths.tolist() == [7 * 400] * 2


def test_losses_leave_padding_out_and_reach_every_weight():
    model, (ids, durations) = tiny().train(), text()
    durations = durations * (torch.arange(7) < LENGTHS[:, None])
    out = model(ids, LENGTHS, durations)
    mel = torch.randn_like(out.mel)
    found = losses(out, mel, durations)
    spoilt = losses(out, mel.masked_fill(~out.frame_mask[:, None], torch.nan), durations)
    assert found.keys() == {"mel", "duration"} and all(torch.equal(found[k], spoilt[k]) for k in found)
    kept = out.frame_mask[:, None].expand_as(mel)
    torch.testing.assert_close(found["mel"], (out.mel - mel)[kept].square().mean())
    torch.testing.assert_close(losses(out, mel, durations, "l1")["mel"], (out.mel - mel)[kept].abs().mean())
    sum(found.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    perfect = replace(out, mel=mel, log_durations=durations.float().log1p())
    assert max(value.item() for value in losses(perfect, mel, durations).values()) < 1e-9


def test_works_in_half_precision():
    model, (ids, durations) = tiny().train(), text()
    with torch.autocast("cpu", torch.bfloat16):
        out = model(ids, LENGTHS, durations)
        sum(losses(out, torch.randn_like(out.mel), durations).values()).backward()
        assert model.eval()(ids, LENGTHS).mel.isfinite().all()
    assert out.log_durations.dtype == torch.float32


@torch.inference_mode()
def test_speakers_are_heard_and_checked():
    model, (ids, durations) = tiny(speakers=2), text()
    one, other = (model(ids, None, durations, torch.tensor([i, 0])).mel for i in (0, 1))
    assert torch.equal(one[1], other[1]) and not torch.allclose(one[0], other[0])
    with pytest.raises(UserError, match=r"no speaker \[0, 2\]; numbers go from 0 to 1"):
        model(ids, speaker=torch.tensor([0, 2]))
    with pytest.raises(UserError, match="knows no speaker"):
        tiny()(ids, speaker=torch.tensor([0, 0]))


def test_refuses_what_does_not_fit():
    model, (ids, durations) = tiny(), text()
    with pytest.raises(UserError, match="one symbol or more"):
        model(ids[:, :0])
    with pytest.raises(UserError, match="durations of shape"):
        model(ids, None, durations[:, :3])
    with pytest.raises(UserError, match="crop it"):
        out = model(ids, None, durations)
        losses(out, out.mel[:, :, 1:], durations)
