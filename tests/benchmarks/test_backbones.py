"""Both sides of each contest compute what they are said to."""

import json
import math

import pytest
import torch

from vitalk.benchmarks import backbones
from vitalk.systems.gmm_vit.mask import GaussianMixtureMask
from vitalk.systems.tic.layers import MSAConv


def test_the_unfolded_convolution_is_the_same():
    layer, x = MSAConv(8, 3, 2, num_heads=2), torch.randn(2, 8, 9, 7)
    torch.testing.assert_close(backbones.UnfoldedMSAConv(layer)(x), layer(x))


def test_the_power_mask_is_the_same_where_the_table_does_not_underflow():
    mask = GaussianMixtureMask((6, 6), heads=3, kernels=2)
    torch.nn.init.uniform_(mask.sigma, 1, 9)
    torch.testing.assert_close(backbones.PowerMask(mask)(), mask(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", backbones.CONTESTS)
def test_both_sides_take_a_step(name):
    _, size, _, _, build = backbones.CONTESTS[name]
    ours, theirs = build(torch.randn(2, 3, size, size), torch.tensor([3, 7]))
    assert math.isfinite(ours()) and math.isfinite(theirs())


def test_rows_hold_ratios_of_one_run(monkeypatch):
    taken = {"ours": 0.2, "theirs": 0.3, "bf16": 0.1}
    monkeypatch.setattr(backbones, "latencies", lambda runs, **_: {name: taken[name] for name in runs})
    contest = (*backbones.CONTESTS["gmm-vit"][:2], 2, *backbones.CONTESTS["gmm-vit"][3:])
    monkeypatch.setitem(backbones.CONTESTS, "gmm-vit", contest)
    record = backbones.contest(["gmm-vit"], 3)
    (row,) = record["rows"]
    assert row["ms"] == 200 and row["ratio"] == pytest.approx(1.5) and row["ratio_bf16"] == 2 and row["batch"] == 2
    assert json.loads(json.dumps(record)) == record
