"""MPTQ-ViT: folds that change nothing, two ranges that align by a shift, and bits taken away greedily."""

import copy
import json
from importlib import resources
from itertools import pairwise
from types import SimpleNamespace

import onnx
import onnxruntime
import pytest
import timm
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import nn

from tests.nn.quant.test_sites import tiny_swin, tiny_vit
from tests.systems.vision_checks import refuses_broken_input
from vitalk.deploy.onnx_export import export_onnx
from vitalk.deploy.preprocess import Preprocess
from vitalk.errors import UserError
from vitalk.nn.quant import (
    QuantConv2d,
    QuantLinear,
    QuantMatMul,
    TwinUniformQuantizer,
    UniformQuantizer,
    absorb,
    expose,
    find_pairs,
    quantizers,
    sites,
    switched_off,
)
from vitalk.nn.quant.describe import arithmetic, bits_of
from vitalk.nn.quant.export import check_exportable
from vitalk.nn.quant.quantizers import MINMAX
from vitalk.nn.quant.search import Seen, decided, errors, observe
from vitalk.systems.mptq_vit import (
    Step,
    allocate,
    average_of,
    bits_after,
    descend,
    load_bits,
    mptq_vit,
    reproduce,
    restore,
    save_bits,
    search,
    shares_of_items,
)
from vitalk.systems.mptq_vit.full import QuantLayerNorm
from vitalk.systems.mptq_vit.method import skeleton
from vitalk.systems.mptq_vit.search import FixedTwinQuantizer, shortlist, weighted
from vitalk.systems.mptq_vit.smooth import attentions_that_average, centre_and_scale, channel_ranges, smooth
from vitalk.vision.experiments import Calibrated, Pictures

MODELS = {"vit": (tiny_vit, 16), "swin": (tiny_swin, 32)}
seeds = st.integers(0, 10_000)


def lively(model):
    """Norms with channels as unequal and off centre as in trained models."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.weight.data = (torch.rand(module.weight.shape, generator=generator) * 2 + 0.1).to(module.weight)
            module.bias.data = torch.randn(module.bias.shape, generator=generator).to(module.bias)
    return model


def placed_on(model, images, weight_bits=4, act_bits=4):
    return skeleton(model, images[:1], weight_bits, act_bits, "opt-m", "twin", integer=True)


def difference(a, b):
    return ((a - b).norm() / b.norm()).item()


def pair(seed, width=12, out=7):
    torch.manual_seed(seed)
    norm, linear = nn.LayerNorm(width).double(), QuantLinear.wrap(nn.Linear(width, out).double())
    with torch.no_grad():
        norm.weight.uniform_(0.05, 3)
        norm.bias.normal_(std=2)
    return norm, linear, torch.randn(3, 5, width, dtype=torch.float64)


def ranges(x):
    return x.flatten(0, -2).amin(0), x.flatten(0, -2).amax(0)


# SQ-b


@torch.no_grad()
@settings(deadline=None, max_examples=30)
@given(seed=seeds, alpha=st.floats(0, 1), centred=st.booleans())
def test_centring_and_scaling_leave_the_float_output(seed, alpha, centred):
    norm, linear, x = pair(seed)
    wanted = linear(norm(x))
    centre, scale = centre_and_scale(*ranges(norm(x)), linear.weight, alpha, centred)
    absorb(norm, [linear], scale, centre / scale)
    assert (linear(norm(x)) - wanted).abs().max() < 1e-10
    low, high = ranges(norm(x))
    if centred:
        assert (low + high).abs().max() < 1e-9
        if alpha == 1:
            torch.testing.assert_close(high, torch.ones_like(high))
    else:
        assert bool((centre == 0).all())


@torch.no_grad()
@settings(deadline=None, max_examples=20)
@given(seed=seeds)
def test_with_alpha_one_every_channel_reaches_from_minus_one_to_one(seed):
    norm, linear, x = pair(seed)
    centre, scale = centre_and_scale(*ranges(norm(x)), linear.weight, alpha=1.0)
    absorb(norm, [linear], scale, centre / scale)
    for side, wanted in zip(ranges(norm(x)), (-1.0, 1.0), strict=True):
        torch.testing.assert_close(side, torch.full_like(side, wanted))


@torch.no_grad()
@settings(deadline=None, max_examples=20)
@given(seed=seeds)
def test_without_a_centre_it_is_smoothquant(seed):
    norm, linear, x = pair(seed)
    low, high = ranges(norm(x))
    _, scale = centre_and_scale(low, high, linear.weight, 0.5, centred=False)
    largest = torch.maximum(low.abs(), high.abs())
    torch.testing.assert_close(scale, (largest / linear.weight.abs().amax(0)).sqrt())
    plain = linear.weight * 1  # with s = 1 only the bias moves
    absorb(norm, [linear], torch.ones_like(scale), (low + high) / 2)
    assert torch.equal(linear.weight, plain)


@torch.no_grad()
@settings(deadline=None, max_examples=20)
@given(seed=seeds, bits=st.integers(3, 8))
def test_symmetric_codes_after_it_are_as_fine_as_asymmetric_ones_of_each_channel(seed, bits):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(400, 6, dtype=torch.float64, generator=generator) * 2 - 1  # channels equally wide, not centred
    x[0], x[1] = -1, 1
    x += 5 * torch.randn(6, dtype=torch.float64, generator=generator)
    centre, scale = centre_and_scale(*ranges(x), torch.ones(1, 6, dtype=torch.float64), alpha=1.0)
    after = (x - centre) / scale
    symmetric = UniformQuantizer(bits, symmetric=True, ranges=MINMAX)
    channelwise = UniformQuantizer(bits, axis=-1, covers_zero=False, ranges=MINMAX)
    off = [(symmetric(after) * scale + centre - x) if symmetric.fit(after) is None else None]
    channelwise.fit(x)
    step = 2 / (2**bits - 1)
    assert off[0].abs().max() <= symmetric.scale / 2 + 1e-12
    assert (channelwise(x) - x).abs().max() <= step  # half a step, and half a step of the rounded zero point
    assert step < symmetric.scale <= step * (2**bits - 1) / (2 ** (bits - 1) - 1) / 2 + 1e-12


@torch.no_grad()
def test_dead_channels_and_weights_do_not_blow_up():
    low, high = torch.tensor([-1.0, 3.0, 0.0]), torch.tensor([1.0, 3.0, 0.0])
    weight = torch.tensor([[1.0, 0.0, 0.0]])
    for alpha in (0.0, 0.5, 1.0):
        _, scale = centre_and_scale(low, high, weight, alpha)
        assert scale.isfinite().all() and bool((scale > 1e-4).all()) and bool((scale < 1e4).all())


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype, bound", [(torch.float32, 1e-4), (torch.float64, 1e-10)])
@pytest.mark.parametrize("how", ["sq-b", "sq", "none"])
def test_the_float_network_is_unchanged(name, dtype, bound, how):
    build, size = MODELS[name]
    model, images = lively(build()).to(dtype), torch.randn(4, 3, size, size, dtype=dtype)
    smoothed = expose(copy.deepcopy(model))
    smooth(smoothed, images, how, values=True)
    assert (smoothed(images) - model(images)).abs().max() < bound
    moved = [not torch.equal(a, b) for a, b in zip(smoothed.parameters(), model.parameters(), strict=False)]
    assert any(moved) == (how != "none")


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("attention", [True, False])
def test_channels_are_centred_behind_norms_and_behind_attention(name, attention):
    build, size = MODELS[name]
    model, images = expose(lively(build()).double(), attention), torch.randn(4, 3, size, size, dtype=torch.float64)
    smooth(model, images, alpha=1.0, values=True)
    linears = [linears[0] for _, linears in find_pairs(model, images[:1])]
    found = channel_ranges(model, linears + [a.proj for a in attentions_that_average(model)], images)
    assert len(found) == (6 if name == "vit" else 13)
    for low, high in found.values():
        torch.testing.assert_close((low, high), (-torch.ones_like(low), torch.ones_like(high)))


@torch.no_grad()
def test_values_are_left_alone_where_the_projection_gets_more_than_averages():
    assert len(attentions_that_average(expose(tiny_vit()))) == 2
    assert not attentions_that_average(expose(tiny_vit(scale_attn_norm=True)))
    model, images = expose(tiny_vit(qkv_bias=False)), torch.randn(4, 3, 16, 16)
    wanted = model(images)
    smooth(model, images, values=True)
    assert difference(model(images), wanted) < 1e-5 and model.blocks[0].attn.qkv.bias is not None


@torch.no_grad()
def test_percentiles_keep_outliers_from_moving_the_centre():
    model, images = expose(tiny_vit()), torch.randn(64, 3, 16, 16)
    linear = model.blocks[0].mlp.fc1
    (low, high), (inner_low, inner_high) = (channel_ranges(model, [linear], images, p)[linear] for p in (1.0, 0.99))
    assert bool((low < inner_low).all()) and bool((inner_high < high).all())


@torch.no_grad()
def test_one_scale_a_tensor_fits_channels_that_are_off_centre():
    torch.manual_seed(0)
    model, images = lively(tiny_vit()), torch.randn(16, 3, 16, 16)
    for block in model.blocks:
        for norm in (block.norm1, block.norm2):
            norm.bias += 8 * norm.bias.sign()
    off = {}
    for how in ("none", "sq", "sq-b"):
        quantized = mptq_vit(model, images, 8, 4, smooth=how, attention="float")
        for name, quantizer in quantizers(quantized).items():
            quantizer.enabled = name.endswith(("qkv.input_quantizer", "fc1.input_quantizer"))
        off[how] = difference(quantized(images), model(images))
    assert off["sq-b"] < 0.6 * min(off["sq"], off["none"])


# OPT-m


def behind_gelu(seed=0, count=4000, spread=1.5, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return nn.functional.gelu(spread * torch.randn(count, generator=generator, dtype=dtype))


@settings(deadline=None, max_examples=30)
@given(seed=seeds, bits=st.integers(2, 8), spread=st.floats(0.2, 5))
def test_a_searched_ratio_is_never_worse_than_the_fixed_one(seed, bits, spread):
    x = behind_gelu(seed, spread=spread)
    off = []
    for kind in (TwinUniformQuantizer, FixedTwinQuantizer):
        quantizer = kind(bits, signed=True)
        quantizer.fit(x)
        off.append((quantizer(x) - x).square().mean())
    assert off[0] <= off[1] * (1 + 1e-6)


@settings(deadline=None, max_examples=30)
@given(seed=seeds, bits=st.integers(2, 8), spread=st.floats(0.5, 8))
def test_the_fixed_fine_range_just_holds_what_gelu_puts_below_zero(seed, bits, spread):
    x = behind_gelu(seed, spread=spread)
    quantizer = FixedTwinQuantizer(bits, signed=True)
    _, octaves = next(quantizer.candidates(x))
    assert len(octaves.unique()) == 1 and len(octaves) == 20
    reach = x.max() * 2.0 ** -octaves[0]
    assert octaves[0] == 0 or 0.1699 <= reach < 0.3401


@settings(deadline=None, max_examples=30)
@given(seed=seeds, bits=st.integers(2, 8), spread=st.floats(0.2, 5))
def test_integers_and_a_shift_give_the_very_values(seed, bits, spread):
    x = behind_gelu(seed, spread=spread, dtype=torch.float64)
    quantizer = TwinUniformQuantizer(bits, signed=True)
    quantizer.fit(x)
    codes, m, half = quantizer.codes(x, *quantizer.known).long(), int(quantizer.octaves), 2 ** (bits - 1)
    coarse = codes >= half
    assert torch.equal(coarse, x >= 0)  # the range bit is the sign
    fine_code = torch.where(coarse, 0, codes - half + 1)
    coarse_code = torch.where(coarse, codes - half, 0)
    assert torch.equal((fine_code + (coarse_code << m)) * quantizer.scale, quantizer(x))


@torch.no_grad()
def test_the_shortlist_begins_with_the_least_squared_error():
    x = behind_gelu()
    quantizer = TwinUniformQuantizer(4, signed=True)
    quantizer.fit(x)
    listed = shortlist(quantizer, x)
    assert len(listed[0]) == search.SHORTLIST
    assert torch.equal(listed[0][0], quantizer.scale) and torch.equal(listed[1][0], quantizer.octaves)


@torch.no_grad()
def test_two_ranges_are_searched_for_the_output():
    model, images = tiny_vit(), torch.randn(16, 3, 16, 16)
    placed = placed_on(model, images)
    seen = observe(placed, images, decided)
    site, one = placed.blocks[1].mlp.fc2, weighted(seen["blocks.1.mlp.fc2"])
    search.search(site, one)
    candidates = shortlist(site.input_quantizer, one.inputs[0])
    mine = errors(site, one, "input_quantizer", tuple(c[None] for c in site.input_quantizer.known))
    assert mine <= errors(site, one, "input_quantizer", candidates)[0] * 1.2  # weights moved on since


def test_outputs_that_the_loss_ignores_keep_a_weight():
    x, out = torch.randn(6, 4), torch.randn(6, 3)
    grad = torch.zeros(6, 3)
    assert weighted(Seen((x,), out, grad)).grad is None
    grad[:, 0] = 2.0
    found = weighted(Seen((x,), out, grad)).grad
    assert bool((found > 0).all()) and bool((found[:, 0] > 20 * found[:, 1]).all())


# Greedy mixed precision


@settings(deadline=None, max_examples=50)
@given(data=st.data(), count=st.integers(1, 8), target=st.floats(2, 8))
def test_the_average_is_met_within_one_step(data, count, target):
    sizes = data.draw(st.lists(st.integers(1, 50), min_size=count, max_size=count))
    losses = data.draw(st.lists(st.floats(-1, 1), min_size=count * 7, max_size=count * 7))
    shares = {(f"{i}", "weight"): size / sum(sizes) for i, size in enumerate(sizes)}
    harms = {item: losses[7 * i : 7 * i + 7] for i, item in enumerate(shares)}
    bits, steps = descend(shares, target, lambda bits, item: harms[item][bits[item] - 2])
    average = sum(share * bits[item] for item, share in shares.items())
    assert average <= target + 1e-6 and all(2 <= n <= 8 for n in bits.values())
    assert all(step.harm >= 0 for step in steps)
    if steps:
        assert steps[-1].average == pytest.approx(average, abs=1e-6)
        assert average + shares[steps[-1].item] > target
    else:
        assert target == pytest.approx(8)
    again = descend(shares, target, lambda bits, item: harms[item][bits[item] - 2])
    assert again == (bits, steps)


def test_at_the_top_nothing_changes():
    shares = {("a", "weight"): 0.5, ("a", "activation"): 0.5}
    assert descend(shares, 8, lambda *_: 1.0) == (dict.fromkeys(shares, 8), [])
    with pytest.raises(UserError, match="2 to 8"):
        descend(shares, 1.5, lambda *_: 1.0)


def test_equal_scores_go_by_size_and_then_by_order():
    shares = {("a", "weight"): 0.2, ("b", "weight"): 0.4, ("c", "weight"): 0.4}
    _, steps = descend(shares, 7, lambda *_: -1.0)
    assert [step.item[0] for step in steps[:3]] == ["b", "b", "b"]
    assert steps[0] == Step(("b", "weight"), 7, 0.0, pytest.approx(7.6))


def test_harm_counts_for_what_it_saves():
    shares = {("large", "weight"): 0.9, ("small", "weight"): 0.1}
    for small, first in ((0.1, "large"), (0.05, "small")):
        harm = {"large": 0.5, "small": small}
        assert descend(shares, 7.5, lambda _, item: harm[item[0]])[1][0].item[0] == first  # noqa: B023


@pytest.fixture(scope="module")
def spoilt():
    """A network with one layer that bears no rounding, pictures, and what its sites saw."""
    torch.manual_seed(0)
    model, images = lively(tiny_vit()), torch.randn(16, 3, 16, 16)
    with torch.no_grad():
        model.blocks[1].mlp.fc2.weight.mul_(8)
    placed = placed_on(model, images)
    return placed, images, search.look(placed, images)


@pytest.mark.parametrize("measure", ["cached", "proxy"])
def test_bits_go_where_they_are_needed(spoilt, measure):
    placed, images, seen = spoilt
    before = bits_of(placed)
    steps = allocate(placed, images, seen, 5.0, measure)
    bits = bits_after(steps)
    assert bits_of(placed) == before and not any(q.fitted for q in quantizers(placed).values())
    assert bits.keys() <= sites(placed).keys() and bits.get("patch_embed.proj", (8, 8))[1] == 8
    assert len(set(bits.values())) > 2
    assert bits.get("blocks.1.mlp.fc2", (8, 8))[0] >= bits["blocks.0.mlp.fc2"][0]
    assert all(a.average > b.average for a, b in pairwise(steps))
    assert allocate(placed, images, seen, 5.0, measure) == steps


def test_a_descent_passes_by_all_averages_above_its_last(spoilt):
    placed, images, seen = spoilt
    low, high = (allocate(placed, images, seen, average, "proxy") for average in (4.0, 6.5))
    assert low[: len(high)] == high
    assert bits_after(low, 6.5) == bits_after(high) != bits_after(low)


def test_exact_harm_is_that_of_the_network_as_it_stands(spoilt):
    placed, images, seen = spoilt
    steps = allocate(placed, images[:4], seen, 7.7, "exact")
    once = allocate(placed, images[:4], seen, 7.99, "cached")[0]  # the first step has nothing behind it
    assert (steps[0].item, steps[0].harm) == (once.item, pytest.approx(once.harm))
    assert sum(8 - n for pair in bits_after(steps).values() for n in pair) == len(steps) > 1


def test_the_convention_of_the_average():
    model, images = tiny_vit(), torch.randn(4, 3, 16, 16)
    placed = placed_on(model, images, 4, 6)
    shares = shares_of_items(placed, images[:1])
    assert sum(shares.values()) == pytest.approx(1) and ("patch_embed.proj", "activation") not in shares
    assert sum(s for (_, kind), s in shares.items() if kind == "weight") == pytest.approx(0.5)
    assert shares["blocks.0.mlp.fc1", "weight"] == pytest.approx(4 * shares["blocks.0.attn.proj", "weight"])
    assert shares["blocks.0.mlp.fc2", "activation"] == pytest.approx(4 * shares["blocks.0.mlp.fc1", "activation"])
    assert average_of(placed, images[:1]) == pytest.approx(5)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["twin", "float"])
def test_a_mixed_network_meets_its_average_and_its_bits_return(attention, tmp_path):
    torch.manual_seed(0)
    model, images = lively(tiny_vit()), torch.randn(8, 3, 16, 16)
    quantized = mptq_vit(model, images, average_bits=4.5, measure="proxy", attention=attention)
    average, largest = average_of(quantized, images[:1]), max(shares_of_items(quantized, images[:1]).values())
    assert 4.5 - largest < average <= 4.5 + 1e-6
    path = save_bits(quantized, tmp_path / "bits.json")
    assert load_bits(path) == bits_of(quantized)
    again = mptq_vit(model, images, bits=load_bits(path), attention=attention)
    assert torch.equal(again(images), quantized(images))
    third = restore(model, load(save(quantized.state_dict())), images[:1], attention=attention, bits=load_bits(path))
    assert torch.equal(third(images), quantized(images))
    with pytest.raises(UserError, match="another model"):
        mptq_vit(tiny_swin(), torch.randn(2, 3, 32, 32), bits=load_bits(path))


def test_a_file_without_bits_is_refused(tmp_path):
    for content, message in (("[]", "holds no bits"), ("{}x", "holds no bits"), ('{"a": [9, 4]}', "9 bits")):
        (tmp_path / "bits.json").write_text(content)
        with pytest.raises(UserError, match=message):
            load_bits(tmp_path / "bits.json")
    with pytest.raises(UserError, match="holds no bits"):
        load_bits(tmp_path / "none.json")


# The whole


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_more_bits_are_closer_and_eight_are_close(name):
    build, size = MODELS[name]
    torch.manual_seed(0)
    model, images = build(), torch.randn(8, 3, size, size)
    errors = [difference(mptq_vit(model, images, bits, bits)(images), model(images)) for bits in (8, 6, 4)]
    assert errors[0] < 0.05 and errors[0] < errors[1] < errors[2]


@torch.no_grad()
def test_quantizers_sit_where_the_page_says():
    images = torch.randn(4, 3, 16, 16)
    quantized = mptq_vit(tiny_vit(), images, 4, 3)
    for name, site in sites(quantized).items():
        if isinstance(site, QuantMatMul):
            assert isinstance(site.left_quantizer, TwinUniformQuantizer) == name.endswith("matmul2")
            assert site.right_quantizer.symmetric and site.right_quantizer.bits == 3
        else:
            assert site.weight_quantizer.scale.shape == (len(site.weight),) and site.weight_quantizer.symmetric
            assert isinstance(site.input_quantizer, TwinUniformQuantizer) == name.endswith("fc2")
            assert site.input_quantizer.scale.dim() == 0
            assert site.input_quantizer.bits == (8 if isinstance(site, QuantConv2d) else 3)
    assert mptq_vit(tiny_vit(), images, integer=False).patch_embed.proj.input_quantizer is None


@torch.no_grad()
@pytest.mark.parametrize("gelu", ["opt-m", "fixed", "uniform"])
@pytest.mark.parametrize("attention", ["twin", "log-sqrt2", "uniform", "float"])
def test_every_choice_works(gelu, attention):
    torch.manual_seed(0)
    model, images = tiny_vit(), torch.randn(4, 3, 16, 16)
    quantized = mptq_vit(model, images, 8, 8, gelu=gelu, attention=attention)
    check_exportable(quantized)
    assert difference(quantized(images), model(images)) < 0.1
    with switched_off(quantized):
        assert difference(quantized(images), model(images)) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_fully_quantized_rounds_norms_and_scores_too(name):
    build, size = MODELS[name]
    torch.manual_seed(0)
    model, images = build(), torch.randn(8, 3, size, size)
    if name == "vit":  # the class token as large as the patches
        model.cls_token.normal_()
    quantized = mptq_vit(model, images, 8, 8, fully=True)
    norms = [m for m in quantized.modules() if isinstance(m, QuantLayerNorm)]
    assert len(norms) == sum(isinstance(m, nn.LayerNorm) for m in model.modules())
    scores = [q for n, q in quantizers(quantized).items() if n.endswith("score_quantizer")]
    assert len(scores) == (2 if name == "vit" else 4)
    assert all(q.fitted and q.enabled for q in quantizers(quantized).values())
    assert 0 < difference(quantized(images), model(images)) < 0.1
    again = restore(model, quantized.state_dict(), images[:1], 8, 8, fully=True)
    assert torch.equal(again(images), quantized(images))
    with pytest.raises(UserError, match="fully"):
        mptq_vit(model, images, fully=True, attention="float")


@torch.no_grad()
@pytest.mark.parametrize("settings", [{"gelu": "uniform", "attention": "float"}, {}], ids=["deployed", "paper"])
def test_the_exported_file_computes_the_same_with_integer_products(settings, tmp_path):
    torch.manual_seed(0)
    model, images = lively(tiny_vit()), torch.randn(8, 3, 16, 16)
    quantized = mptq_vit(model, images, 8, 8, **settings)
    path = export_onnx(quantized, tmp_path / "q.onnx", Preprocess((16, 16)), ["a", "b", "c", "d", "e"])
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "fused.onnx"), 3
    # Else onnxruntime rounds the float inputs of products with 8-bit weights once more.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    got = session.run(None, {"image": images.numpy()})[0]
    assert difference(torch.from_numpy(got), quantized(images)) < 1e-3
    kinds = [node.op_type for node in onnx.load(tmp_path / "fused.onnx").graph.node]
    integer = [name for name, how in arithmetic(quantized).items() if how == "int8"]
    assert kinds.count("MatMulIntegerToFloat") == len(integer) == 10  # paper: 2 fc2 less, 2 products of scores more
    assert not settings or len(integer) == len(sites(quantized))


@torch.no_grad()
def test_a_trunk_with_fewer_tokens_is_quantized_too():
    from vitalk.systems.evit import evit

    trunk, images = evit(tiny_vit(img_size=32), keep_rate=0.7, blocks=(0,)), torch.randn(4, 3, 32, 32)
    for attention in ("float", "twin"):
        quantized = mptq_vit(trunk, images, 8, 8, attention=attention, values=True)
        assert difference(quantized(images), trunk(images)) < 0.2


@torch.no_grad()
def test_a_hybrid_is_quantized_too():
    model = timm.create_model("levit_128s", num_classes=3, img_size=64).eval()
    images = torch.randn(2, 3, 64, 64)
    assert mptq_vit(model, images, 8, 8)(images).isfinite().all()


def test_the_float_model_is_left_alone():
    model = tiny_vit()
    before, kinds = copy.deepcopy(model.state_dict()), [type(m) for m in model.modules()]
    mptq_vit(model, torch.randn(2, 3, 16, 16), progress=True)
    assert [type(m) for m in model.modules()] == kinds
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_constant_pictures_are_borne():
    assert mptq_vit(tiny_vit(), torch.zeros(2, 3, 16, 16))(torch.zeros(2, 3, 16, 16)).isfinite().all()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"weight_bits": 1}, "weight_bits must be 2 to 8, got 1"),
        ({"act_bits": 9}, "act_bits"),
        ({"attention": "ln"}, "twin"),
        ({"gelu": "three"}, "opt-m"),
        ({"smooth": "sq-c"}, "sq-b"),
        ({"measure": "guess", "average_bits": 4}, "cached"),
        ({"average_bits": 9}, "average_bits must be 2 to 8, got 9"),
        ({"average_bits": 4, "bits": {}}, "both"),
        ({"bits": {"neck": (4, 4)}}, "site neck"),
        ({"alpha": 2.0}, "alpha"),
        ({"percentile": 99.9}, "percentile"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_refuses_settings_that_mean_nothing(change, message):
    with pytest.raises(UserError, match=message):
        mptq_vit(tiny_vit(), torch.randn(2, 3, 16, 16), **change)


def test_refuses_broken_input():
    model, images = tiny_vit(), torch.randn(2, 3, 16, 16)
    with pytest.raises(UserError, match="another model"):
        restore(tiny_vit(depth=1), mptq_vit(model, images).state_dict(), images[:1])
    refuses_broken_input(mptq_vit, model, images)


# The measurement


def found(**rows):
    names = [*(f"w3a3 {row}" for row in reproduce.ROWS), *reproduce.AT_FOUR_AND_FIVE]
    names += [*(f"average {n}" for n in reproduce.AVERAGES), "average 3 by proxy"]
    top = {name: 80.0 for name in names} | {name.replace("_", " "): value for name, value in rows.items()}
    top = {name.replace("sq b", "sq-b").replace("opt m", "opt-m"): value for name, value in top.items()}
    return Calibrated({name: [value + d for d in (-0.1, 0.0, 0.1)] for name, value in top.items()}, 89.9, 1000, 32)


GOOD = {"w3a3_both": 82.0, "w3a3_sq_b": 81.0, "w3a3_opt_m": 80.5, "average_3": 86.0}


@pytest.mark.parametrize(
    "change, verdict",
    [
        ({}, "reproduced"),
        ({"w3a3_sq_b": 79.0}, "direction only"),
        ({"average_3": 84.0}, "direction only"),
        ({"w3a3_both": 80.5}, "direction only"),
        ({"w3a3_both": 79.5}, "not reproduced"),
        ({"average_3": 82.0}, "not reproduced"),
    ],
)
def test_verdicts_follow_the_figures(change, verdict):
    assert reproduce.judge(found(**GOOD | change)) == verdict


def test_what_is_measured_is_told():
    steps = [Step(("head", "weight"), 7, 0.5, 4.9), Step(("head", "weight"), 6, 0.25, 3.9)]
    told = reproduce.report(found(**GOOD), steps)
    assert "both 82.0" in told.measured and "86.0 against 82.0 at 3 bits" in told.measured
    assert told.details["bits_of_the_first_draw"] == {
        "5": {"head": (7, 8)},
        "4": {"head": (6, 8)},
        "3": {"head": (6, 8)},
    }
    json.dumps(told.details)


def test_it_measures_a_tiny_network(monkeypatch, tmp_path):
    torch.manual_seed(0)
    pictures = Pictures(torch.randint(0, 256, (300, 3, 16, 16), dtype=torch.uint8), torch.randint(0, 5, (300,)))
    monkeypatch.setattr(reproduce, "load_model", lambda _: SimpleNamespace(model=lively(tiny_vit(depth=1))))
    monkeypatch.setattr(Pictures, "cifar10", classmethod(lambda cls, *_: pictures))
    monkeypatch.setattr(reproduce, "CALIBRATION", 4)
    told = reproduce.measure(0.05, tmp_path)
    assert set(told.details["top1"]) >= {"w3a3 plain", "w3a3 deployed", "w4a4 both", "average 3"}
    assert set(told.details["bits_of_the_first_draw"]) == {"5", "4", "3"}
    assert told.details["harm_by_step"]


def test_the_recipe_has_the_presets():
    text = resources.files("vitalk.systems.mptq_vit").joinpath("recipe.yaml").read_text()
    presets = yaml.safe_load(text)["presets"]
    assert set(presets) == {"tiny", "cpu", "paper"}
    assert all(set(p) >= {"model", "data", "trainer"} for p in presets.values())
