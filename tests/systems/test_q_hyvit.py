"""Q-HyViT: bridges, the choice of each layer, and what the calibration keeps quantized."""

import copy
from functools import partial
from importlib import resources

import numpy as np
import onnxruntime
import pytest
import timm
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.nn.quant.test_batch_norms import hybrid, tiny_hybrid
from tests.nn.quant.test_sites import tiny_swin, tiny_vit
from tests.systems.vision_checks import refuses_broken_input
from vitalk.deploy.onnx_export import export_onnx
from vitalk.deploy.preprocess import Preprocess
from vitalk.errors import UserError
from vitalk.nn.quant import (
    Log2Quantizer,
    Policy,
    QuantConv2d,
    QuantLinear,
    QuantMatMul,
    TwinUniformQuantizer,
    UniformQuantizer,
    errors,
    observe,
    place,
    quantizers,
    sites,
    switched_off,
)
from vitalk.nn.quant.export import check_exportable
from vitalk.nn.quant.search import Seen, decided, shares_of
from vitalk.systems.q_hyvit import choices, q_hyvit, reproduce
from vitalk.systems.q_hyvit.baselines import min_max, ptq4vit_style, repq_style
from vitalk.systems.q_hyvit.bridges import order_and_bridges
from vitalk.systems.q_hyvit.choice import Search, fit, forms_of, shares, spans
from vitalk.systems.q_hyvit.method import _seen
from vitalk.vision.experiments import Calibrated, Pictures

QUICK = {"rounds": 1, "candidates": 7, "pictures": 2}
MODELS = {
    "mobilevit": (tiny_hybrid, 32),
    "mobilevit2": (lambda: tiny_hybrid("mobilevit2"), 32),
    "vit": (tiny_vit, 16),
    "swin": (tiny_swin, 32),
}


def pictures(size=32, count=4):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def difference(a, b):
    return ((a - b).norm() / b.norm()).item()


# Bridges


def found_bridges(model, size):
    image = pictures(size, 1)
    return order_and_bridges(place(model, 8, 8, Policy(), image), image)


def test_bridges_of_mobilevit_s_are_those_of_the_released_list():
    order, bridges = found_bridges(hybrid_s(), 64)
    entering = [order.index(name) for bridge in bridges[::2] for name in bridge]
    assert entering == [17, 18, 36, 37, 67, 68]
    leaving = [name for bridge in bridges[1::2] for name in bridge]
    assert leaving[:2] == ["stages.2.1.transformer.1.mlp.fc2", "stages.2.1.conv_proj.conv"] and len(leaving) == 6


def hybrid_s():
    return timm.create_model("mobilevit_s", num_classes=5).eval()


def test_bridges_of_the_other_hybrids():
    _, bridges = found_bridges(tiny_hybrid("mobilevit2"), 32)
    block = "stages.1.1"
    assert bridges == [
        (f"{block}.conv_1x1", f"{block}.transformer.0.attn.qkv_proj"),
        (f"{block}.transformer.0.mlp.fc2", f"{block}.conv_proj.conv"),
    ]
    small = {"depths": (1, 1, 1, 2), "embed_dims": (16, 16, 24, 32), "num_vit": 1}
    _, bridges = found_bridges(hybrid("efficientformer_l1", **small), 224)
    assert bridges == [("stages.3.blocks.0.mlp.fc2", "stages.3.blocks.2.token_mixer.qkv")]
    _, bridges = found_bridges(hybrid("efficientformerv2_s0"), 64)
    assert len(bridges) == 5 and all(
        len({name.split(".token_mixer")[0].split(".attn")[0] for name in b}) == 1 for b in bridges
    )


@pytest.mark.parametrize("name", ["vit", "swin"])
def test_what_cuts_patches_at_once_has_no_bridges(name):
    build, size = MODELS[name]
    assert found_bridges(build(), size)[1] == []


def test_sites_behind_a_bridge_see_it_quantized_and_it_answers_to_the_float_network():
    model, images = place(tiny_hybrid(), 3, 3, Policy(), pictures()[:1]), pictures()
    order, bridges = order_and_bridges(model, images[:1])
    kept = [name for bridge in bridges for name in bridge]
    plain, ranges = observe(model, images, decided), spans(model, images)
    how = Search("search", True, 1, shares(7))
    first, second = kept[:2]
    for name, seen in _seen(model, images, order, kept, decided, 8):
        same = torch.equal(seen.inputs[0], plain[name].inputs[0])
        assert same == (order.index(name) <= order.index(first))
        if name in kept:
            assert torch.equal(seen.out, plain[name].out)
        if name == second:
            with switched_off(model, [first]), torch.no_grad():
                behind = observe(model, images, only=[second], quantized=[first])[second]
            torch.testing.assert_close(seen.inputs[0], behind.inputs[0])
        fit(sites(model)[name], seen, ranges[name], how)
    assert all(q.fitted for q in quantizers(model).values())


# The choice


def convolution(groups=6, bits=8):
    """A site whose input has channels that differ by 10 and never straddles zero in half of them."""
    torch.manual_seed(0)
    site = QuantConv2d.wrap(nn.Conv2d(6, 6, 3, padding=1, groups=groups))
    site.weight_quantizer, site.input_quantizer = UniformQuantizer(bits, axis=0), UniformQuantizer(bits)
    x = torch.randn(2, 6, 6, 6) * torch.logspace(-1, 1, 6).view(1, -1, 1, 1)
    return site, Seen((x,), nn.functional.conv2d(x, site.weight, site.bias, padding=1, groups=groups).detach())


def span_of(site, seen):
    return {"weight_quantizer": site.weight, "input_quantizer": seen.inputs[0]}


def test_ranges_are_those_of_all_pictures_channel_by_channel():
    model = place(tiny_vit(), 8, 8, Policy())
    images = pictures(16, 20)
    found, seen = spans(model, images), observe(model, images, rows=10_000, pictures=20)
    for name, site in sites(model).items():
        for which, x in zip([w for w in found[name] if w != "weight_quantizer"], seen[name].inputs, strict=True):
            axis = -1 if isinstance(site, QuantLinear) else 1
            for each in (UniformQuantizer(8), UniformQuantizer(8, axis=axis, symmetric=True)):
                for got, wanted in zip(*(shares_of(each, y, (1.0, 0.5)) for y in (found[name][which], x)), strict=True):
                    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("integer", [True, False])
def test_depthwise_inputs_choose_channels_and_dense_ones_only_where_floats_allow_it(integer):
    for groups in (6, 1):
        site, seen = convolution(groups)
        fit(site, seen, span_of(site, seen), Search("search", integer, 2, shares(21)))
        several = site.input_quantizer.scale.dim() == 1
        assert several == (groups == 6 or not integer)
        assert site.weight_quantizer.symmetric or not integer


def test_the_rule_is_the_released_one():
    model = place(tiny_vit(), 8, 8, Policy())
    linear, product = model.blocks[0].attn.qkv, model.blocks[0].attn.matmul1
    conv = {groups: convolution(groups)[0] for groups in (1, 6)}
    cases = [
        (conv[1], "weight_quantizer", 0, None), (conv[1], "input_quantizer", None, None),
        (conv[6], "weight_quantizer", 0, None), (conv[6], "input_quantizer", 1, None),
        (linear, "weight_quantizer", 0, 3), (linear, "input_quantizer", None, None),
        (product, "left_quantizer", 1, None),
    ]  # fmt: skip
    for site, which, axis, groups in cases:
        (form,) = forms_of(site, which, 4, "rule", False, parts=3)
        assert form.symmetric and form.axis == axis and form.groups == groups
    (form,) = forms_of(product, "left_quantizer", 4, "rule", True)
    assert form.axis is None  # no runtime has a scale a head


def test_symmetric_scales_start_as_released():
    x = torch.tensor([[-3.0, 0.5, 2.0]])
    scale, zero = shares_of(UniformQuantizer(4, symmetric=True), x, (1.0,))
    assert scale.item() == pytest.approx(3 / (2**3 - 0.5)) and zero.item() == 0


@settings(max_examples=15, deadline=None)
@given(candidates=st.integers(2, 150))
def test_candidates_hold_one_near_the_whole_range(candidates):
    tried = shares(candidates)
    assert len(tried) == candidates and min(tried) == pytest.approx(0.01) and max(tried) == pytest.approx(1.2)
    assert abs(tried[0] - 1) == min(abs(s - 1) for s in tried)
    if candidates >= 101:
        assert abs(tried[0] - 1) <= 0.012


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 1000), bits=st.integers(2, 8), choice=st.sampled_from(["search", "rule", "symmetric", "layer"])
)
def test_what_is_chosen_is_no_worse_than_the_whole_range(seed, bits, choice):
    torch.manual_seed(seed)
    site = QuantLinear.wrap(nn.Linear(6, 4))
    site.weight_quantizer, site.input_quantizer = UniformQuantizer(bits, axis=0), UniformQuantizer(bits)
    x = torch.randn(30, 6) ** 3
    seen = Seen((x,), nn.functional.linear(x, site.weight, site.bias).detach())
    fit(
        site, seen, span_of(site, seen), Search(choice, False, 0, shares(9))
    )  # no rounds: the whole ranges, or the best of the forms'
    before = (site(x) - seen.out).square().mean()
    fit(site, seen, span_of(site, seen), Search(choice, False, 2, shares(9)))
    assert (site(x) - seen.out).square().mean() <= before * (1 + 1e-5)


@torch.no_grad()
def test_channels_of_equal_range_choose_as_the_layer_does():
    site, _ = convolution(6)
    x = torch.rand(2, 6, 6, 6)
    x.flatten(2)[:, :, :2] = torch.tensor([-1.0, 1.0])  # every channel of every picture has the same ends
    scales = [shares_of(UniformQuantizer(6, axis=axis, symmetric=True), x, shares(9))[0] for axis in (None, 1)]
    assert torch.equal(scales[0].expand(-1, 6), scales[1])
    seen = Seen((x,), nn.functional.conv2d(x, site.weight, site.bias, padding=1, groups=6))
    site.input_quantizer = UniformQuantizer(6, axis=1, symmetric=True)
    site.weight_quantizer.enabled = False
    each = errors(site, seen, "input_quantizer", shares_of(site.input_quantizer, x, shares(9)))
    site.input_quantizer = UniformQuantizer(6, symmetric=True)
    whole = errors(site, seen, "input_quantizer", shares_of(site.input_quantizer, x, shares(9)))
    torch.testing.assert_close(each.mean(1), whole)


@torch.no_grad()
def test_without_a_gradient_the_whole_range_is_kept():
    site, seen = convolution(1)
    seen.grad = torch.zeros_like(seen.out)
    fit(site, seen, span_of(site, seen), Search("symmetric", True, 2, shares(101)))
    largest = seen.inputs[0].abs().max()
    assert site.input_quantizer.scale.item() == pytest.approx(largest.item() / 127.5, rel=0.012)


def test_zero_points_do_not_overflow():
    x = torch.linspace(3, 4, 1001)
    open_range = UniformQuantizer(8, covers_zero=False, ranges=None)
    scale = (x.max() - x.min()) / 255
    zero = (-x.min() / scale).round()
    assert zero < 0  # no code; clamped to one, the whole range is shifted
    open_range.take(x, scale[None], zero.clamp(0, 255)[None])
    assert (open_range(x) - x).abs().max() > 2.9
    for form in (UniformQuantizer(8), UniformQuantizer(8, symmetric=True)):
        form.take(x, *(found[0] for found in shares_of(form, x, (1.0,))))
        assert form.low <= form.zero_point <= form.high
        assert (form(x) - x).abs().max() <= form.scale / 2 + 1e-6
    model = q_hyvit(ranged(), pictures(8) * 0.1 + 4, 8, 8, **QUICK)
    for quantizer in quantizers(model).values():
        assert ((quantizer.low <= quantizer.zero_point) & (quantizer.zero_point <= quantizer.high)).all()


def ranged():
    """A network whose second layer sees numbers far from zero."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(144, 3))
    nn.init.constant_(model[0].bias, 50.0)
    return model


# The method


@torch.inference_mode()
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("choice, integer", [("search", True), ("search", False), ("rule", True), ("rule", False)])
def test_the_float_network_is_unchanged_and_eight_bits_are_close(name, choice, integer):
    build, size = MODELS[name]
    with torch.inference_mode(False):
        model = build()
    images = pictures(size)
    before = copy.deepcopy(model.state_dict())
    quantized = q_hyvit(model, images, 8, 8, choice=choice, integer=integer, **QUICK)
    wanted = model(images)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert difference(quantized(images), wanted) < 0.1
    with switched_off(quantized):
        assert (quantized(images) - wanted).abs().max() < 1e-4
    forms = set(choices(quantized).values())
    if choice == "rule":
        assert all(form.endswith(" symmetric") for form in forms)


@torch.no_grad()
def test_fewer_bits_are_further_off():
    model, images = tiny_hybrid(), pictures()
    found = [difference(q_hyvit(model, images, bits, bits, **QUICK)(images), model(images)) for bits in (8, 6, 3)]
    assert found[0] < found[1] < found[2]


@torch.no_grad()
def test_ablations_stay_within_what_they_name():
    model, images = tiny_hybrid(), pictures()
    for choice, absent in (("symmetric", "asymmetric"), ("layer", "channel"), ("layer", "head")):
        forms = choices(q_hyvit(model, images, choice=choice, integer=False, **QUICK)).values()
        assert not any(absent in form.split() for form in forms)
    outputs = [
        q_hyvit(model, images, 3, 3, **QUICK, **change)(images)
        for change in ({}, {"bridges": False}, {"metric": "mse"})
    ]
    assert not torch.allclose(outputs[0], outputs[1]) and not torch.allclose(outputs[0], outputs[2])


@torch.no_grad()
def test_attention_is_quantized_as_asked():
    kinds = {"uniform": UniformQuantizer, "twin-uniform": TwinUniformQuantizer, "log2": Log2Quantizer}
    for attention, kind in kinds.items():
        model = q_hyvit(tiny_vit(), pictures(16), attention=attention, **QUICK)
        assert type(model.blocks[0].attn.matmul2.left_quantizer) is kind
        assert model(pictures(16)).isfinite().all()
    assert not any(
        isinstance(s, QuantMatMul)
        for s in sites(q_hyvit(tiny_vit(), pictures(16), attention="float", **QUICK)).values()
    )


@torch.no_grad()
def test_switched_off_activations_leave_weights_alone_quantized():
    model, images = q_hyvit(tiny_hybrid(), pictures(), 4, 4, **QUICK), pictures()
    for name, quantizer in quantizers(model).items():
        quantizer.enabled = name.endswith("weight_quantizer")
    got = model(images)
    for site in sites(model).values():
        if not isinstance(site, QuantMatMul):
            site.weight.copy_(site.weight_quantizer(site.weight))
    with switched_off(model):
        torch.testing.assert_close(got, model(images))


@torch.no_grad()
def test_a_trunk_and_a_network_with_spare_layers():
    from vitalk.systems.evit import evit

    trunk = evit(tiny_vit(img_size=32), keep_rate=0.7, blocks=(0,))
    assert difference(q_hyvit(trunk, pictures(), **QUICK)(pictures()), trunk(pictures())) < 0.2
    spare = tiny_hybrid()
    spare.spare = nn.Linear(3, 3)
    quantized = q_hyvit(spare, pictures(), **QUICK)
    assert not quantized.spare.input_quantizer.enabled and quantized(pictures()).isfinite().all()


@torch.no_grad()
def test_exported_hybrids_answer_the_same(tmp_path):
    model, images = tiny_hybrid(), pictures(count=8)
    quantized = q_hyvit(model, images, 8, 8, attention="float", **QUICK)
    check_exportable(quantized)
    path = export_onnx(quantized, tmp_path / "small.onnx", Preprocess(size=(32, 32)), list("abcde"))
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "optimised.onnx"), 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    got, wanted = session.run(None, {"image": images.numpy()})[0], quantized(images).numpy()
    assert np.abs(got - wanted).max() < 0.02 * np.abs(wanted).max()
    import onnx

    kinds = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    dense = sum(
        isinstance(s, QuantLinear) or (isinstance(s, QuantConv2d) and s.is_product) for s in sites(quantized).values()
    )
    assert kinds.count("MatMulIntegerToFloat") == dense


@torch.no_grad()
def test_baselines_quantize_hybrids():
    model, images = tiny_hybrid(), pictures()
    for baseline in (min_max, repq_style, ptq4vit_style):
        size = QUICK if baseline is ptq4vit_style else {}
        quantized = baseline(model, images, 8, 8, **size)
        assert all(q.fitted for q in quantizers(quantized).values())
        assert 0 < difference(quantized(images), model(images)) < 0.3


@pytest.mark.parametrize(
    "change, message",
    [
        ({"weight_bits": 1}, "weight_bits must be 2 to 8, got 1"),
        ({"act_bits": 9}, "act_bits"),
        ({"choice": "best"}, "choice must be one of search, rule, symmetric, layer, got best"),
        ({"metric": "cosine"}, "metric"),
        ({"attention": "tan"}, "attention"),
        ({"rounds": -1}, "rounds must be 0 or more"),
        ({"candidates": 1}, "candidates must be 2 or more"),
        ({"pictures": 0}, "pictures must be 1 or more"),
    ],
    ids=str,
)
def test_refuses_settings_that_mean_nothing(change, message):
    with pytest.raises(UserError, match=message):
        q_hyvit(tiny_vit(), pictures(16), **change)


def test_refuses_broken_input():
    refuses_broken_input(partial(q_hyvit, **QUICK), tiny_hybrid(), pictures())


@torch.no_grad()
def test_constant_pictures_are_no_trouble():
    assert q_hyvit(tiny_hybrid(), torch.zeros(2, 3, 32, 32), **QUICK)(pictures()).isfinite().all()


# The measurement


@pytest.mark.parametrize(
    "eight, six, others, verdict",
    [
        (79.5, 75.0, (40.0, 50.0, 60.0), "reproduced"),
        (77.0, 75.0, (40.0, 50.0, 60.0), "direction only"),  # not near float
        (79.5, 75.0, (72.0, 73.0, 74.0), "direction only"),
        (79.5, 75.0, (40.0, 50.0, 75.2), "direction only"),  # one keeps up
        (79.5, 75.0, (40.0, 50.0, 77.0), "not reproduced"),
        (79.5, 75.0, (74.8, 74.9, 75.0), "not reproduced"),
    ],
)
def test_verdicts_follow_the_figures(eight, six, others, verdict):
    rows = {"w8a8 search": eight, "w6a6 search": six}
    rows |= {f"w6a6 {name}": value for name, value in zip(reproduce.BASELINES, others, strict=True)}
    by_draw = {name: [rows.get(name, 30.0) + d for d in (-0.1, 0.0, 0.1)] for name in reproduce.variants({})}
    found = Calibrated(by_draw, 80.0, 1000, 32)
    assert reproduce.judge(found) == verdict
    written = reproduce.report(found, {"depthwise": {"channel symmetric": 2}}, {})
    assert written.verdict == verdict and f"search {six:.1f}" in written.measured


def test_measures_a_tiny_hybrid(monkeypatch, tmp_path):
    generator = torch.Generator().manual_seed(0)
    made = Pictures(
        torch.randint(0, 256, (300, 3, 32, 32), generator=generator, dtype=torch.uint8), torch.arange(300) % 5
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reproduce, "BITS", ("w8a8", "w6a6"))
    monkeypatch.setattr(reproduce, "ABLATIONS", {"mse": {"metric": "mse"}})
    monkeypatch.setattr(reproduce, "SIZE", 16)
    monkeypatch.setattr(reproduce, "DRAWS", 2)
    monkeypatch.setattr(reproduce, "CALIBRATION", 4)
    monkeypatch.setattr(reproduce, "hybrid", lambda *_: reproduce.Enlarged(tiny_hybrid()))
    monkeypatch.setattr(Pictures, "cifar10", lambda *_, **__: made)
    measured = reproduce.measure(0.02, tmp_path)
    assert set(measured.details["top1"]) == set(reproduce.variants({}))
    assert sum(measured.details["chosen"]["depthwise"].values()) == 3


def test_the_hybrid_is_trained_for_a_while_or_taken_from_the_run_folder(monkeypatch, tmp_path):
    from vitalk.experiments import budget
    from vitalk.vision.classifier import Classifier

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reproduce, "BATCH", 4)
    monkeypatch.setattr(reproduce, "PILOT", 2)
    made = Pictures(torch.zeros(8, 3, 32, 32, dtype=torch.uint8), torch.arange(8), padding=0)
    with budget("test", 0.01) as time:
        trained = reproduce.hybrid(made, 0.0, time)
        assert not trained.training and trained(pictures(32, 1)).shape == (1, 10)
        reproduce.TRAINED.parent.mkdir(parents=True)
        classifier = Classifier("mobilevit_xxs", num_classes=10)

        class Data:
            classes = list("abcdefghij")
            preprocess_cfg = staticmethod(lambda: {"input_size": (3, 64, 64), "mean": (0, 0, 0), "std": (1, 1, 1)})

        classifier.save_weights(reproduce.TRAINED, Data)
        again = reproduce.hybrid(made, 0.0, time)
    torch.testing.assert_close(again.net.head.fc.weight, classifier.model.head.fc.weight)


def test_the_recipe_has_the_presets():
    text = resources.files("vitalk.systems.q_hyvit").joinpath("recipe.yaml").read_text()
    presets = yaml.safe_load(text)["presets"]
    assert set(presets) == {"tiny", "cpu", "paper"}
    assert all(set(p) >= {"model", "data", "trainer"} for p in presets.values())
