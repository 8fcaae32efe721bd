"""Positive random features and the linear attention that stands on them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitalk.nn.performer import PositiveFeatures, linear_attention


def tokens(*shape, norm=0.8, seed=0):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return norm * x / x.norm(dim=-1, keepdim=True)


@settings(deadline=None, max_examples=20)
@given(dim=st.integers(1, 48), share=st.floats(0.01, 1.0))
def test_rows_are_orthogonal_with_norm_root_m(dim, share):
    m = max(1, int(dim * share))
    w = PositiveFeatures(dim, m).projection
    torch.testing.assert_close(w @ w.T, m * torch.eye(m), atol=1e-4, rtol=0)


@settings(deadline=None, max_examples=20)
@given(count=st.integers(1, 40), dim=st.integers(2, 32), norm=st.floats(0.01, 1.5), seed=st.integers(0, 99))
def test_every_output_is_a_convex_combination_of_the_values(count, dim, norm, seed):
    torch.manual_seed(seed)
    features = PositiveFeatures(dim, dim // 2)
    q, k, v = tokens(3, 2, count, dim, norm=norm, seed=seed)
    q, k = features(q), features(k)
    weights = linear_attention(q, k, torch.eye(count).expand(2, -1, -1))
    assert (weights >= 0).all()
    total = (q @ k.transpose(1, 2)).sum(-1)
    torch.testing.assert_close(weights.sum(-1), total / (total + 1e-8))
    torch.testing.assert_close(linear_attention(q, k, v), weights @ v, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("m", "textbook"), [(64, True), (32, False)])
def test_the_averaged_kernel_is_what_the_docstring_says(m, textbook):
    torch.manual_seed(0)
    q, k = tokens(1, 6, 64, seed=1), tokens(1, 6, 64, seed=2)
    k = k * torch.linspace(0.5, 1.5, 6)[:, None]  # so that a penalty on the norm of the keys shows
    kernel, draws = torch.zeros(1, 6, 6, dtype=torch.float64), 3000
    features = PositiveFeatures(64, m)
    for _ in range(draws):
        features.reset_parameters()
        kernel += (features(q) @ features(k).transpose(1, 2)).double() / draws
    logits = q @ k.transpose(1, 2)
    softer = logits / 2 - k.square().sum(-1)[:, None] / 4
    weights = kernel / kernel.sum(-1, keepdim=True)
    right, wrong = ((weights - x.softmax(-1)).abs().max() for x in ((logits, softer) if textbook else (softer, logits)))
    assert right < 0.01 < wrong


def test_linear_attention_equals_the_quadratic_form():
    q, k, v = torch.rand(2, 9, 5), torch.rand(2, 9, 5), torch.randn(2, 9, 7)
    weights = q @ k.transpose(1, 2)
    torch.testing.assert_close(linear_attention(q, k, v), weights @ v / weights.sum(-1, keepdim=True))


def test_the_projection_is_saved_but_never_trained():
    features = PositiveFeatures(8, 4)
    assert "projection" in features.state_dict() and not list(features.parameters())
    x = torch.randn(1, 3, 8, requires_grad=True)
    features(x).sum().backward()
    assert features.projection.grad is None and x.grad.abs().sum() > 0


def test_two_draws_are_two_maps():
    first, second = PositiveFeatures(8, 4), PositiveFeatures(8, 4)
    x = torch.randn(1, 3, 8)
    assert not torch.allclose(first(x), second(x))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(x), second(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_features_stay_in_float32_under_autocast(dtype):
    features = PositiveFeatures(64, 64)
    peak = features.projection[:1].clone()  # u = w gives exp(|w|^2 / 2) = exp(32), which overflows float16
    with torch.autocast("cpu", dtype=dtype):
        mapped = features(peak[None])
        mixed = linear_attention(mapped, mapped, peak[None].to(dtype))
    assert mapped.dtype == torch.float32 and mixed.dtype == dtype
    assert mapped.max().item() == pytest.approx(math.exp(32) / 8, rel=1e-3)
    torch.testing.assert_close(mixed.float(), peak[None], atol=0.05, rtol=0.05)


def test_where_all_features_underflow_the_output_is_zero():
    features = PositiveFeatures(64, 32)
    far = 40 * torch.eye(64)[:3][None]
    assert torch.equal(linear_attention(features(far), features(far), torch.ones(1, 3, 2)), torch.zeros(1, 3, 2))


@pytest.mark.parametrize("count", [0, 9])
def test_refuses_features_that_cannot_be_orthogonal(count):
    with pytest.raises(ValueError, match="between 1 and dim"):
        PositiveFeatures(8, count)
