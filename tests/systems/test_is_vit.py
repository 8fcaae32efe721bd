"""I&S-ViT: its quantizers and stages on ViT, Swin and a reduced trunk; export; verdicts."""

import copy
from functools import partial
from importlib import resources

import onnx
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.nn.quant.test_export import relative, run
from tests.nn.quant.test_sites import tiny_swin, tiny_vit
from tests.systems.vision_checks import refuses_broken_input
from vitalk.deploy.onnx_export import export_onnx
from vitalk.deploy.preprocess import Preprocess
from vitalk.errors import UserError
from vitalk.nn.quant import QuantConv2d, QuantMatMul, ShiftLog2Quantizer, UniformQuantizer, quantizers, sites
from vitalk.nn.quant.describe import arithmetic
from vitalk.nn.quant.export import check_exportable
from vitalk.nn.quant.smooth import WEIGHTS
from vitalk.systems.is_vit import is_vit, reproduce
from vitalk.systems.is_vit.method import SOFTMAX
from vitalk.vision.experiments import Calibrated, Pictures

QUICK = {"iterations": 2, "batch": 4, "lr": 4e-4}


def pictures(count=8, size=16):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def distance(a, b):
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("integer", [True, False])
def test_quantizers_sit_where_the_paper_puts_them(integer):
    quantized = is_vit(tiny_vit(), pictures(), 4, 3, integer=integer, **QUICK)
    for name, site in sites(quantized).items():
        if isinstance(site, QuantMatMul):
            assert type(site.left_quantizer) is (ShiftLog2Quantizer if name.endswith("matmul2") else UniformQuantizer)
            assert site.left_quantizer.bits == site.right_quantizer.bits == 3
        else:
            weight = site.weight_quantizer
            assert weight.bits == 4 and weight.scale.shape == (len(site.weight),)
            assert weight.symmetric == integer and (weight.ranges == WEIGHTS) != integer
            assert site.input_quantizer.scale.dim() == 0
            assert site.input_quantizer.bits == (8 if isinstance(site, QuantConv2d) else 3)
    whole = [bool((q.zero_point == q.zero_point.round()).all()) for n, q in quantizers(quantized).items()
             if isinstance(q, UniformQuantizer)]  # fmt: skip
    assert all(whole) == integer


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 1000), bits=st.integers(2, 6))
def test_attention_becomes_powers_of_two_less_the_shift(seed, bits):
    torch.manual_seed(seed)
    model = tiny_vit(depth=1)
    model.blocks[0].attn.qkv.weight.data *= 20
    quantizer = is_vit(model, pictures(), bits, bits, iterations=0).blocks[0].attn.matmul2.left_quantizer
    shares = torch.randn(50, 20).mul(3).softmax(-1)
    found = quantizer(shares).unique()
    exponents = (found.double() + quantizer.eta).log2()
    assert (exponents - exponents.round()).abs().max() < 1e-3
    top = quantizer.least + quantizer.scale * (2**bits - 1)
    assert len(found) <= min(2**bits, int(top.floor() - quantizer.least.floor()) + 2)
    zero = quantizer(torch.zeros(1))
    assert zero == quantizer.values(*quantizer.known)[quantizer.codes(torch.zeros(1), *quantizer.known).long()]
    assert zero != 0


@pytest.mark.parametrize("build, size", [(tiny_vit, 16), (tiny_swin, 32)])
def test_three_stages_are_nearer_to_float_than_none(build, size):
    torch.manual_seed(0)
    model, images = build(), pictures(16, size)
    plain, tuned = (is_vit(model, images, 3, 3, iterations=n, batch=8, lr=1e-3) for n in (0, 8))
    assert distance(tuned(images), model(images)) < distance(plain(images), model(images))


def test_swins_downsampling_has_one_scale_from_the_start():
    model = tiny_swin()
    quantized = is_vit(model, pictures(2, 32), iterations=0)
    before, after = model.layers[1].downsample, quantized.layers[1].downsample
    assert torch.equal(after.norm.weight, before.norm.weight) and after.reduction.bias is None
    assert not torch.equal(quantized.layers[0].blocks[0].norm1.weight, model.layers[0].blocks[0].norm1.weight)


@pytest.mark.parametrize("attention", SOFTMAX)
def test_every_quantizer_of_attention_can_be_tuned(attention):
    quantized = is_vit(tiny_vit(depth=1), pictures(), 4, 4, attention=attention, **QUICK)
    products = [name for name in quantizers(quantized) if "matmul2.left" in name]
    assert [type(quantizers(quantized)[name]) for name in products] == (
        [SOFTMAX[attention]] if SOFTMAX[attention] else []
    )
    assert quantized(pictures(2)).isfinite().all()


def test_a_trunk_with_fewer_tokens_is_tuned_too():
    from vitalk.systems.evit import evit

    trunk, images = evit(tiny_vit(img_size=32), keep_rate=0.7, blocks=(0,)), pictures(4, 32)
    for attention in ("float", "sulq"):
        quantized = is_vit(trunk, images, 8, 8, attention=attention, iterations=1, batch=4)
        assert distance(quantized(images), trunk(images)) < 0.2


def test_the_float_model_is_left_alone_even_in_inference_mode():
    model = tiny_vit(depth=1)
    before, kinds = copy.deepcopy(model.state_dict()), [type(m) for m in model.modules()]
    with torch.inference_mode():
        is_vit(model, pictures(4), **QUICK)
    assert [type(m) for m in model.modules()] == kinds
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@torch.no_grad()
def test_the_default_is_exported_with_integer_products(tmp_path):
    torch.manual_seed(0)
    # Patch embedding, 4 layers, head, q k^T.
    for bits, attention, products in ((8, "float", 5), (4, "sulq", 6)):
        quantized = is_vit(tiny_vit(depth=1), pictures(), bits, bits, attention=attention, **QUICK)
        check_exportable(quantized)
        assert all(kind == "int8" for name, kind in arithmetic(quantized).items() if "matmul2" not in name)
        path = export_onnx(quantized, tmp_path / f"{attention}.onnx", Preprocess((16, 16)), list("abcde"))
        out, operators = run(onnx.load(path), pictures(), tmp_path)
        assert relative(out, quantized(pictures()).numpy()) < 1e-3
        assert operators["MatMulIntegerToFloat"] == products + 1 and not operators["Gemm"] and not operators["Conv"]
    with pytest.raises(UserError, match="whole number"):
        check_exportable(is_vit(tiny_vit(depth=1), pictures(), integer=False, iterations=0))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"weight_bits": 1}, "weight_bits must be 2 to 8, got 1"),
        ({"act_bits": 9}, "act_bits"),
        ({"attention": "tanq"}, "attention must be one of sulq"),
        ({"stages": 2}, "stages"),
        ({"iterations": -5}, "iterations"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_refuses_settings_that_mean_nothing(change, message):
    with pytest.raises(UserError, match=message):
        is_vit(tiny_vit(), pictures(2), **change)


def test_refuses_broken_input():
    model, images = tiny_vit(depth=1), pictures(2)
    assert is_vit(model, torch.ones(2, 3, 16, 16), **QUICK)(images).isfinite().all()
    refuses_broken_input(partial(is_vit, iterations=0), model, images)


def made_up(**rows):
    by_draw = {
        name: [rows.get(name.replace(" ", "_"), 70.0) + d for d in (-0.1, 0.0, 0.1)] for name in reproduce.VARIANTS
    }
    for name in by_draw:
        if "RepQ" in name:
            by_draw[name].reverse()
    return Calibrated(by_draw, 90.0, 1000, 256)


BETTER = {"w3a3_RepQ-style": 46.0, "w3a3": 80.0, "w4a4_RepQ-style": 86.0, "w4a4": 88.5, "w3a3_one_stage": 79.0}


@pytest.mark.parametrize(
    "change, verdict",
    [
        ({}, "reproduced"),
        ({"w3a3_log2": 81.0}, "direction only"),  # its quantizer is behind
        ({"w3a3_one_stage": 80.5}, "direction only"),
        ({"w4a4": 87.5}, "direction only"),  # less than half
        ({"w4a4": 86.5}, "not reproduced"),
        ({"w4a4": 86.1}, "not reproduced"),
        ({"w3a3": 45.0}, "not reproduced"),
        ({"w4a4_RepQ-style": 91.0, "w4a4": 91.0}, "not reproduced"),  # nothing was lost
    ],
)
def test_verdicts_follow_the_figures(change, verdict):
    found = made_up(**{**BETTER, **change})
    assert reproduce.judge(found) == verdict
    written = reproduce.report(found, 40)
    assert written.verdict == verdict and written.details["iterations"] == 40


@pytest.mark.filterwarnings("ignore")
def test_the_measurement_runs(monkeypatch, tmp_path):
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (260, 3, 16, 16), dtype=torch.uint8)
    loaded = type("Loaded", (), {"model": tiny_vit(depth=1)})
    monkeypatch.setattr(reproduce, "load_model", lambda _: loaded)
    monkeypatch.setattr(Pictures, "cifar10", lambda *_: Pictures(pixels, torch.arange(260) % 5))
    monkeypatch.setattr(reproduce, "CALIBRATION", 8)
    monkeypatch.setattr(reproduce, "affordable", partial(reproduce.affordable, most=1))
    written = reproduce.measure(0.05, tmp_path)
    assert written.details["iterations"] == 1 and set(written.details["top1"]) == set(reproduce.VARIANTS)
    assert written.save(tmp_path / "is-vit.json").is_file()


def test_the_recipe_has_the_presets():
    text = resources.files("vitalk.systems.is_vit").joinpath("recipe.yaml").read_text()
    presets = yaml.safe_load(text)["presets"]
    assert set(presets) == {"tiny", "cpu", "paper"}
    assert all(set(p) >= {"model", "data", "trainer"} for p in presets.values())
