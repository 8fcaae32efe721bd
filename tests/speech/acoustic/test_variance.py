"""Predictors, scales and embeddings of pitch and energy."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitalk.errors import UserError
from vitalk.speech.acoustic.fft_block import length_mask
from vitalk.speech.acoustic.variance import (
    BinEmbedding,
    CurveEmbedding,
    Scale,
    Spread,
    Variance,
    VariancePredictor,
    scale_gradient,
)

HZ = Spread(math.log(200), 0.3, 60.0, 800.0, log=True)
RAW = Spread(30.0, 20.0, 0.0, 300.0)


@pytest.mark.parametrize(
    ("arguments", "parameters"),
    [((256,), 395_009), ((256, 256, 4), 395_780), ((80, 256, 4), 260_612)],
)
def test_predictors_have_the_published_sizes(arguments, parameters):
    assert sum(p.numel() for p in VariancePredictor(*arguments).parameters()) == parameters


@given(st.integers(1, 10), st.sampled_from([1, 3, 5]), st.integers(1, 5))
@settings(max_examples=15, deadline=None)
def test_padding_does_not_reach_a_predictor(length, kernel, layers):
    predictor = VariancePredictor(8, 12, 2, layers, kernel).eval()
    x = torch.randn(2, 11, 8)
    together = predictor(x, length_mask(torch.tensor([11, length]), 11))
    assert torch.allclose(together[1, :length], predictor(x[1:, :length])[0], atol=1e-5)
    assert not together[1, length:].any()


@pytest.mark.parametrize("spread", [HZ, RAW])
@pytest.mark.parametrize("bins", [16, 256])
def test_bins_are_within_range_and_monotone(spread, bins):
    values = torch.cat([torch.empty(500).uniform_(-1e3, 1e3), torch.tensor([-1e9, 0.0, 1e9, torch.inf])]).sort()[0]
    ids = BinEmbedding(2, spread, bins).ids(values[None])[0]
    assert ids.min() == 0 and ids.max() == bins - 1 and (ids.diff() >= 0).all()


def test_bins_cover_the_range_evenly():
    ids = BinEmbedding(2, RAW, 256).ids(torch.linspace(-1, 301, 5000)[None])
    assert ids.unique().tolist() == list(range(256)) and BinEmbedding(2, RAW).edges.shape == (255,)
    pitch = BinEmbedding(2, HZ, 256)
    assert pitch.ids(torch.tensor([[0.0]])).item() == 0 and pitch.ids(torch.tensor([[30.0]])).item() == 1
    octaves = pitch.ids(torch.tensor([100.0, 200.0, 400.0])[None])[0].diff()
    assert abs(int(octaves[0] - octaves[1])) <= 1


@pytest.mark.parametrize("spread", [HZ, RAW])
def test_scales_lead_back(spread):
    scale, value = Scale(spread), torch.tensor([70.0, 200.0, 290.0])
    assert torch.allclose(scale.restore(scale.normalise(value)), value, rtol=1e-5)
    assert {"mean", "std"} == set(scale.state_dict())


def test_a_spread_is_measured():
    values = torch.tensor([0.0, 100.0, 200.0, 400.0])
    spread = Spread.of(values, log=True)
    assert math.isclose(spread.mean, math.log(200), rel_tol=1e-6) and (spread.low, spread.high) == (100.0, 400.0)
    assert Spread.of(values).mean == 175.0
    for wrong, match in ((torch.zeros(9), "fewer than two"), (torch.full((9,), 5.0), "no spread")):
        with pytest.raises(UserError, match=match):
            Spread.of(wrong, log=True)


@pytest.mark.parametrize("embedding", ["bins", "curve"])
@pytest.mark.parametrize("spread", [HZ, RAW])
def test_factors_multiply_the_quantity_itself(embedding, spread):
    variance = Variance(8, spread, embedding).eval()
    x, mask = torch.randn(2, 6, 8), length_mask(torch.tensor([6, 4]), 6)
    plain, prediction, value = variance(x, mask)
    raised, same, higher = variance(x, mask, factor=1.2)
    assert torch.equal(prediction, same) and torch.allclose(higher, 1.2 * value)
    assert torch.allclose(value, variance.scale.restore(prediction) * mask)
    told = variance(x, mask, target=higher)
    assert torch.equal(told[0], raised) and torch.equal(told[1], prediction)
    assert not plain[1, 4:].any() and not torch.equal(plain, raised)


@pytest.mark.parametrize("embedding", ["bins", "curve"])
def test_padding_does_not_reach_an_embedding(embedding):
    variance = Variance(8, HZ, embedding).eval()
    x, target = torch.randn(2, 6, 8), torch.full((2, 6), 150.0)
    target[1, 4:] = float("nan")
    together = variance(x, length_mask(torch.tensor([6, 4]), 6), target)
    alone = variance(x[1:, :4], None, target[1:, :4])
    for a, b in zip(together, alone, strict=True):
        assert torch.allclose(a[1, :4], b[0], atol=1e-6) and not a[1, 4:].any()


@pytest.mark.parametrize("factor", [0.0, 0.1, 1.0])
def test_gradients_are_scaled_and_values_are_not(factor):
    x = torch.randn(3, requires_grad=True)
    y = scale_gradient(x, factor)
    assert torch.equal(x, y)
    (y.sum() + 0 * x.sum()).backward()
    assert torch.allclose(x.grad, torch.full((3,), factor))


def test_a_curve_goes_on_where_bins_end():
    curve, bins = CurveEmbedding(4), BinEmbedding(4, RAW)
    a, b = torch.tensor([[400.0]]), torch.tensor([[500.0]])
    assert torch.equal(bins(a), bins(b)) and not torch.equal(curve(a), curve(b))


def test_refuses_what_cannot_be_scaled():
    with pytest.raises(UserError, match="logarithmic scale"):
        Spread(0.0, 1.0, -2.5, 3.5, log=True)
    with pytest.raises(UserError, match="no embedding"):
        Variance(8, HZ, "linear")
    with pytest.raises(UserError, match="odd"):
        VariancePredictor(kernel=4)
