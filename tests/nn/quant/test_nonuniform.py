"""Tables of values: the cards' formulas, their codes, and the choice among candidates."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitalk.nn.quant import (
    AdaptiveLogQuantizer,
    Log2Quantizer,
    LogSqrt2Quantizer,
    ShiftLog2Quantizer,
    TanQuantizer,
    TwinUniformQuantizer,
    UniformQuantizer,
)
from vitalk.nn.quant.nonuniform import LEAST_GELU
from vitalk.nn.quant.spectrum import Spectrum

SOFTMAX = [
    Log2Quantizer,
    LogSqrt2Quantizer,
    ShiftLog2Quantizer,
    TanQuantizer,
    AdaptiveLogQuantizer,
    TwinUniformQuantizer,
]
seeds = st.integers(0, 10_000)


def probabilities(seed=0, rows=40, columns=197, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(rows, columns, dtype=dtype, generator=generator)).softmax(-1)


def behind_gelu(seed=0, count=4000):
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.gelu(1.5 * torch.randn(count, generator=generator))


def fitted(quantizer, x):
    quantizer.fit(x)
    return quantizer(x)


@settings(deadline=None, max_examples=20)
@given(seed=seeds, bits=st.integers(2, 8), kind=st.sampled_from(SOFTMAX))
def test_values_are_few_and_rounding_twice_is_rounding_once(seed, bits, kind):
    x = probabilities(seed)
    quantizer = kind(bits)
    out = fitted(quantizer, x)
    assert len(out.unique()) <= 2**bits + 1
    torch.testing.assert_close(quantizer(out.clamp_min(0)), out, rtol=1e-5, atol=1e-7)


@settings(deadline=None, max_examples=20)
@given(seed=seeds, bits=st.integers(3, 6), kind=st.sampled_from(SOFTMAX))
def test_the_candidates_are_judged_as_if_each_had_rounded_the_data(seed, bits, kind):
    x = probabilities(seed, rows=5, dtype=torch.float64)
    quantizer = kind(bits)
    for found in quantizer.candidates(x.flatten()):
        values, edges = quantizer.values(*found), quantizer.edges(*found)
        if edges[0, 0] > edges[0, -1]:
            values, edges = values.flip(1), edges.flip(1)
        by_table = Spectrum(x).errors(values, edges)
        by_hand = (quantizer.trial(x, *found) - x).square().flatten(1).mean(1)
        torch.testing.assert_close(by_table, by_hand, rtol=1e-6, atol=1e-15)
        error = (fitted(quantizer, x) - x).square().mean()
        torch.testing.assert_close(error, by_hand.min(), rtol=1e-6, atol=1e-15)


@pytest.mark.parametrize("kind", SOFTMAX)
def test_codes_do_not_jump_about(kind):
    x = probabilities()
    quantizer = kind(4)
    quantizer.fit(x)
    line = torch.linspace(0, 1, 5001)
    assert (quantizer(line).diff() >= 0).all()


@pytest.mark.parametrize("kind", SOFTMAX)
def test_gradients_pass_straight_through(kind):
    x = probabilities().requires_grad_()
    quantizer = kind(4)
    quantizer.fit(x)
    out = quantizer(x)
    out.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))
    with torch.no_grad():
        assert torch.equal(quantizer(x), out)


def test_shift_log2_values_are_powers_less_the_shift_as_many_as_the_card_counts():
    for bits, eta, count in ((4, 0.001, 11), (3, 0.01, 8)):
        quantizer = ShiftLog2Quantizer(bits)
        quantizer.etas = (eta,)
        # From a millionth to nearly 1, as softmax rows of 197 tokens reach.
        out = fitted(quantizer, torch.logspace(-7, math.log10(0.97), 4000))
        exponents = (out.unique().double() + eta).log2()
        assert (exponents - exponents.round()).abs().max() < 1e-4
        assert len(out.unique()) == count


def test_shift_log2_of_zero_is_nearly_zero():
    for eta, expected in ((0.001, -2.3e-5), (0.02, -0.0044), (0.05, 0.0125)):
        quantizer = ShiftLog2Quantizer(4)
        quantizer.etas = (eta,)
        quantizer.fit(torch.tensor([0.0, 1.0]))
        assert math.isclose(float(quantizer(torch.zeros(1))), expected, rel_tol=0.03)


def test_tan_reaches_both_ends_and_is_finest_there():
    quantizer = TanQuantizer(4)
    quantizer.take(torch.ones(1), torch.tensor(1.0), torch.tensor(2.7))
    values = quantizer.values(*quantizer.known)
    steps = values.diff()
    assert values[0].abs() < 1e-6 and (values[-1] - 1).abs() < 1e-6
    assert steps[0] < 1 / 15 < steps[7] and steps[-1] < 1 / 15
    torch.testing.assert_close(values.flip(0), 1 - values, rtol=0, atol=1e-6)
    quantizer.take(torch.ones(1), torch.tensor(1.0), torch.tensor(1e-2))
    torch.testing.assert_close(quantizer.values(*quantizer.known), torch.linspace(0, 1, 16), rtol=0, atol=1e-4)


@settings(deadline=None, max_examples=20)
@given(seed=seeds, bits=st.integers(2, 6))
def test_adaptive_log_with_base_37_is_log2_bit_for_bit(seed, bits):
    x = probabilities(seed)
    adaptive, plain = AdaptiveLogQuantizer(bits), Log2Quantizer(bits)
    adaptive.take(x, torch.tensor(1.0), torch.tensor(37.0))
    plain.take(x, torch.tensor(1.0))
    assert torch.equal(adaptive(x), plain(x))


@pytest.mark.parametrize("bits, bound", [(4, 0.5 / 15), (3, 0.5 / 7)])
def test_adaptive_log_mantissas_are_whole_and_near_the_powers(bits, bound):
    n = 2**bits
    for base in AdaptiveLogQuantizer.bases:
        quantizer = AdaptiveLogQuantizer(bits)
        quantizer.take(torch.ones(1), torch.tensor(1.0, dtype=torch.float64), torch.tensor(float(base)).double())
        rounded = quantizer.values(*quantizer.known)[:n]
        quantizer.smooth = True
        powers = quantizer.values(*quantizer.known)[:n]
        assert (rounded / powers - 1).abs().max() <= bound
        codes = torch.arange(n)
        mantissa = rounded * torch.exp2((codes * base // 37).double()) * (2 * n - 2)
        torch.testing.assert_close(mantissa, mantissa.round(), rtol=0, atol=1e-9)
        assert mantissa.min() >= n - 1 and mantissa.max() <= 2 * n - 2


def test_adaptive_log_is_no_worse_than_log2_on_the_same_data():
    x = probabilities()
    plain = Log2Quantizer(4)
    plain.take(x, torch.tensor(1.0))
    error = (fitted(AdaptiveLogQuantizer(4), x) - x).square().mean()
    assert error <= (plain(x) - x).square().mean()


def test_adaptive_log_with_a_shift_takes_what_is_behind_gelu_and_its_fold_leaves_the_shift_out():
    x = behind_gelu()
    quantizer = AdaptiveLogQuantizer(4, LEAST_GELU)
    out = fitted(quantizer, x)
    even = fitted(UniformQuantizer(4), x)
    assert (out - x).square().mean() < (even - x).square().mean()
    quantizer.folded = True
    torch.testing.assert_close(quantizer(x) - LEAST_GELU, out)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [3, 4, 6, 8])
def test_twin_steps_are_powers_of_two_apart_and_align_by_a_shift(signed, bits):
    x = behind_gelu() if signed else probabilities()
    quantizer = TwinUniformQuantizer(bits, signed)
    out = fitted(quantizer, x.double())
    fine, octaves = quantizer.known
    assert octaves == octaves.round() and len(out.unique()) <= 2**bits
    codes = quantizer.codes(x.double(), *quantizer.known).long()
    half = 2 ** (bits - 1)
    coarse = codes >= half
    if signed:
        assert torch.equal(coarse, x >= 0)
    magnitude = torch.where(coarse, codes - half, codes - (half - 1) if signed else codes)
    whole = torch.where(coarse, magnitude << int(octaves), magnitude)
    assert torch.equal(whole.double() * fine, out)


def test_twin_ranges_are_fine_where_gelu_is_negative():
    x = behind_gelu()
    twin, even = (fitted(quantizer, x) - x for quantizer in (TwinUniformQuantizer(6, True), UniformQuantizer(6)))
    assert twin[x < 0].square().mean() < 0.05 * even[x < 0].square().mean()


def test_state_returns():
    x = probabilities()
    for kind in SOFTMAX:
        first, second = kind(4), kind(4)
        wanted = fitted(first, x)
        second.load_state_dict(first.state_dict())
        assert torch.equal(second(x), wanted)


@pytest.mark.parametrize("kind", SOFTMAX)
def test_bits_may_change_until_the_quantizer_is_fitted(kind):
    x, wanted, changed = probabilities(), kind(4), kind(8)
    changed.bits = 4
    assert torch.equal(fitted(changed, x), fitted(wanted, x))
