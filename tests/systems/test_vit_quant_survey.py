"""The survey's baselines and reports: what they promise of codes, folds and exports, and what they refuse."""

import copy
from importlib import resources

import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.nn.quant.test_sites import tiny_swin, tiny_vit
from vitalk.deploy.onnx_export import export_onnx
from vitalk.deploy.preprocess import Preprocess
from vitalk.errors import UserError
from vitalk.nn.quant import (
    Log2Quantizer,
    QuantLinear,
    TwinUniformQuantizer,
    UniformQuantizer,
    quantizers,
    sites,
    switched_off,
    with_outliers,
)
from vitalk.nn.quant.describe import arithmetic
from vitalk.nn.quant.export import check_exportable
from vitalk.systems.vit_quant_survey import (
    BASELINES,
    fq_vit,
    logits_report,
    noisyquant,
    ptq4vit,
    sqnr,
    tensor_reports,
    uniform,
    vit_quant_survey,
)
from vitalk.systems.vit_quant_survey.baselines import EMAQuantizer, NoisyQuantizer, PowerOfTwoQuantizer, QuantNorm

MODELS = {"vit": (tiny_vit, 16), "swin": (tiny_swin, 32)}
FEW = {"ptq4vit": {"candidates": 10}}


def difference(a, b):
    return ((a - b).norm() / b.norm()).item()


@torch.inference_mode()
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("method", BASELINES)
def test_eight_bits_are_near_float_and_four_are_farther(name, method):
    torch.manual_seed(0)
    build, size = MODELS[name]
    model, images = build(), torch.randn(8, 3, size, size)
    before = copy.deepcopy(model.state_dict())
    errors = [
        difference(
            vit_quant_survey(model, images, bits, bits, method=method, **FEW.get(method, {}))(images), model(images)
        )
        for bits in (8, 4)
    ]
    assert errors[0] < 0.1 and errors[0] < errors[1]
    assert all(torch.equal(v, before[key]) for key, v in model.state_dict().items())


@torch.inference_mode()
@pytest.mark.parametrize("method", BASELINES)
def test_whole_zero_points_make_every_linear_product_an_integer_one(method):
    model, images = tiny_vit(), torch.randn(8, 3, 16, 16)
    made = vit_quant_survey(model, images, 8, 8, method=method, attention="float", **FEW.get(method, {}))
    check_exportable(made)
    assert set(arithmetic(made).values()) == {"int8"}


@torch.no_grad()
@pytest.mark.parametrize("method", ["omse", "fq_vit", "noisyquant"])
def test_exported_files_compute_in_int8(method, tmp_path):
    torch.manual_seed(0)
    model, images = tiny_vit(), torch.randn(8, 3, 16, 16)
    made = vit_quant_survey(model, images, 8, 8, method=method, attention="float")
    preprocess = Preprocess.from_timm_cfg({"input_size": (3, 16, 16), "mean": (0.5,) * 3, "std": (0.5,) * 3})
    path = export_onnx(made, tmp_path / "small.onnx", preprocess, list("abcde"))
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "optimised.onnx"), 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    out = session.run(None, {"image": images.numpy()})[0]
    off = np.abs(out - made(images).numpy()).max(1) / np.abs(out).max()
    assert np.median(off) < 1e-5 and off.max() < 0.02  # a picture may have a number that is rounded the other way
    assert (tmp_path / "optimised.onnx").read_bytes().count(b"MatMulIntegerToFloat") >= 10


@torch.no_grad()
def test_power_of_two_factors_fold_into_the_network_without_any_rounding():
    torch.manual_seed(0)
    model, images = tiny_vit(), torch.randn(8, 3, 16, 16)
    loud = with_outliers(model, images[:1], factor=8.0)
    made = fq_vit(loud, images, 8, 6, attention="float")
    with switched_off(made):
        torch.testing.assert_close(made(images), loud(images), rtol=1e-5, atol=1e-6)
    ratio = loud.blocks[0].norm1.weight / made.blocks[0].norm1.weight
    assert torch.equal(ratio.log2(), ratio.log2().round()) and ratio.max() / ratio.min() == 8
    assert {q.scale.dim() for n, q in quantizers(made).items() if n.endswith("input_quantizer")} == {0}
    alone = fq_vit(loud, images, 8, 6, attention="float", factors=1)
    assert difference(made(images), loud(images)) < 0.7 * difference(alone(images), loud(images))


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10**6), bits=st.integers(3, 8), factors=st.integers(1, 4))
def test_power_of_two_scales_are_powers_of_two_of_one_scale(seed, bits, factors):
    x = torch.randn(2, 30, 8, generator=torch.Generator().manual_seed(seed)) * torch.tensor(
        [1, 1, 2, 4, 8, 16, 0.1, 0.0]
    )
    quantizer = PowerOfTwoQuantizer(bits, factors)
    quantizer.fit(x)
    octaves = (quantizer.scale.max() / quantizer.scale).log2()
    assert torch.equal(octaves, octaves.round()) and octaves.max() <= factors - 1
    assert len(quantizer.zero_point.unique()) == 1
    whole = UniformQuantizer(bits, ranges=PowerOfTwoQuantizer(bits).ranges)
    whole.fit(x)
    assert (quantizer.quantize(x) - x).square().mean() <= (whole.quantize(x) - x).square().mean() + 1e-9
    again = quantizer.quantize(quantizer.quantize(x))
    assert torch.equal(again, quantizer.quantize(x))  # decode(encode(decode(c))) == decode(c)


@torch.inference_mode()
def test_quantized_layer_norms_are_the_papers_and_only_simulated():
    model, images = tiny_vit(), torch.randn(4, 3, 16, 16)
    made = fq_vit(model, images, 8, 8, norms="inputs", integer=False)
    norms = [m for m in made.modules() if isinstance(m, nn.LayerNorm)]
    assert len(norms) == 5 and all(isinstance(m, QuantNorm) and m.input_quantizer.fitted for m in norms)
    assert list(made.norm.state_dict())[:2] == ["weight", "bias"]
    with switched_off(made):
        torch.testing.assert_close(made(images), model(images))
    with pytest.raises(UserError, match="scale for each channel"):
        check_exportable(made)


@torch.inference_mode()
def test_the_noise_is_taken_off_again():
    torch.manual_seed(0)
    model, images = tiny_vit(), torch.randn(8, 3, 16, 16)
    made = noisyquant(model, images, 8, 4, attention="float")
    site = made.blocks[0].mlp.fc1
    quantizer = site.input_quantizer
    assert isinstance(quantizer, NoisyQuantizer) and quantizer.noise.shape == (32,)
    assert quantizer.noise.abs().max() <= quantizer.scale
    x, weight = torch.randn(7, 32), site.weight_quantizer(site.weight)
    plain = (quantizer.quantize(x) - quantizer.noise) @ weight.T + model.blocks[0].mlp.fc1.bias
    torch.testing.assert_close(site(x), plain, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_running_ranges_forget_a_late_outlier():
    x = torch.linspace(-1, 1, 800).view(1, 8, 100).clone()
    x[..., -1] = 100.0
    quantizer = EMAQuantizer(8, ranges=PowerOfTwoQuantizer(8).ranges)
    quantizer.fit(x.reshape(-1)[: 8 * 100])
    steady = EMAQuantizer(8, ranges=quantizer.ranges)
    steady.fit(torch.cat([torch.linspace(-1, 1, 700), torch.full((100,), 100.0)]))
    assert quantizer.scale * 255 > 95 and steady.scale * 255 < 8


@torch.inference_mode()
def test_ptq4vit_puts_twin_quantizers_where_the_paper_does():
    model, images = tiny_vit(), torch.randn(4, 3, 16, 16)
    made = ptq4vit(model, images, 8, 6, integer=False, candidates=5)
    for name, quantizer in quantizers(made).items():
        twin = name.endswith(("matmul2.left_quantizer", "fc2.input_quantizer"))
        assert isinstance(quantizer, TwinUniformQuantizer) == twin and quantizer.fitted
    assert not any(isinstance(q, TwinUniformQuantizer) for q in quantizers(
        ptq4vit(model, images, 8, 6, attention="float", candidates=5)).values())  # fmt: skip


@torch.inference_mode()
def test_attention_may_have_bits_of_its_own():
    made = vit_quant_survey(tiny_vit(), torch.randn(4, 3, 16, 16), 8, 8, attention="log2", attention_bits=4)
    for name, quantizer in quantizers(made).items():
        probabilities = name.endswith("matmul2.left_quantizer")
        assert quantizer.bits == (4 if probabilities else 8)
        assert isinstance(quantizer, Log2Quantizer) == probabilities


@torch.inference_mode()
def test_a_trunk_with_fewer_tokens_is_quantized_too():
    from vitalk.systems.evit import evit

    trunk, images = evit(tiny_vit(img_size=32), keep_rate=0.7, blocks=(0,)), torch.randn(4, 3, 32, 32)
    for method in BASELINES:
        made = vit_quant_survey(trunk, images, method=method, **FEW.get(method, {}))
        assert sum(isinstance(site, QuantLinear) for site in sites(made).values()) == 9
        assert difference(made(images), trunk(images)) < 0.2


@torch.inference_mode()
@pytest.mark.parametrize("method", BASELINES)
def test_constant_activations_do_no_harm(method):
    model = tiny_vit()
    for block in model.blocks:
        block.mlp.fc1.weight.data.zero_(), block.mlp.fc1.bias.data.zero_()
    images = torch.zeros(4, 3, 16, 16)
    made = vit_quant_survey(model, images, method=method, **FEW.get(method, {}))
    assert made(images).isfinite().all()


@torch.inference_mode()
def test_reports_count_codes_and_noise():
    torch.manual_seed(0)
    model, images = tiny_vit(), torch.randn(8, 3, 16, 16)
    made = uniform(model, images, 4, 6)
    found = tensor_reports(made, images)
    assert set(found) == set(quantizers(made))
    for name, row in found.items():
        assert row.bits == (4 if name.endswith("weight_quantizer") else 8 if "patch_embed" in name else 6)
        assert 2 <= row.codes <= 2**row.bits and 0 <= row.saturation <= 1 and row.sqnr > 5
    finer = tensor_reports(uniform(model, images, 8, 8), images)
    assert all(finer[name].sqnr > row.sqnr for name, row in found.items() if "patch_embed.proj.input" not in name)
    noisy = tensor_reports(noisyquant(model, images, 8, 6), images)
    assert all(row.sqnr > 5 for row in noisy.values())
    same = logits_report(model(images), model(images))
    assert same["agreement"] == 1 and abs(same["kl"]) < 1e-6 and same["cosine"] > 0.9999
    assert sqnr(torch.ones(4), torch.full((4,), 0.9)) == pytest.approx(20, abs=0.01)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"method": "gptq"}, "minmax, percentile, omse, ema, ptq4vit, fq_vit, noisyquant, got gptq"),
        ({"attention": "ln"}, "attention must be one of"),
        ({"weight_bits": 1}, "weight_bits must be 2 to 8, got 1"),
        ({"act_bits": 9}, "act_bits must be 2 to 8, got 9"),
        ({"attention_bits": 1}, "2 to 8 bits, got 1"),
        ({"norms": "both"}, "norms must be one of outputs, inputs"),
    ],
)
def test_refuses_settings_that_mean_nothing(change, message):
    with pytest.raises(UserError, match=message):
        vit_quant_survey(tiny_vit(), torch.randn(2, 3, 16, 16), **change)


@pytest.mark.parametrize("method", BASELINES)
def test_refuses_broken_input(method):
    model, images = tiny_vit(), torch.randn(2, 3, 16, 16)
    with pytest.raises(UserError, match="needs pictures"):
        vit_quant_survey(model, images[:0], method=method)
    with pytest.raises(UserError, match="pictures hold NaN"):
        vit_quant_survey(model, images * float("nan"), method=method)
    with pytest.raises(UserError, match="quantized already"):
        vit_quant_survey(uniform(model, images), images, method=method)


def test_the_recipe_has_the_presets():
    text = resources.files("vitalk.systems.vit_quant_survey").joinpath("recipe.yaml").read_text()
    presets = yaml.safe_load(text)["presets"]
    assert set(presets) == {"tiny", "cpu", "paper"}
    assert all(set(preset) >= {"model", "data", "trainer"} for preset in presets.values())
