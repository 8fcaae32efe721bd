"""Quantizers: the values they round to, and how they choose their scales."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitalk.errors import UserError
from vitalk.nn.quant import MINMAX, OMSE, Log2Quantizer, LogSqrt2Quantizer, Ranges, UniformQuantizer
from vitalk.nn.quant.quantizers import PERCENTILES, SHRINK, extremes

seeds = st.integers(0, 10_000)
bits = st.integers(2, 8)


def fitted(quantizer, x):
    quantizer.fit(x)
    return quantizer(x)


@settings(deadline=None, max_examples=40)
@given(seed=seeds, bits=bits, symmetric=st.booleans())
def test_uniform_has_at_most_two_to_the_bits_values(seed, bits, symmetric):
    x = torch.randn(500, generator=torch.Generator().manual_seed(seed))
    out = fitted(UniformQuantizer(bits, symmetric=symmetric), x)
    assert len(out.unique()) <= 2**bits
    assert out.shape == x.shape


@settings(deadline=None, max_examples=40)
@given(seed=seeds, bits=bits, kind=st.sampled_from([Log2Quantizer, LogSqrt2Quantizer]))
def test_logarithmic_has_one_value_more_for_zero(seed, bits, kind):
    x = (4 * torch.randn(20, 30, generator=torch.Generator().manual_seed(seed))).softmax(-1)
    assert len(fitted(kind(bits), x).unique()) <= 2**bits + 1


def test_the_shift_form_of_sqrt2_is_the_power():
    codes = torch.arange(256, dtype=torch.float64)
    torch.testing.assert_close(LogSqrt2Quantizer(8).shares(codes), 2 ** (-codes / 2), rtol=1e-15, atol=0)


@settings(deadline=None, max_examples=40)
@given(seed=seeds, bits=bits)
def test_uniform_is_the_formula_code_by_code(seed, bits):
    x = torch.randn(300, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    quantizer = UniformQuantizer(bits)
    out = fitted(quantizer, x)
    s, z = quantizer.scale.item(), quantizer.zero_point.item()
    codes = np.clip(np.round(x.numpy() / s) + z, 0, 2**bits - 1)
    np.testing.assert_allclose(out.numpy(), (codes - z) * s, rtol=1e-12)
    assert z == round(z) and 0 <= z < 2**bits


@settings(deadline=None, max_examples=40)
@given(seed=seeds, rows=st.integers(1, 4), count=st.integers(1, 3000))
def test_extremes_are_the_quantiles(seed, rows, count):
    x = torch.randn(rows, count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    low, high = extremes(x, PERCENTILES.percentiles)
    p = np.array(PERCENTILES.percentiles)
    np.testing.assert_allclose(high.numpy(), np.quantile(x.numpy(), p, axis=1), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(low.numpy(), np.quantile(x.numpy(), 1 - p, axis=1), rtol=1e-9, atol=1e-12)


def test_extremes_take_more_values_than_torch_quantile_does():
    low, high = extremes(torch.arange(2**24 + 2**20, dtype=torch.float32)[None], PERCENTILES.percentiles)
    assert torch.all(low.diff(dim=0) < 0) and torch.all(high.diff(dim=0) > 0)


@pytest.mark.parametrize("quantizer", [UniformQuantizer(4), UniformQuantizer(4, symmetric=True)], ids=["asym", "sym"])
def test_no_candidate_is_better_than_the_chosen_one(quantizer):
    x = torch.randn(4000) ** 3
    error = (fitted(quantizer, x) - x).square().mean()
    errors = (quantizer.trial(x, *quantizer.candidates(x[None])) - x).square().mean(1)
    assert len(errors) == (len(SHRINK.shares) if quantizer.symmetric else len(PERCENTILES.percentiles))
    torch.testing.assert_close(error, errors.min())


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_per_channel_equals_one_quantizer_a_channel(axis, symmetric):
    x = torch.randn(3, 5, 7) * torch.tensor([0.01, 1, 50])[:, None, None]
    whole = fitted(UniformQuantizer(5, axis=axis, symmetric=symmetric), x)
    each = [fitted(UniformQuantizer(5, symmetric=symmetric), part) for part in x.unbind(axis)]
    torch.testing.assert_close(whole, torch.stack(each, dim=axis))


def test_a_channel_far_from_zero_keeps_its_resolution_where_zero_need_not_be_a_value():
    x = torch.rand(1000, 2) + torch.tensor([0.0, 100.0])
    narrow = fitted(UniformQuantizer(4, axis=-1, covers_zero=False), x)
    wide = fitted(UniformQuantizer(4, axis=-1), x)
    assert (narrow - x).abs().max() < 0.04 < 0.5 < (wide - x)[:, 1].abs().max()


def test_constant_and_zero_channels_survive():
    x = torch.tensor([0.0, 3.0]).expand(10, 2)
    for covers_zero in (True, False):
        out = fitted(UniformQuantizer(8, axis=-1, covers_zero=covers_zero), x)
        torch.testing.assert_close(out, x, rtol=1e-4, atol=1e-6)


def test_exact_zeros_stay_zero_under_the_logarithm():
    x = torch.tensor([[0.0, 1e-30, 0.5, 0.5]])
    out = fitted(LogSqrt2Quantizer(4), x)
    assert out.isfinite().all() and (out[0, :2] == 0).all()
    torch.testing.assert_close(out[0, 2:], x[0, 2:])


@settings(deadline=None, max_examples=30)
@given(seed=seeds)
def test_relative_error_of_the_logarithms_is_half_a_step(seed):
    x = torch.rand(400, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 0.9 + 0.1
    for kind in (Log2Quantizer, LogSqrt2Quantizer):
        quantizer = kind(4)
        quantizer.scale = torch.tensor(1.0, dtype=torch.float64)
        octaves = (quantizer(x) / x).log2().abs()
        assert octaves.max() <= 0.5 / kind.per_octave + 1e-9
    assert math.isclose(float(quantizer(torch.ones(1))), 1.0)


def test_state_returns_with_its_shapes():
    x = torch.randn(6, 4)
    first = UniformQuantizer(4, axis=-1)
    wanted = fitted(first, x)
    second = UniformQuantizer(4, axis=-1)
    second.load_state_dict(first.state_dict())
    assert torch.equal(second(x), wanted)


def test_off_it_lets_everything_through_and_unfitted_it_refuses():
    quantizer = UniformQuantizer(4)
    x = torch.randn(5)
    with pytest.raises(UserError, match="calibrate"):
        quantizer(x)
    quantizer.enabled = False
    assert quantizer(x) is x


def test_minmax_reaches_the_extremes_and_the_search_is_never_worse():
    x = torch.cat([torch.randn(2000), torch.tensor([-9.0, 14.0])])
    minmax = UniformQuantizer(4, ranges=MINMAX)
    worst = (fitted(minmax, x) - x).square().mean()
    assert math.isclose(float(minmax.scale), 23 / 15, rel_tol=1e-6)
    assert (fitted(UniformQuantizer(4, ranges=OMSE), x) - x).square().mean() < 0.5 * worst


def test_percentiles_bound_the_magnitudes_of_symmetric_ranges():
    x = torch.cat([torch.linspace(-1, 1, 1001), torch.tensor([50.0])])
    quantizer = UniformQuantizer(8, symmetric=True, ranges=Ranges((0.99,)))
    quantizer.fit(x)
    assert 0.95 < float(quantizer.scale) * 127 < 1.0


def test_groups_share_a_scale():
    x = torch.randn(6, 50) * torch.tensor([1.0, 1, 10, 10, 100, 100])[:, None]
    grouped = fitted(UniformQuantizer(4, axis=0, groups=3), x)
    each = [fitted(UniformQuantizer(4), part) for part in x.split(2)]
    torch.testing.assert_close(grouped, torch.cat(each))


def test_bits_may_change_until_it_is_fitted():
    x = torch.randn(3000)
    quantizer = UniformQuantizer(8)
    quantizer.bits = 3
    assert len(fitted(quantizer, x).unique()) <= 8
    with pytest.raises(UserError, match="2 to 8"):
        UniformQuantizer(9)


@settings(deadline=None, max_examples=20)
@given(seed=seeds, axis=st.sampled_from([None, 0, -1]))
def test_gradients_are_those_of_the_straight_through_formula(seed, axis):
    """Against autograd through the same formula with a rounding whose gradient is 1."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(5, 4, dtype=torch.float64, generator=generator)
    quantizer = UniformQuantizer(3, axis=axis)
    quantizer.fit(0.6 * x)  # so that some of x is clipped
    known = [p.clone() for p in (quantizer.scale, quantizer.zero_point)]
    ours = [t.clone().requires_grad_() for t in (x, *known)]
    theirs = [t.clone().requires_grad_() for t in (x, *known)]
    weight = torch.randn(5, 4, dtype=torch.float64, generator=generator)
    found = torch.ops.vitalk.quantize_dequantize(*ours, 0 if axis is None else axis, quantizer.low, quantizer.high)
    (found * weight).sum().backward()

    y, s, z = theirs
    shape = {None: (), 0: (-1, 1), -1: (1, -1)}[axis]
    s, z = (p.view(shape) if shape else p for p in (s, z))
    steps = y / s
    whole = (steps.round() + z).detach()
    inside = (whole >= quantizer.low) & (whole <= quantizer.high)
    passed = steps + (steps.round() - steps).detach() + z
    expected = (torch.where(inside, passed, whole.clamp(quantizer.low, quantizer.high)) - z) * s
    (expected * weight).sum().backward()
    torch.testing.assert_close(found, expected)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_a_scale_can_be_learnt_and_fixed_again():
    x = torch.randn(400)
    quantizer = UniformQuantizer(4)
    quantizer.fit(5 * x)  # far too wide
    quantizer.learn()
    optimizer = torch.optim.Adam(quantizer.parameters(), 0.02)
    before = float((quantizer(x) - x).square().mean().detach())
    for _ in range(60):
        optimizer.zero_grad()
        (quantizer(x) - x).square().mean().backward()
        optimizer.step()
    quantizer.learn(False)
    assert not list(quantizer.parameters()) and "scale" in quantizer.state_dict()
    assert float((quantizer(x) - x).square().mean()) < 0.5 * before
