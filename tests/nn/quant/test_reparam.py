"""Scale reparameterization: which layers it finds, and that it changes no float output."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.nn.quant.test_sites import tiny_swin, tiny_vit
from vitalk.nn.quant import QuantLinear, UniformQuantizer, expose, find_pairs, fold, skeleton, widen, with_outliers
from vitalk.nn.quant.quantizers import round_trip
from vitalk.nn.quant.reparam import lifted


def pair(seed, width=12, out=7, bias=True, dtype=torch.float64):
    torch.manual_seed(seed)
    norm, linear = nn.LayerNorm(width, dtype=dtype), QuantLinear.wrap(nn.Linear(width, out, bias, dtype=dtype))
    with torch.no_grad():
        norm.weight.uniform_(0.05, 3)
        norm.bias.normal_(std=2)
    return norm, linear


def channelwise(norm, linear, x, bits):
    linear.input_quantizer = UniformQuantizer(bits, axis=-1, covers_zero=False)
    linear.input_quantizer.fit(norm(x))
    return linear.input_quantizer


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), bits=st.integers(2, 8), bias=st.booleans(), integer=st.booleans())
def test_float_output_stays(seed, bits, bias, integer):
    norm, linear = pair(seed, bias=bias)
    x = torch.randn(3, 5, 12, dtype=torch.float64)
    with torch.no_grad():
        wanted = nn.Linear.forward(linear, norm(x))
        channelwise(norm, linear, x, bits)
        fold(norm, [linear], integer)
        linear.input_quantizer.enabled = False
        assert (linear(norm(x)) - wanted).abs().max() < 1e-10


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), bits=st.integers(2, 8))
def test_one_scale_after_the_fold_rounds_as_the_channel_scales_did(seed, bits):
    norm, linear = pair(seed)
    x = torch.randn(3, 5, 12, dtype=torch.float64)
    with torch.no_grad():
        wide = channelwise(norm, linear, x, bits)
        wanted = nn.Linear.forward(linear, round_trip(norm(x), *lifted(wide.scale, wide.zero_point), 0, wide.high))
        fold(norm, [linear])
        assert linear.input_quantizer.scale.dim() == 0
        assert (linear(norm(x)) - wanted).abs().max() < 1e-9


def test_a_fractional_zero_point_does_not():
    norm, linear = pair(1)
    x = torch.randn(3, 5, 12, dtype=torch.float64)
    with torch.no_grad():
        wanted = nn.Linear.forward(linear, channelwise(norm, linear, x, 4).quantize(norm(x)))
        fold(norm, [linear], integer=False)
        zero = linear.input_quantizer.zero_point
        assert zero != zero.round() and (linear(norm(x)) - wanted).abs().max() > 1e-3


def test_whole_zero_points_are_codes_even_where_no_channel_holds_zero():
    norm, linear = pair(0)
    with torch.no_grad():
        norm.bias.fill_(50)
        channelwise(norm, linear, torch.randn(3, 5, 12, dtype=torch.float64), 4)
        fold(norm, [linear])
    assert linear.input_quantizer.zero_point == 0


def test_dead_channels_do_not_blow_up():
    norm, linear = pair(0)
    x = torch.randn(3, 5, 12, dtype=torch.float64)
    with torch.no_grad():
        norm.weight[4] = 0
        wanted = nn.Linear.forward(linear, norm(x))
        channelwise(norm, linear, x, 8)
        fold(norm, [linear])
        assert norm.weight.isfinite().all() and linear.weight.abs().max() < 1e3
        torch.testing.assert_close(linear(norm(x)), wanted, rtol=0, atol=0.2)


def test_several_layers_behind_one_norm_share_the_fold():
    norm, first = pair(0)
    _, second = pair(1)
    x = torch.randn(3, 5, 12, dtype=torch.float64)
    with torch.no_grad():
        wanted = [nn.Linear.forward(linear, norm(x)) for linear in (first, second)]
        channelwise(norm, first, x, 8)
        channelwise(norm, second, x, 8)
        fold(norm, [first, second])
        for linear, out in zip((first, second), wanted, strict=True):
            linear.input_quantizer.enabled = False
            assert (linear(norm(x)) - out).abs().max() < 1e-10


def test_finds_both_norms_of_every_vit_block_and_no_other():
    model = expose(tiny_vit(pre_norm=True))
    found = find_pairs(model, torch.randn(1, 3, 16, 16))
    wanted = [(b.norm1, [b.attn.qkv]) for b in model.blocks] + [(b.norm2, [b.mlp.fc1]) for b in model.blocks]
    assert {(n, *ls) for n, ls in found} == {(n, *ls) for n, ls in wanted}


def test_finds_pairs_in_frozen_models_and_in_inference_code():
    model = expose(tiny_vit()).requires_grad_(False)
    assert len(find_pairs(model, torch.randn(1, 3, 16, 16))) == 4
    with torch.no_grad():
        assert len(find_pairs(model, torch.randn(1, 3, 16, 16))) == 4


def test_finds_swins_windows_and_downsampling():
    model = expose(tiny_swin())
    found = {id(linear) for _, linears in find_pairs(model, torch.randn(1, 3, 32, 32)) for linear in linears}
    wanted = [m for n, m in model.named_modules() if n.endswith(("qkv", "fc1", "reduction"))]
    assert found == {id(m) for m in wanted} and len(wanted) == 9


class Flow(nn.Module):
    """A LayerNorm and a linear layer with something between or beside them."""

    def __init__(self, between=lambda x: x, beside=lambda x: 0):
        super().__init__()
        self.norm, self.linear, self.between, self.beside = nn.LayerNorm(6), nn.Linear(6, 6), between, beside

    def forward(self, images):
        x = self.norm(images.flatten(2))
        return self.linear(self.between(x)) + self.beside(x)


@pytest.mark.parametrize(
    "flow, count",
    [
        (Flow(), 1),
        (Flow(lambda x: x.roll(1, 1)), 1),
        (Flow(lambda x: x.flip(2)), 0),
        (Flow(lambda x: x.transpose(1, 2)), 0),
        (Flow(lambda x: nn.functional.pad(x, (0, 0, 0, 2))[:, :6]), 0),
        (Flow(lambda x: x * 2), 0),
        (Flow(lambda x: x.mean(1, keepdim=True)), 0),
        (Flow(beside=lambda x: x), 0),
    ],
    ids=["direct", "rolled tokens", "flipped channels", "transposed", "padded", "scaled", "pooled", "residual"],
)
def test_a_pair_is_a_matter_of_data_flow(flow, count):
    assert len(find_pairs(expose(flow), torch.randn(1, 6, 2, 3))) == count


def test_made_outliers_leave_the_float_network_as_it_was():
    model, images = tiny_vit(), torch.randn(3, 3, 16, 16)
    made = with_outliers(model, images[:1], channels=1, factor=20.0)
    torch.testing.assert_close(made(images), model(images), rtol=1e-4, atol=1e-5)
    for block, plain in zip(made.blocks, model.blocks, strict=True):
        grown = block.norm1.weight / plain.norm1.weight
        assert (grown - 20).abs().min() < 1e-3 and (grown - 1).abs().lt(1e-3).sum() == len(grown) - 1


def test_widened_layers_keep_their_bits_and_have_a_scale_a_channel():
    model, image = skeleton(tiny_vit(), 4, 3), torch.randn(1, 3, 16, 16)
    assert [len(linears) for _, linears in widen(model, image, lambda name: not name.endswith("fc1"))] == [1, 1]
    wide = [
        name for name, site in model.named_modules() if getattr(getattr(site, "input_quantizer", 0), "axis", 0) == -1
    ]
    assert wide == ["blocks.0.attn.qkv", "blocks.1.attn.qkv"]
    quantizer = model.blocks[0].attn.qkv.input_quantizer
    assert quantizer.bits == 3 and not quantizer.covers_zero and not quantizer.fitted
