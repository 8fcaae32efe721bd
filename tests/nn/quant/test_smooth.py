"""Smooth optimisation: what each stage leaves as it was, what learns, and what it is tuned to."""

import copy

import pytest
import timm
import torch
from torch import nn

from tests.nn.quant.test_sites import tiny_swin, tiny_vit
from vitalk.errors import UserError
from vitalk.nn.quant import (
    LogSqrt2Quantizer,
    Policy,
    QuantMatMul,
    ShiftLog2Quantizer,
    UniformQuantizer,
    calibrate,
    find_pairs,
    fold,
    place,
    quantizers,
    sites,
    switched_off,
)
from vitalk.nn.quant import smooth as sos
from vitalk.nn.quant.quantizers import SHRINK
from vitalk.nn.quant.smooth import WEIGHTS, affordable, order, policy_of, smooth, tune
from vitalk.vision.tokens import TokenReducer, Trunk

SULQ = policy_of(ShiftLog2Quantizer, integer=True)


def pictures(count=12, size=16):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def distance(a, b):
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("build, size", [(tiny_vit, 16), (tiny_swin, 32)])
@pytest.mark.parametrize("integer", [True, False])
def test_no_iterations_are_plain_calibration(build, size, integer):
    model, images = build(), pictures(size=size)
    policy = policy_of(ShiftLog2Quantizer, integer)
    plain = place(model, 4, 4, policy)
    pairs = find_pairs(plain, images[:1])
    for _, linears in pairs:
        for linear in linears:
            linear.input_quantizer = UniformQuantizer(4, axis=-1, covers_zero=False)
    calibrate(plain, images)
    for norm, linears in pairs:
        fold(norm, linears, integer)
    for stages in (1, 3):
        same = smooth(model, images, 4, 4, policy, integer, iterations=0, stages=stages)
        assert list(same.state_dict()) == list(plain.state_dict())
        assert all(
            torch.equal(a, b) for a, b in zip(same.state_dict().values(), plain.state_dict().values(), strict=True)
        )


def test_tuned_networks_are_nearer_to_float_than_calibrated_ones_and_the_same_call_gives_the_same():
    torch.manual_seed(0)
    model, images = tiny_vit(), pictures(32)
    settings = {"batch": 16, "lr": 1e-3}
    errors = {}
    for name, iterations, stages in (("plain", 0, 3), ("one", 20, 1), ("three", 20, 3)):
        quantized = smooth(model, images, 3, 3, SULQ, iterations=iterations, stages=stages, **settings)
        errors[name] = distance(quantized(images), model(images))
    assert errors["three"] < 0.8 * errors["plain"] and errors["one"] < 0.8 * errors["plain"]
    torch.manual_seed(1)
    before = torch.get_rng_state()
    again = smooth(model, images, 3, 3, SULQ, iterations=20, **settings)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(again(images), quantized(images))


def prepared(model, images, bits=4):
    """(the network with activations calibrated and weights in float, its float original, the pairs)."""
    placed = place(model, bits, bits, SULQ)
    original = sos._in_float(placed)
    pairs = sos.widen(placed, images[:1])
    sos._switch_weights_off(placed)
    calibrate(placed, images, only=lambda name: not sos._of_weight(name))
    return placed, original, pairs


@pytest.mark.parametrize("build, size", [(tiny_vit, 16), (tiny_swin, 32)])
def test_the_fold_between_the_stages_is_lossless(build, size):
    model, images = build().double(), pictures(size=size).double()
    placed, original, pairs = prepared(model, images)
    tune(placed, original, images, 3, from_float=True, batch=6, lr=1e-3)
    before = placed(images)
    with switched_off(placed):
        in_float = placed(images)
    assert distance(in_float, original(images)) > 1e-6  # it was tuned
    for norm, linears in pairs:
        fold(norm, linears)
    torch.testing.assert_close(placed(images), before, rtol=1e-9, atol=1e-9)
    with switched_off(placed):
        torch.testing.assert_close(placed(images), in_float, rtol=1e-9, atol=1e-9)


def test_only_weights_and_biases_of_sites_learn_and_every_unit_comes_nearer():
    torch.manual_seed(0)
    model, images = tiny_vit(), pictures(32)
    placed, original, _ = prepared(model, images, bits=3)
    before = copy.deepcopy(placed.state_dict())
    learning = []
    for block in placed.blocks:
        block.register_forward_pre_hook(
            lambda block, _: (
                learning.append({n for n, p in block.named_parameters() if p.requires_grad})
                if torch.is_grad_enabled() and any(not p.requires_grad for p in block.parameters())
                else None
            )
        )
    losses = tune(placed, original, images, 30, from_float=True, batch=16, lr=1e-3)
    assert list(losses) == ["patch_embed", "blocks.0", "blocks.1", "head"]
    assert all(last < first for first, last in losses.values())
    layers = {f"{n}.{p}" for n in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2") for p in ("weight", "bias")}
    assert learning and all(names == layers for names in learning)
    moved = {name for name, value in placed.state_dict().items() if not torch.equal(value, before[name])}
    weights = {
        f"{n}.{p}" for n, s in sites(placed).items() if not isinstance(s, QuantMatMul) for p in ("weight", "bias")
    }
    assert moved == weights


def test_the_third_stage_sees_what_the_quantized_network_makes_of_the_pictures(monkeypatch):
    model, images = tiny_vit(), pictures()
    seen = []

    def remember(unit, inputs, targets, groups, steps, batch, tick):
        seen.append((inputs, targets))
        return 0.0, 0.0

    monkeypatch.setattr(sos, "reconstruct", remember)
    smooth(model, images, 3, 3, SULQ, iterations=1)
    first, third = seen[:4], seen[4:]
    assert all(torch.equal(a[1], b[1]) for a, b in zip(first, third, strict=True))
    assert torch.equal(first[0][0], third[0][0])  # the pictures themselves
    assert all(distance(b[0], a[0]) > 0.01 for a, b in zip(first[1:], third[1:], strict=True))


def test_the_stages_take_the_paper_s_steps(monkeypatch):
    steps, model, images = [], tiny_vit(depth=1), pictures(4)
    monkeypatch.setattr(sos, "reconstruct", lambda *args, **_: steps.append(args[4]) or (0.0, 0.0))
    for bits, stages in ((4, 3), (6, 3), (4, 1)):
        smooth(model, images, bits, bits, SULQ, stages=stages)
    assert steps == [1000] * 6 + [200] * 6 + [2000] * 3


def test_few_pictures_fit_and_all_tune(monkeypatch):
    counts, fitted = [], []
    monkeypatch.setattr(sos, "INITIAL", 5)
    monkeypatch.setattr(sos, "reconstruct", lambda *args, **_: counts.append(len(args[1])) or (0.0, 0.0))
    monkeypatch.setattr(sos, "calibrate", lambda *args, **kw: fitted.append(len(args[1])) or calibrate(*args, **kw))
    smooth(tiny_vit(depth=1), pictures(9), 4, 4, SULQ, iterations=1)
    assert counts == [9] * 6 and fitted == [5, 5]


def test_scales_may_stay_channel_wise_or_never_be():
    model, images = tiny_vit(), pictures()
    channel = smooth(model, images, 4, 4, SULQ, common=None, iterations=0)
    assert channel.blocks[0].attn.qkv.input_quantizer.scale.shape == (32,)
    assert channel.head.input_quantizer.scale.dim() == 0
    tensor = smooth(model, images, 4, 4, SULQ, iterations=0, wide=lambda name: not name.endswith("fc1"))
    assert torch.equal(tensor.blocks[0].norm2.weight, model.blocks[0].norm2.weight)
    assert not torch.equal(tensor.blocks[0].norm1.weight, model.blocks[0].norm1.weight)


@pytest.mark.parametrize("iterations", [0, 1])
def test_a_search_comes_between_calibration_and_whatever_follows(iterations):
    def search(model, images):
        qkv = model.blocks[0].attn.qkv
        with switched_off(model):
            untuned = torch.allclose(model(images), original(images), rtol=1e-4, atol=1e-5)
        seen.append((len(images), qkv.input_quantizer.scale.dim(), qkv.weight_quantizer.enabled, untuned))
        model.head.input_quantizer.scale *= 2

    original, seen = tiny_vit(), []
    plain, searched = (
        smooth(original, pictures(), 4, 4, SULQ, iterations=iterations, batch=4, **more)
        for more in ({}, {"search": search})
    )
    assert seen == [(12, 1, iterations == 0, True)]
    assert torch.equal(searched.head.input_quantizer.scale, 2 * plain.head.input_quantizer.scale)


def test_units_come_in_the_order_of_the_forward_pass():
    assert list(order(place(tiny_vit(), 4, 4, SULQ), pictures(1))) == ["patch_embed", "blocks.0", "blocks.1", "head"]
    swin = order(place(tiny_swin(), 4, 4, SULQ), pictures(1, 32))
    assert all(swin.values()) and list(swin).index("layers.1.downsample") == 3

    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.stem, self.spare = nn.Linear(8, 2), nn.Linear(8, 8), nn.Linear(2, 2)

        def forward(self, x):
            return self.head(self.stem(x.flatten(1)))

    assert order(place(Backwards(), 4, 4, SULQ), torch.randn(1, 2, 2, 2)) == {"stem": True, "head": True}


def test_a_trunk_is_tuned_part_by_part():
    torch.manual_seed(0)
    trunk, images = Trunk(tiny_vit(), [TokenReducer(), TokenReducer()]), pictures(16)
    found = order(place(trunk, 4, 4, SULQ), images[:1])
    parts = [f"vit.blocks.{i}.{part}" for i in (0, 1) for part in ("attn", "mlp")]
    assert found == {"vit.patch_embed": True, **dict.fromkeys(parts, False), "vit.head": True}
    plain = smooth(trunk, images, 3, 3, SULQ, iterations=0)
    tuned = smooth(trunk, images, 3, 3, SULQ, iterations=20, batch=16, lr=1e-3)
    assert distance(tuned(images), trunk(images)) < distance(plain(images), trunk(images))


def test_hybrids_are_tuned_too():
    model, images = timm.create_model("mobilevitv2_050", num_classes=3).eval(), pictures(2, 64)
    quantized = smooth(model, images, 8, 8, SULQ, iterations=1, batch=2)
    assert quantized(images).isfinite().all() and all(q.fitted or not q.enabled for q in quantizers(quantized).values())


def test_the_policy_is_the_papers_or_the_deployed_one():
    ours, papers = (policy_of(LogSqrt2Quantizer, integer) for integer in (True, False))
    assert ours.weights(4).symmetric and ours.weights(4).ranges == SHRINK
    assert not papers.weights(4).symmetric and papers.weights(4).ranges == WEIGHTS
    assert isinstance(papers.softmax(4), LogSqrt2Quantizer) and policy_of(None, True).products is None


def test_a_unit_that_never_sees_anything_but_one_colour():
    quantized = smooth(tiny_vit(), torch.zeros(4, 3, 16, 16), 4, 4, SULQ, iterations=2, batch=4)
    assert quantized(pictures(2)).isfinite().all()


def test_iterations_fill_the_time_there_is(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(sos.time, "monotonic", lambda: clock[0])

    def quantize(iterations):
        clock[0] += 2 + 0.5 * iterations

    assert affordable(quantize, 20.0) == 36  # 2 + 0.5 * 36 = 20
    assert affordable(quantize, 0.1) == 1 and affordable(quantize, 1e9, most=300) == 300


@pytest.mark.parametrize(
    "change, message",
    [
        ({"iterations": -1}, "iterations must be 0 or more, got -1"),
        ({"stages": 2}, "stages must be 3"),
        ({"batch": 0}, "batch must be 1"),
        ({"lr": 0.0}, "lr must be between"),
    ],
)
def test_refuses_settings_that_mean_nothing(change, message):
    with pytest.raises(UserError, match=message):
        smooth(tiny_vit(), pictures(2), 4, 4, Policy(), **change)


def test_refuses_broken_input():
    model, images = tiny_vit(), pictures(2)
    with pytest.raises(UserError, match="needs pictures"):
        smooth(model, images[:0], 4, 4, SULQ)
    with pytest.raises(UserError, match="pictures hold NaN"):
        smooth(model, images * float("nan"), 4, 4, SULQ)
    with pytest.raises(UserError, match="2 to 8"):
        smooth(model, images, 4, 9, SULQ)
    with pytest.raises(UserError, match="already"):
        smooth(smooth(model, images, 4, 4, SULQ, iterations=0), images, 4, 4, SULQ)
