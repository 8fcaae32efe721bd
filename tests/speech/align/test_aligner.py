"""The learned aligner against an official one, and what must hold for any."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.parity import parity
from vitalk.speech.align.aligner import (
    Aligner,
    ForwardSumLoss,
    beta_binomial_prior,
    binarisation_loss,
    hard_durations,
    mask_of,
    priors,
    soft_attention,
)
from vitalk.speech.align.search import path_of

FOLDER = Path(__file__).parents[2] / "parity"
TEXT, FRAMES = torch.tensor([11, 8]), torch.tensor([37, 29])


@pytest.fixture(scope="module")
def official():
    """The fixture, its inputs, and our aligner with the official weights."""
    loaded = parity.load(FOLDER / "zmm-tts.aligner.json")
    state = {
        key.replace("key_proj", "key").replace("query_proj", "query").replace(".conv.", "."): torch.from_numpy(value)
        for key, value in parity.filled_state(loaded).items()
    }
    aligner = Aligner(512, 128, 128).eval()
    aligner.load_state_dict(state)
    assert sum(p.numel() for p in aligner.parameters()) == loaded["params"]
    inputs = {name: torch.from_numpy(parity.tensor(name, **spec)) for name, spec in loaded["inputs"].items()}
    return loaded["outputs"], inputs, aligner


def near(found, expected):
    return parity.distance(found.detach().numpy(), expected) < 1e-4


def test_attention_and_prior_agree(official):
    expected, inputs, aligner = official
    attn, logprob = aligner(inputs["keys"].transpose(1, 2), inputs["queries"])
    assert near(attn[:, None], expected["attention_plain"]) and near(logprob[:, None], expected["logprob_plain"])
    assert near(priors(TEXT, FRAMES), expected["prior"])


def with_prior(inputs, aligner):
    # The release neither masks what the convolutions see nor the softmax under the prior; masks are for afterwards.
    return aligner(inputs["keys"].transpose(1, 2), inputs["queries"], prior=priors(TEXT, FRAMES))[1]


def test_attention_under_the_prior_losses_and_durations_agree(official):
    expected, inputs, aligner = official
    logprob = with_prior(inputs, aligner)
    attn = soft_attention(logprob, mask_of(TEXT))
    assert near(logprob[:, None], expected["logprob"]) and near(attn[:, None], expected["attention"])
    durations = hard_durations(logprob, TEXT, FRAMES)
    assert near(durations, expected["durations"])
    hard = path_of(durations, 37).transpose(1, 2)
    assert near(hard[0], expected["hard_0"]) and near(hard[1, :29, :8], expected["hard_1"])
    assert near(binarisation_loss(hard, attn)[None], expected["bin_loss"])
    assert near(ForwardSumLoss()(logprob, TEXT, FRAMES)[None], expected["forward_sum_loss"])


def test_durations_of_a_map_far_from_the_diagonal_agree(official):
    expected, inputs, _ = official
    attn = inputs["soft_map"][:, 0].softmax(2)
    durations = hard_durations(attn.log(), TEXT, FRAMES)
    assert near(durations, expected["durations_of_soft_map"])
    hard = path_of(durations, 37).transpose(1, 2)
    assert near(binarisation_loss(hard, attn)[None], expected["bin_loss_of_soft_map"])


def test_padding_has_no_influence(official):
    _, inputs, aligner = official
    keys, queries = inputs["keys"].transpose(1, 2), inputs["queries"]
    attn, logprob = aligner(keys, queries, mask_of(TEXT), mask_of(FRAMES), priors(TEXT, FRAMES))
    alone = aligner(keys[1:, :8], queries[1:, :, :29], prior=priors(TEXT[1:], FRAMES[1:]))
    for batched, single in zip((attn, logprob), alone, strict=True):
        torch.testing.assert_close(batched[1:, :29, :8], single, atol=1e-5, rtol=1e-4)
    assert not attn[1, 29:].any() and not attn[1, :, 8:].any()
    loss = ForwardSumLoss()
    both = loss(logprob, TEXT, FRAMES)
    each = [
        loss(logprob[i : i + 1, :f, :t], TEXT[i : i + 1], FRAMES[i : i + 1])
        for i, (t, f) in enumerate(((11, 37), (8, 29)))
    ]
    torch.testing.assert_close(both, torch.stack(each).mean())


@given(st.integers(1, 12), st.integers(1, 60), st.floats(0.2, 3))
@settings(max_examples=30, deadline=None)
def test_the_prior_is_the_beta_binomial_distribution(text, frames, scale):
    from scipy.stats import betabinom

    i = np.arange(1, frames + 1)[:, None]
    expected = betabinom(text, scale * i, scale * (frames + 1 - i)).pmf(np.arange(text))
    np.testing.assert_allclose(beta_binomial_prior(frames, text, scale), expected, rtol=1e-5, atol=1e-7)


def test_forward_sum_is_the_sum_over_all_paths_and_its_gradients_are_finite():
    # With a blank that never comes, CTC sums over the cuts of the frames; two symbols in four frames have three.
    logprob = torch.randn(1, 4, 2).log_softmax(2).requires_grad_()
    loss = ForwardSumLoss(blank=-1e4)(logprob, torch.tensor([2]), torch.tensor([4]))
    paths = torch.stack([logprob[0, :cut, 0].sum() + logprob[0, cut:, 1].sum() for cut in (1, 2, 3)])
    torch.testing.assert_close(loss, -paths.logsumexp(0) / 2)
    aligner = Aligner(6, 5, 4)
    text, mel = torch.randn(2, 7, 6, requires_grad=True), torch.randn(2, 5, 20, requires_grad=True)
    lengths = torch.tensor([7, 3]), torch.tensor([20, 11])
    attn, logprob = aligner(text, mel, *map(mask_of, lengths), priors(*lengths))
    hard = path_of(hard_durations(logprob, *lengths), 20).transpose(1, 2)
    (ForwardSumLoss()(logprob, *lengths) + binarisation_loss(hard, attn)).backward()
    for tensor in (text, mel, *aligner.parameters()):
        assert tensor.grad.isfinite().all() and tensor.grad.abs().sum() > 0
