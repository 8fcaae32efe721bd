"""Integer kernels: what they approximate, their exact invariants, and that their graphs equal them bit for bit."""

import math
from functools import partial

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitalk.systems.vit_quant_survey import kernels as k
from vitalk.systems.vit_quant_survey.integer_graph import operators, traced


def codes(*shape, low=-128, high=127, seed=0):
    return np.random.default_rng(seed).integers(low, high + 1, shape)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def gelu(x):
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


@settings(deadline=None)
@given(ratio=st.floats(2**-29, 2**20), x=st.integers(-(2**30) + 1, 2**30 - 1))
def test_a_dyadic_ratio_is_near_and_rounds_half_up(ratio, x):
    multiplier, shift = k.dyadic(ratio)
    assert abs(int(multiplier) / 2 ** int(shift) / ratio - 1) < 2**-30
    whole = k.rescale(ratio, 40)(np.int64(x))
    assert int(whole) == min(max((x * int(multiplier) + 2 ** (int(shift) - 1)) >> int(shift), -(2**39)), 2**39 - 1)
    assert abs(int(k.dyadic(ratio, 8)[0]) / 2.0 ** int(k.dyadic(ratio, 8)[1]) / ratio - 1) <= 2**-8


@settings(deadline=None)
@given(
    ratio=st.floats(1e-8, 1.0), offset=st.floats(-300, 300), x=st.integers(-(2**30) + 1, 2**30 - 1), sign=st.booleans()
)
def test_rescaling_is_rounding(ratio, offset, x, sign):
    ratio = -ratio if sign else ratio
    got = int(k.rescale(ratio, 8, offset)(np.int64(x)))
    assert abs(got - min(max(x * ratio + offset, -128), 127)) < 0.5 + 1e-3


@settings(deadline=None)
@given(v=st.one_of(st.integers(1, 10**6), st.integers(1, 2**62 - 1), st.integers(1, 2**30).map(lambda r: r * r)))
def test_the_integer_root_is_the_floor_of_the_root(v):
    for value in {v, v - 1 or 1}:
        assert int(k.isqrt(np.array([value]))[0]) == math.isqrt(value)


def test_the_papers_ten_steps_are_too_few_for_small_numbers():
    v = np.array([100, 1_000, 10_000, 100_000, 1_000_000])
    plain = np.full_like(v, 2**16)
    for _ in range(10):
        plain = (plain + v // plain) // 2
    assert plain.tolist() == [64, 68, 108, 316, 1000]
    assert k.newton(v, np.full_like(v, 2**16), 30).tolist() == [10, 31, 100, 316, 1000]


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("columns", [5, 197])
def test_rows_of_shiftmax_sum_to_a_little_less_than_one(columns, bits):
    x, unit = codes(6, columns), 12
    n = k.octaves(unit, columns)
    e = k.shift_exp(x - x.max(-1, keepdims=True), unit, n)
    total = k.shiftmax(x, unit, n, bits).sum(-1) / 2 ** (bits - 1)
    lowest = 1 - columns * 2.0 ** -(bits - 1) - e.sum(-1) / 2**31
    assert (e.sum(-1) <= 2**k.SUM_BITS).all() and (total <= 1).all() and (total >= lowest).all()


@pytest.mark.parametrize("kernel", ["shift", "polynomial"])
def test_softmax_in_integers_is_near_softmax(kernel):
    x, unit = codes(8, 65), 16
    got = k.shiftmax(x, unit) if kernel == "shift" else k.poly_softmax(x, 1 / unit)
    exact = softmax(x / unit)
    assert (np.abs(got / 2**15 - exact).sum(-1) < (0.08 if kernel == "shift" else 0.02)).all()
    assert (got.argmax(-1) == exact.argmax(-1)).all()


@pytest.mark.parametrize("unit", [8, 16, 64])
def test_gelu_in_integers_is_near_gelu(unit):
    scale = 1 / (k.GELU * unit)
    x = np.arange(-3 * unit * 2, 3 * unit * 2 + 1)[None]
    got = k.shift_gelu(x, unit, k.octaves(unit, 4, 23)) * scale / 2**7
    assert np.abs(got - gelu(x * scale)).max() < 0.06
    assert np.abs(k.poly_gelu(x, scale) * k.poly_gelu_scale(scale) - gelu(x * scale)).max() < 0.06


def test_shift_gelu_needs_small_sums():
    """The papers' n = 23 leaves the quotient without bits at fine scales; a smaller one does not."""
    unit = 38  # a scale of 1 / 64
    x = np.arange(-192, 193)[None]
    error = [
        np.abs(k.shift_gelu(x, unit, n, rowwise=True) / 64 / 2**7 - gelu(x / 64)).max()
        for n in (23, k.octaves(unit, 4, 23))
    ]
    assert error[0] > 0.3 and error[1] < 0.1


def test_a_large_value_in_a_row_does_not_harm_the_others():
    unit = 16
    x = np.array([[-40, 0, 20, 400]])
    n = k.octaves(unit, 4, 23)
    alone = k.shift_gelu(x[:, :3], unit, n)
    assert np.array_equal(k.shift_gelu(x, unit, n)[:, :3], alone)
    assert not np.array_equal(k.shift_gelu(x, unit, n, rowwise=True)[:, :3], alone)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), spread=st.integers(2, 2**15), dim=st.integers(2, 96))
def test_layer_norm_in_integers_is_near_layer_norm(seed, spread, dim):
    x = codes(3, dim, low=-spread, high=spread, seed=seed)
    deviation = x.std(-1, keepdims=True)
    got = k.layer_norm(x, dim) * k.layer_norm_scale(dim)
    # The mean is rounded to half a code, the root down to a whole number.
    wanted = (x - x.mean(-1, keepdims=True)) / np.maximum(deviation, 1e-9)
    slack = 2 / np.maximum(deviation, 0.5) * (1 + np.abs(wanted))
    assert (np.abs(got - wanted) <= slack + 1e-3).all() or (deviation < 1).any()


def test_power_of_two_factors_are_shifts_in_front_of_layer_norm():
    x, factors = codes(4, 32), codes(32, low=0, high=3)
    scaled = x * 2.0**factors
    wanted = (scaled - scaled.mean(-1, keepdims=True)) / scaled.std(-1, keepdims=True)
    assert np.abs(k.layer_norm(x << factors, 32) * k.layer_norm_scale(32) - wanted).max() < 0.01


@settings(deadline=None)
@given(seed=st.integers(0, 10**6))
def test_log_attention_by_shifts_is_the_product_of_what_is_decoded(seed):
    c, v = codes(2, 7, 9, low=0, high=16, seed=seed), codes(2, 9, 5, seed=seed + 1)
    decoded = np.where(c < 16, 2.0**-c, 0.0)
    assert np.array_equal(k.log_product(c, v) / 2**15, decoded @ v)
    shifted = np.where(c[..., None] < 16, v[:, None] << np.maximum(15 - c, 0)[..., None], 0).sum(2)
    assert np.array_equal(k.log_product(c, v), shifted)


def test_log_codes_are_rounded_logarithms_of_softmax():
    x = codes(4, 33)
    c = k.log_softmax_codes(x, 1 / 16)
    exact = -np.log2(softmax(x / 16))
    assert c.min() >= 0 and c.max() == 16
    assert (np.abs(c - exact)[c < 16] < 0.65).all()  # thresholds at 1.5, not at sqrt(2)


def test_sixteen_bit_products_are_two_planes():
    p, v = codes(3, 5, 8, low=0, high=2**15), codes(3, 8, 4)
    assert np.array_equal(k.wide_product(p, v), p @ v)


KERNELS = {
    "shiftmax": (partial(k.shiftmax, unit=7, n=12), {"x": (3, 50)}, {}),
    "shift_gelu": (partial(k.shift_gelu, unit=9, n=16), {"x": (3, 50)}, {}),
    "shift_gelu of rows": (partial(k.shift_gelu, unit=9, n=16, rowwise=True), {"x": (3, 50)}, {}),
    "poly_softmax": (partial(k.poly_softmax, scale=0.07), {"x": (3, 50)}, {}),
    "poly_gelu": (partial(k.poly_gelu, scale=0.07), {"x": (3, 50)}, {}),
    "log_softmax_codes": (partial(k.log_softmax_codes, scale=0.07), {"x": (3, 50)}, {}),
    "layer_norm": (partial(k.layer_norm, dim=50), {"x": (3, 50)}, {"low": -(2**15), "high": 2**15 - 1}),
    "isqrt": (k.isqrt, {"v": (50, 1)}, {"low": 1, "high": 2**62 - 1}),
    "rescale": (lambda x: k.rescale(0.0123, 8, 3.7)(x), {"x": (3, 50)}, {"low": -(2**29), "high": 2**29}),
    "product": (k.product, {"a": (3, 4, 50), "b": (3, 50, 6)}, {}),
    "wide_product": (k.wide_product, {"p": (3, 4, 50), "v": (3, 50, 6)}, {"low": 0, "high": 127}),
    "log_product": (k.log_product, {"codes": (3, 4, 50), "v": (3, 50, 6)}, {"low": 0, "high": 16}),
}


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernels_graph_equals_it_bit_for_bit(name):
    function, shapes, limits = KERNELS[name]
    inputs = {key: codes(*shape, seed=i, **limits) for i, (key, shape) in enumerate(shapes.items())}
    model = traced(function, **shapes)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert np.array_equal(session.run(None, inputs)[0], function(*inputs.values()))


def test_kernels_are_written_as_shifts_and_8_bit_products():
    assert "BitShift" in set(operators(traced(partial(k.shiftmax, unit=7, n=12), x=(3, 50))))
    assert "MatMulInteger" in set(operators(traced(k.product, a=(4, 5), b=(5, 6))))
