"""USAT's parts: flows that turn round, splines as transformers has them, memory, adversaries, adapters, any length."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from vitalk.errors import UserError
from vitalk.speech.acoustic.fft_block import length_mask
from vitalk.speech.acoustic.flows import MeanFlow
from vitalk.speech.acoustic.training import fingerprint
from vitalk.speech.acoustic.variance import scale_gradient
from vitalk.speech.align.search import maximum_path
from vitalk.speech.mel import magnitudes
from vitalk.systems.usat import (
    AdaptedVoice,
    Adapters,
    Memory,
    StochasticDuration,
    Usat,
    adapted,
    insert,
    linear,
    spline,
)
from vitalk.systems.usat import usat as paper
from vitalk.systems.usat.adapters import KERNELS, PLACEMENTS, adapter_weights, sharing
from vitalk.systems.usat.adversaries import PhonemeDiscriminator, TimbreDiscriminator, cut
from vitalk.systems.usat.duration import SplineFlow
from vitalk.systems.usat.model import likelihood
from vitalk.systems.usat.variants import usat_small

ECAPA = {"channels": (8, 8, 16), "kernels": (5, 3, 1), "dilations": (1, 2, 1), "scale": 4, "attention": 4, "squeeze": 4}
TINY = {
    "mel": "vitalk", "dim": 16, "heads": 2, "depth": 1, "hidden": 24, "latent": 8, "posterior_layers": 2, "memory": 6,
    "flow_steps": 2, "flow_layers": 2, "voice": 12, "ecapa": ECAPA, "duration_steps": 2, "decoder": "mel",
    "decoder_args": {"dim": 12, "layers": 2},
}  # fmt: skip
WAVE = {"decoder": "hifigan-v2", "decoder_args": {"channels": 16}}
HOP = 300


def moved(module, by=0.05, seed=1):
    """The module, no longer as it began."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(by * torch.randn_like(p))
    return module.eval()


def tiny(seed=0, **options):
    torch.manual_seed(seed)
    model = moved(Usat(20, **{**TINY, "speakers": 3, **options}))
    nn.init.normal_(model.voices)
    return model


def text(seed=0, items=2, length=7):
    return torch.randint(1, 20, (items, length), generator=torch.Generator().manual_seed(seed))


# Flows and splines


@given(st.integers(0, 10**6), st.integers(1, 30))
@settings(max_examples=20, deadline=None)
@torch.inference_mode()
def test_splines_turn_round_and_know_their_slopes(seed, items):
    generator = torch.Generator().manual_seed(seed)
    x, shape = (scale * torch.randn(items, size, generator=generator) for scale, size in ((4, 1), (2, 29)))
    x = x[:, 0].double()
    shape = shape.double()
    y, gained = spline(x, shape)
    back, same = spline(y, shape, inverse=True)
    torch.testing.assert_close(back, x, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(same, gained, atol=1e-6, rtol=1e-6)
    outside = x.abs() > 5
    assert torch.equal(y[outside], x[outside]) and not gained[outside].any()
    inner = x.abs() < 4.999
    slope = torch.func.vmap(torch.func.grad(lambda a, s: spline(a[None], s[None])[0][0]))(x, shape).log()
    torch.testing.assert_close(slope[inner], gained[inner], atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_durations_are_those_of_transformers():
    from transformers import VitsConfig
    from transformers.models.vits.modeling_vits import VitsStochasticDurationPredictor

    config = VitsConfig(hidden_size=16, speaker_embedding_size=12, duration_predictor_num_flows=4)
    other = moved(VitsStochasticDurationPredictor(config), 0.2)
    ours = StochasticDuration(16, 12).eval()
    names = {
        "conv_pre": "enter", "conv_proj": "leave", "conv_dds": "stack", "cond": "speaker", "flows": "flow",
        "post_conv_pre": "post_enter", "post_conv_proj": "post_leave", "post_conv_dds": "post_stack",
        "post_flows": "post",
    }  # fmt: skip
    inner = {"conv_pre": "start", "conv_dds": "stack", "conv_proj": "end", "convs_dilated": "depthwise",
             "convs_pointwise": "pointwise", "norms_1": "norms1", "norms_2": "norms2"}  # fmt: skip
    state = {}
    for key, value in other.state_dict().items():
        first, *rest = key.split(".")
        if first in ("flows", "post_flows"):
            number, *rest = rest
            if number == "0":
                state[f"{names[first]}.norm.{ {'translate': 'bias', 'log_scale': 'log_scale'}[rest[0]] }"] = value[None]
                continue
            rest = ["steps", str(int(number) - 1), *rest]
        state[".".join([names[first], *(inner.get(part, part) for part in rest)])] = value
    ours.load_state_dict(state)
    hidden, voice = torch.randn(2, 16, 9), torch.randn(2, 12)
    mask = length_mask(torch.tensor([9, 5]), 9)
    torch.manual_seed(3)
    wanted = other(hidden, mask[:, None].float(), voice[:, :, None], reverse=True, noise_scale=0.8)[:, 0]
    torch.manual_seed(3)
    found = ours.sample(hidden, voice, 0.8 * torch.randn(2, 2, 9), mask)
    torch.testing.assert_close(found[mask], wanted[mask], atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_the_coupling_that_is_left_out_moves_nothing_that_counts():
    flow = moved(SplineFlow(8, 3, 3), 0.3)
    noise, condition = torch.randn(2, 2, 6), torch.randn(2, 8, 6)
    x = noise
    for step in reversed(flow.steps):
        x = step(x.flip(1), condition, inverse=True)
    x = flow.norm.inverse(x)
    torch.testing.assert_close(flow.inverse(noise, condition)[:, 0], x[:, 0])
    torch.testing.assert_close(flow(x, condition)[0], noise, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_the_determinant_of_the_duration_flow_is_that_of_its_jacobian():
    flow = moved(SplineFlow(8, 3, 2), 0.3)
    x, condition = torch.randn(1, 2, 3), torch.randn(1, 8, 3)
    jacobian = torch.func.jacrev(lambda v: flow(v.view(1, 2, 3), condition)[0].flatten())(x.flatten())
    assert abs(torch.linalg.slogdet(jacobian.double())[1] - flow(x, condition)[1][0]) < 1e-3


def test_no_gradient_of_durations_reaches_text_or_speaker():
    model = StochasticDuration(8, 4)
    hidden, voice = torch.randn(1, 8, 5, requires_grad=True), torch.randn(1, 4, requires_grad=True)
    loss = model(hidden, torch.full((1, 5), 3), voice, torch.randn, None)
    loss.sum().backward()
    assert hidden.grad is None and voice.grad is None and model.enter.weight.grad is not None


def test_durations_learn_a_distribution():
    torch.manual_seed(0)
    model = StochasticDuration(8, 4, dropout=0.0, steps=2)
    hidden, voice = torch.zeros(8, 8, 12), torch.zeros(8, 4)
    frames = torch.randint(4, 7, (8, 12))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        loss = model(hidden, frames, voice, torch.randn, None).sum() / frames.numel()
        loss.backward()
        optimizer.step()
    assert math.log(3) - 0.1 < loss < 2.0  # three equally likely durations cost log 3 at least
    with torch.no_grad():
        drawn = model.sample(hidden, voice, torch.randn(8, 2, 12)).exp()
    assert 3 < drawn.median() < 7


@given(st.integers(0, 10**6), st.integers(1, 12), st.sampled_from((None, *PLACEMENTS)))
@settings(max_examples=12, deadline=None)
@torch.inference_mode()
def test_content_and_latents_turn_into_each_other(seed, frames, placement):
    model = tiny()
    if placement is not None:
        model = moved(insert(model, Adapters(placement, "conv" if seed % 2 else "linear", 2)))
    generator = torch.Generator().manual_seed(seed)
    z, voice = torch.randn(2, 8, frames, generator=generator), torch.randn(2, 12, 1, generator=generator)
    content = model.flow(z, voice)
    assert (content - z).abs().max() > 1e-3
    torch.testing.assert_close(model.flow.inverse(content, voice), z, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_the_timbre_flow_keeps_volumes(placement):
    model = moved(insert(tiny(), Adapters(placement, reduction=2)))
    voice = torch.randn(1, 12, 1)
    jacobian = torch.func.jacrev(lambda v: model.flow(v.view(1, 8, 3), voice).flatten())(torch.randn(24))
    assert abs(torch.linalg.slogdet(jacobian.double())[1]) < 1e-4


# Memory


@torch.inference_mode()
@pytest.mark.parametrize("heads", [1, 4])
def test_memory_mixes_its_slots(heads):
    torch.manual_seed(0)
    memory, z = Memory(8, 5, heads), torch.randn(2, 8, 6)
    weights = memory.weights(z)
    assert weights.shape == (2, heads, 6, 5)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, heads, 6))
    values = memory.value(memory.slots).unflatten(1, (heads, -1)).transpose(0, 1)
    torch.testing.assert_close(memory(z), (weights @ values).transpose(1, 2).flatten(2).transpose(1, 2))


def test_memory_of_one_slot_makes_all_frames_the_same():
    torch.manual_seed(0)
    z = torch.randn(2, 8, 6)
    memory = Memory(8, 1)
    torch.testing.assert_close(memory(z), memory(z)[:1, :, :1].expand(2, 8, 6))
    memory(z).sum().backward()  # with gradients too
    with pytest.raises(UserError, match="memory of 0 slots"):
        Memory(8, 0)
    model = tiny(memory=0)
    assert torch.equal(model.remember(z), z)


# Adversaries


def test_reversal_turns_the_sign_and_nothing_else():
    x = torch.randn(5, requires_grad=True)
    y = scale_gradient(x, -1.0)
    assert torch.equal(y, x)
    (gradient,) = torch.autograd.grad((y * torch.arange(5.0)).sum(), x)
    assert torch.equal(gradient, -torch.arange(5.0))


def test_each_side_of_d_p_moves_alone():
    torch.manual_seed(0)
    judge = PhonemeDiscriminator(6)
    vectors = [torch.randn(4, 6, requires_grad=True) for _ in range(3)]
    own, undecided = judge.losses(*vectors)
    undecided.backward(retain_graph=True)
    assert all(p.grad is None for p in judge.parameters()) and all(v.grad.abs().sum() > 0 for v in vectors)
    for v in vectors:
        v.grad = None
    own.backward()
    assert all(p.grad is not None for p in judge.parameters()) and all(v.grad is None for v in vectors)
    nn.init.zeros_(judge.layers[-1].weight), nn.init.zeros_(judge.layers[-1].bias)
    own, undecided = judge.losses(*vectors)
    assert abs(own - math.log(2)) < 1e-6 and abs(undecided) < 1e-6, "it cannot tell"


def test_d_t_judges_what_is_no_padding():
    torch.manual_seed(0)
    judge = TimbreDiscriminator(6, 16).eval()
    x = torch.randn(2, 6, 9)
    x[1, :, 5:] = 7.0
    found = judge(x, length_mask(torch.tensor([9, 5]), 9))
    torch.testing.assert_close(found[1:], judge(x[1:, :, :5]), atol=1e-5, rtol=1e-4)
    prior = torch.randn(2, 6, 9, requires_grad=True)
    content = torch.randn(2, 6, 9, requires_grad=True)
    judge.train().loss(prior, content, torch.tensor([9, 5])).backward()
    assert prior.grad is None and content.grad[0].abs().sum() > 0 and not content.grad[1, :, 5:].any()


def test_slices_lie_where_they_are_asked():
    x = torch.arange(12.0).expand(2, 1, 12)
    lengths = torch.tensor([12, 6])
    found, sizes = cut(x, lengths, 0.5, torch.tensor([0.0, 1.0]))
    assert sizes.tolist() == [6, 3]
    assert found[0, 0].tolist() == [0, 1, 2, 3, 4, 5] and found[1, 0, :3].tolist() == [3, 4, 5]


# The network


@torch.inference_mode()
def test_spectra_are_those_of_the_mel_but_at_the_ends():
    spec = tiny().spec
    torch.manual_seed(0)
    wave = torch.randn(1, 20 * HOP)
    found, wanted = linear(wave, spec), magnitudes(wave, spec)
    assert found.shape == wanted.shape == (1, 601, 20)
    torch.testing.assert_close(found[..., 2:-2], wanted[..., 2:-2])
    padded = linear(torch.cat([wave, torch.zeros(1, 5 * HOP)], 1), spec)
    torch.testing.assert_close(padded[..., :20], found)


@torch.inference_mode()
@pytest.mark.parametrize("options", [{}, WAVE, {"memory": 0}], ids=["mel", "wave", "no memory"])
def test_an_utterance_alone_sounds_as_in_a_batch(options):
    model, ids = tiny(**options), text()
    lengths, noise = torch.tensor([7, 4]), torch.randn(2, 16, 500)

    def draw(rows):
        return lambda shape: noise[rows, : shape[1], : shape[2]]

    both = model(ids, lengths, torch.tensor([0, 2]), draw=draw([0, 1]), speed=0.5)
    for i, size in enumerate(lengths.tolist()):
        one = model(ids[i : i + 1, :size], speaker=torch.tensor([(0, 2)[i]]), draw=draw([i]), speed=0.5)
        assert torch.equal(one.durations[0], both.durations[i, :size]) and not both.durations[i, size:].any()
        frames = int(one.mel_lengths)
        assert frames == int(both.mel_lengths[i]) == int(one.durations.sum())
        if options is WAVE:
            assert one.mel is None and one.wave.shape == (1, frames * HOP)
            torch.testing.assert_close(one.wave[0], both.wave[i, : frames * HOP], atol=1e-4, rtol=1e-3)
        else:
            assert one.wave is None and one.mel.shape == (1, 80, frames)
            torch.testing.assert_close(one.mel[0], both.mel[i, :, :frames], atol=1e-4, rtol=1e-3)
            assert not both.mel[i, :, frames:].any()


@torch.inference_mode()
def test_voices_are_heard_the_same_in_a_batch_and_told_by_number_or_vector():
    model = tiny()
    torch.manual_seed(0)
    wave = torch.randn(2, 12 * HOP)
    wave[1, 7 * HOP :] = 0
    both = model.listen(linear(wave, model.spec), length_mask(torch.tensor([12, 7]), 12))
    alone = model.listen(linear(wave[1:, : 7 * HOP], model.spec))
    torch.testing.assert_close(both[1:], alone, atol=1e-4, rtol=1e-4)
    said = []
    for told in ({"speaker": torch.tensor([1])}, {"voice": model.voices[1:2]}):
        torch.manual_seed(0)
        said.append(model(text(items=1), **told).mel)
    assert torch.equal(*said)


@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(0, 9))
@settings(max_examples=15, deadline=None)
@torch.inference_mode()
def test_the_search_covers_every_symbol_and_its_score_is_the_likelihood(seed, length, more):
    model, ids = tiny(), text(seed, 1, length)
    z = torch.randn(1, 8, length + more, generator=torch.Generator().manual_seed(seed))
    reading = model.read(ids)
    scores = likelihood(z, reading)
    normal = torch.distributions.Normal(reading.mean[..., None], reading.logs.exp()[..., None])
    torch.testing.assert_close(scores, normal.log_prob(z[:, :, None]).sum(1), atol=1e-4, rtol=1e-4)
    sizes = torch.tensor([length]), torch.tensor([length + more])
    durations = maximum_path(scores, *sizes)
    assert durations.min() >= 1 and durations.sum() == length + more
    taught = model.teach(z, torch.zeros_like(z), sizes[1], ids, sizes[0], model.voices[:1])
    assert taught.durations.sum() == length + more and taught.prior.shape == taught.content.shape == z.shape


def test_known_durations_stand_in_for_the_search():
    model, ids = tiny(), text(items=1)
    known = torch.tensor([[2, 1, 5, 3, 4, 4, 1]])
    z = torch.randn(1, 8, 20, generator=torch.Generator().manual_seed(0))
    told = (z, torch.zeros_like(z), torch.tensor([20]), ids, torch.tensor([7]), model.voices[:1])
    taught = model.teach(*told, draw=torch.zeros, durations=known)
    assert torch.equal(taught.durations, known) and not torch.equal(model.teach(*told).durations, known)
    torch.testing.assert_close(taught.prior, model.read(ids).mean.repeat_interleave(known[0], 2))


def test_the_divergence_is_vits_one():
    model, ids = tiny(), text(items=1)
    torch.manual_seed(0)
    z, logs = torch.randn(1, 8, 20), 0.1 * torch.randn(1, 8, 20)
    sizes = torch.tensor([7]), torch.tensor([20])
    taught = model.teach(z, logs, sizes[1], ids, sizes[0], model.voices[:1])
    reading = model.read(ids)
    mean, spread = (x.repeat_interleave(taught.durations[0], 2) for x in (reading.mean, reading.logs))
    q = -logs - 0.5 * (1 + math.log(2 * math.pi))
    p = torch.distributions.Normal(mean, spread.exp()).log_prob(taught.content)
    torch.testing.assert_close(taught.losses["kl"], (q - p).sum() / 20)


# Adapters


@torch.inference_mode()
@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("kind", list(KERNELS))
def test_fresh_adapters_are_nothing_and_others_are_something(placement, kind):
    model = tiny()
    other = insert(sharing(model), Adapters(placement, kind, 2))
    ids, z, frames = text(items=1), torch.randn(1, 8, 20), torch.tensor([20])
    told = (z, torch.zeros_like(z), frames, ids, torch.tensor([7]), model.voices[:1])

    def say(net):
        torch.manual_seed(0)
        return net(ids, speaker=torch.tensor([1])), net.teach(*told)

    (spoken, taught), (want, wanted) = say(other), say(model)
    assert torch.equal(spoken.mel, want.mel) and torch.equal(spoken.durations, want.durations)
    assert torch.equal(taught.content, wanted.content) and taught.losses == wanted.losses
    for weight in adapter_weights(other).values():
        weight.add_(0.2 * torch.randn_like(weight))
    (spoken, taught), (again, _) = say(other), say(model)
    assert not torch.equal(taught.content, wanted.content) and taught.losses["duration"] != wanted.losses["duration"]
    assert torch.equal(again.mel, want.mel), "the model itself stays"
    # Six couplings and an attention; a norm, two layers each, but no norm of the single channel of durations.
    assert len(adapter_weights(other)) == (6 * 6 if placement.startswith("h") else 2 * 6 + 4 * 4) + 6


@torch.inference_mode()
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_adapted_models_have_no_padding_either(placement):
    model = moved(insert(tiny(speakers=1), Adapters(placement, reduction=2)), 0.1)
    ids, lengths, noise = text(), torch.tensor([7, 4]), torch.randn(2, 16, 500)
    both = model(ids, lengths, draw=lambda shape: noise[:, : shape[1], : shape[2]])
    one = model(ids[1:, :4], draw=lambda shape: noise[1:, : shape[1], : shape[2]])
    assert torch.equal(one.durations[0], both.durations[1, :4])
    torch.testing.assert_close(one.mel[0], both.mel[1, :, : int(one.mel_lengths)], atol=1e-4, rtol=1e-3)


def test_the_sizes_are_the_paper_s():
    with torch.device("meta"):
        model = paper(320, mel="hifigan", speakers=1)
        total = sum(p.numel() for p in model.parameters())
        parts = {name: sum(p.numel() for p in m.parameters()) for name, m in model.named_children()}
        own = adapter_weights(insert(model, Adapters()))
    assert 40e6 < total < 50e6 and parts["posterior"] == 2 * 192 * 193
    # Twelve couplings of width 192 with five frames, six attentions: what the paper counts as 0.64 M with the vector.
    wide, flat = 384 + 2 * 192 * 24 * 5 + 216, 384 + 2 * 192 * 24 + 216
    assert sum(w.numel() for w in own.values()) == 12 * wide + 6 * flat == 619_056
    assert (sum(w.numel() for w in own.values()) + 256) / total < 0.02
    with torch.device("meta"):
        assert sum(p.numel() for p in usat_small(320).parameters()) < 5e6


@torch.inference_mode()
def test_a_voice_is_kept_and_put_beside_a_shared_model(tmp_path):
    model, kinds = tiny(), Adapters("x-seq", "linear", 4)
    other = insert(sharing(model), kinds)
    for weight in adapter_weights(other).values():
        weight.add_(0.1 * torch.randn_like(weight))
    voice = AdaptedVoice.of(other, "anna", kinds, fingerprint(model))
    path = voice.save(tmp_path / "anna.safetensors")
    kept = AdaptedVoice.load(path)
    assert kept.kinds == kinds and kept.numbers == voice.numbers and kept.name == "anna"
    before = fingerprint(model)
    loaded = adapted(model, kept)
    assert fingerprint(model) == before and loaded.enter.weight is model.enter.weight
    said = []
    for net, speaker in ((other, torch.tensor([0])), (loaded, None)):
        torch.manual_seed(0)
        said.append(net(text(items=1), speaker=speaker).mel)
    assert torch.equal(*said)
    with pytest.raises(UserError, match="voice anna was made for another model"):
        adapted(tiny(depth=2), kept)


# Bad input


def test_says_what_is_wrong():
    model = tiny()
    with pytest.raises(UserError, match="cannot be spoken"):
        model(torch.zeros(1, 0, dtype=torch.long), speaker=torch.tensor([0]))
    with pytest.raises(UserError, match=r"no speaker \[3\]; numbers go from 0 to 2"):
        model(text(items=1), speaker=torch.tensor([3]))
    with pytest.raises(UserError, match="needs a speaker or a voice"):
        model(text(items=1))
    with pytest.raises(UserError, match=r"voice of shape \[1, 5\] for 1 texts: give vectors \[1, 12\]"):
        model(text(items=1), voice=torch.zeros(1, 5))
    with pytest.raises(UserError, match="adapters beside, conv, reduced by 8: choose one of h-res"):
        Adapters("beside")
    with pytest.raises(UserError, match="there is no vocoder nothing"):
        tiny(decoder="nothing")
    with pytest.raises(UserError, match="8 symbols but only 3 frames"):
        z = torch.zeros(1, 8, 3)
        model.teach(z, z, torch.tensor([3]), text(length=8, items=1), torch.tensor([8]), model.voices[:1])


def test_flows_need_halves():
    with pytest.raises(UserError, match="9 channels have no halves"):
        MeanFlow(9)
