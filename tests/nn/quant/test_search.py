"""Searching scales for the output of a site."""

import pytest
import torch
from torch import nn

from tests.nn.quant.test_sites import tiny_vit
from vitalk.nn.quant import (
    MINMAX,
    Policy,
    QuantConv2d,
    QuantLinear,
    QuantMatMul,
    UniformQuantizer,
    alternate,
    choose,
    errors,
    observe,
    place,
    sites,
)
from vitalk.nn.quant.search import Seen, decided, shares_of


def linear(bits=4, axis=0):
    site = QuantLinear.wrap(nn.Linear(12, 6))
    site.weight_quantizer = UniformQuantizer(bits, axis=axis, symmetric=True, ranges=MINMAX)
    site.input_quantizer = UniformQuantizer(bits, ranges=MINMAX)
    x = torch.randn(80, 12) ** 3
    return site, Seen((x,), nn.functional.linear(x, site.weight, site.bias).detach())


@torch.no_grad()
def test_errors_are_those_of_the_site_with_each_candidate():
    site, seen = linear()
    candidates = shares_of(site.weight_quantizer, site.weight)
    found = errors(site, seen, "weight_quantizer", candidates)
    for i in (0, 50, 100):
        site.weight_quantizer.take(site.weight, *(c[i] for c in candidates))
        weight = site.weight_quantizer(site.weight)
        out = nn.functional.linear(seen.inputs[0], weight, site.bias)
        torch.testing.assert_close(found[i], (out - seen.out).square().mean(0))


@torch.no_grad()
def test_the_search_never_loses_to_the_range_it_started_from():
    site, seen = linear()
    site.weight_quantizer.fit(site.weight)
    site.input_quantizer.fit(seen.inputs[0])
    before = (site(seen.inputs[0]) - seen.out).square().mean()
    alternate(site, seen, ("weight_quantizer", "input_quantizer"))
    assert (site(seen.inputs[0]) - seen.out).square().mean() < before


@torch.no_grad()
def test_gradients_of_one_are_no_weights_and_their_size_does_not_matter():
    site, seen = linear()
    candidates = shares_of(site.input_quantizer, seen.inputs[0])
    plain = errors(site, seen, "input_quantizer", candidates)
    seen.grad = torch.ones_like(seen.out)
    assert torch.equal(errors(site, seen, "input_quantizer", candidates), plain)
    seen.grad = torch.rand_like(seen.out)
    once = errors(site, seen, "input_quantizer", candidates).argmin()
    seen.grad *= 64
    assert errors(site, seen, "input_quantizer", candidates).argmin() == once


@torch.no_grad()
def test_heads_choose_by_themselves():
    site = QuantMatMul()
    site.left_quantizer, site.right_quantizer = UniformQuantizer(4, axis=1), UniformQuantizer(4, axis=1)
    a, b = torch.randn(3, 2, 5, 8) * torch.tensor([1.0, 30.0]).view(1, 2, 1, 1), torch.randn(3, 2, 8, 5)
    seen = Seen((a, b), a @ b)
    site.left_quantizer.fit(a)
    found = choose(site, seen, "left_quantizer", shares_of(site.left_quantizer, a))
    assert found.shape == (2,)
    alone = QuantMatMul()
    for head in range(2):
        alone.left_quantizer = UniformQuantizer(4)
        alone.left_quantizer.fit(a[:, head])
        part = Seen((a[:, head : head + 1], b[:, head : head + 1]), seen.out[:, head : head + 1])
        choose(alone, part, "left_quantizer", shares_of(alone.left_quantizer, part.inputs[0]))
        torch.testing.assert_close(alone.left_quantizer.scale, site.left_quantizer.scale[head])


@torch.no_grad()
@pytest.mark.parametrize("groups, axis", [(1, None), (6, 1)])
def test_convolutions_dense_and_depthwise(groups, axis):
    site = QuantConv2d.wrap(nn.Conv2d(6, 12, 3, padding=1, groups=groups))
    site.weight_quantizer = UniformQuantizer(4, axis=0, symmetric=True)
    site.input_quantizer = UniformQuantizer(4, axis=axis)
    x = torch.randn(2, 6, 7, 7) * torch.logspace(-1, 1, 6).view(1, -1, 1, 1)
    seen = Seen((x,), nn.functional.conv2d(x, site.weight, site.bias, padding=1, groups=groups))
    site.input_quantizer.fit(x)
    before = errors(site, seen, "input_quantizer", shares_of(site.input_quantizer, x))[-1]  # the fitted one
    after = choose(site, seen, "input_quantizer", shares_of(site.input_quantizer, x))
    assert after.shape == (() if axis is None else (6,)) and (after <= before).all()
    site.weight_quantizer.fit(site.weight)
    weights = choose(site, seen, "weight_quantizer", shares_of(site.weight_quantizer, site.weight))
    got = (site(x) - seen.out).square().mean((0, 2, 3))
    torch.testing.assert_close(weights, got, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", [None, decided])
def test_observing_keeps_rows_and_gradients_in_float(loss):
    model = place(tiny_vit(), 4, 4, Policy())
    images = torch.randn(12, 3, 16, 16)
    seen = observe(model, images, loss, rows=40, pictures=5)
    assert seen.keys() == sites(model).keys()
    block = seen["blocks.0.mlp.fc1"]
    assert 30 <= len(block.inputs[0]) == len(block.out) <= 50
    layer = sites(model)["blocks.0.mlp.fc1"]
    torch.testing.assert_close(nn.functional.linear(block.inputs[0], layer.weight, layer.bias), block.out)
    product = seen["blocks.1.attn.matmul2"]
    assert len(product.out) == 5 and len(product.inputs) == 2
    torch.testing.assert_close(product.inputs[0] @ product.inputs[1], product.out)
    if loss is None:
        assert block.grad is None
    else:
        assert block.grad.shape == block.out.shape and block.grad.abs().sum() > 0
        logits = seen["head"]  # the gradient of the cross-entropy is known there
        expected = logits.out.softmax(1) - nn.functional.one_hot(logits.out.argmax(1), logits.out.shape[1])
        torch.testing.assert_close(logits.grad, expected, rtol=1e-4, atol=1e-6)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("loss", [None, lambda out: out.square().sum()])
def test_what_is_seen_is_not_changed_by_an_activation_in_place(loss):
    model = place(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True)), 8, 8, Policy())
    images = torch.randn(2, 3, 8, 8)
    seen = observe(model, images, loss)["0"]
    with torch.no_grad():
        out = nn.functional.conv2d(images, model[0].weight, model[0].bias)
    torch.testing.assert_close(seen.out, out)
    if loss is not None:
        torch.testing.assert_close(seen.grad, 2 * out.relu())


@torch.no_grad()
def test_observing_named_sites_with_others_quantized():
    model, images = place(tiny_vit(), 2, 2, Policy()), torch.randn(4, 3, 16, 16)
    first, second = "blocks.0.mlp.fc1", "blocks.0.mlp.fc2"
    plain = observe(model, images, only=[first, second])
    assert set(plain) == {first, second}
    site = sites(model)[first]
    site.weight_quantizer.fit(site.weight)
    site.input_quantizer.fit(plain[first].inputs[0])
    behind = observe(model, images, only=[first, second], quantized=[first])
    assert torch.equal(behind[first].inputs[0], plain[first].inputs[0])
    expected = nn.functional.gelu(site(plain[first].inputs[0]))
    torch.testing.assert_close(behind[second].inputs[0], expected)
    assert not torch.allclose(plain[second].inputs[0], expected)
