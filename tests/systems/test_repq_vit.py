"""RepQ-ViT: the exact invariants of the method, on ViT, Swin and a reduced trunk."""

import copy
from importlib import resources

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
from vitalk.errors import UserError
from vitalk.nn.quant import (
    LogSqrt2Quantizer,
    QuantConv2d,
    QuantLinear,
    QuantMatMul,
    UniformQuantizer,
    quantizers,
    sites,
    switched_off,
)
from vitalk.systems.repq_vit import parse_bits, repq_vit, restore
from vitalk.systems.repq_vit.reproduce import VARIANTS, judge
from vitalk.vision.experiments import Calibrated

MODELS = {"vit": (tiny_vit, 16), "swin": (tiny_swin, 32)}


def lively(model):
    """Norms with channels as unequal as in trained models."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.weight.data = torch.rand(module.weight.shape, generator=generator) * 2 + 0.1
            module.bias.data = torch.randn(module.bias.shape, generator=generator)
    return model


def difference(a, b):
    return ((a - b).norm() / b.norm()).item()


@torch.inference_mode()
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype, bound", [(torch.float32, 1e-4), (torch.float64, 1e-10)])
@pytest.mark.parametrize("integer", [True, False])
def test_the_float_network_is_unchanged(name, dtype, bound, integer):
    build, size = MODELS[name]
    model, images = lively(build()).to(dtype), torch.randn(4, 3, size, size, dtype=dtype)
    quantized = repq_vit(model, images, 4, 4, integer=integer)
    with switched_off(quantized):
        assert (quantized(images) - model(images)).abs().max() < bound


@torch.inference_mode()
@pytest.mark.parametrize("name", MODELS)
def test_more_bits_are_closer_and_eight_are_close(name):
    build, size = MODELS[name]
    torch.manual_seed(0)
    model, images = build(), torch.randn(8, 3, size, size)
    errors = [difference(repq_vit(model, images, bits, bits)(images), model(images)) for bits in (8, 6, 4)]
    assert errors[0] < 0.05 and errors[0] < errors[1] < errors[2]


@torch.inference_mode()
def test_with_unquantized_weights_the_fold_rounds_as_the_channel_scales_did():
    model, images = lively(tiny_vit()).double(), torch.randn(4, 3, 16, 16, dtype=torch.float64)
    outputs = []
    for norm_inputs in ("channel", "reparameterized"):
        quantized = repq_vit(model, images, 8, 4, norm_inputs=norm_inputs)
        for name, quantizer in quantizers(quantized).items():
            quantizer.enabled = not name.endswith("weight_quantizer")
        outputs.append(quantized(images))
    assert difference(outputs[1], outputs[0]) < 1e-9


@torch.inference_mode()
def test_reparameterized_beats_one_scale_a_tensor_where_channels_differ():
    torch.manual_seed(0)
    model, images = lively(tiny_vit()), torch.randn(32, 3, 16, 16)
    for block in model.blocks:
        for norm, linear in ((block.norm1, block.attn.qkv), (block.norm2, block.mlp.fc1)):
            norm.weight[0], norm.bias[0] = 40 * norm.weight[0], 40 * norm.bias[0]
            linear.weight[:, 0] /= 40
    errors = {
        how: difference(repq_vit(model, images, 8, 4, attention="float", norm_inputs=how)(images), model(images))
        for how in ("tensor", "channel", "reparameterized")
    }
    assert errors["reparameterized"] < 0.7 * errors["tensor"]
    assert abs(errors["reparameterized"] - errors["channel"]) < 0.3 * errors["channel"]


@torch.inference_mode()
def test_quantizers_sit_where_the_paper_puts_them():
    quantized = repq_vit(tiny_vit(), torch.randn(4, 3, 16, 16), 4, 3)
    for name, site in sites(quantized).items():
        if isinstance(site, QuantMatMul):
            assert type(site.left_quantizer) is (LogSqrt2Quantizer if name.endswith("matmul2") else UniformQuantizer)
            assert site.left_quantizer.bits == site.right_quantizer.bits == 3
        else:
            assert site.weight_quantizer.bits == 4 and site.weight_quantizer.scale.shape == (len(site.weight),)
            assert site.input_quantizer.scale.dim() == 0
            assert site.input_quantizer.bits == (8 if isinstance(site, QuantConv2d) else 3)


@torch.inference_mode()
def test_attention_in_float_has_no_quantizers_on_its_products():
    quantized = repq_vit(tiny_vit(), torch.randn(4, 3, 16, 16), attention="float")
    assert not any("matmul" in name for name in quantizers(quantized))


@torch.inference_mode()
def test_whole_zero_points_and_symmetric_weights_are_the_default():
    quantized = repq_vit(lively(tiny_vit()), torch.randn(4, 3, 16, 16), 8, 8, attention="float")
    for name, quantizer in quantizers(quantized).items():
        zero = quantizer.zero_point
        assert torch.equal(zero, zero.round()) and bool(((quantizer.low <= zero) & (zero <= quantizer.high)).all())
        assert not name.endswith("weight_quantizer") or bool((zero == 0).all())


def test_parameters_grow_only_by_biases_of_layers_without_one():
    model = tiny_swin()
    quantized = repq_vit(model, torch.randn(2, 3, 32, 32))
    new = {n for n, _ in quantized.named_parameters()} - {n for n, _ in model.named_parameters()}
    assert new == {f"{n}.bias" for n, m in model.named_modules() if isinstance(m, nn.Linear) and m.bias is None}


def test_the_float_model_is_left_alone():
    model = tiny_vit()
    before, kinds = copy.deepcopy(model.state_dict()), [type(m) for m in model.modules()]
    repq_vit(model, torch.randn(2, 3, 16, 16))
    assert [type(m) for m in model.modules()] == kinds
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@torch.inference_mode()
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("attention", ["float", "log-sqrt2"])
def test_a_saved_state_returns(name, attention):
    build, size = MODELS[name]
    model, images = build(), torch.randn(4, 3, size, size)
    quantized = repq_vit(model, images, 4, 4, attention=attention)
    again = restore(build(), load(save(quantized.state_dict())), 4, 4, attention=attention)
    assert torch.equal(again(images), quantized(images))
    with pytest.raises(UserError, match="another model"):
        restore(tiny_vit(depth=1), quantized.state_dict(), 4, 4)


@torch.inference_mode()
def test_a_trunk_with_fewer_tokens_is_quantized_too():
    from vitalk.systems.evit import evit

    trunk, images = evit(tiny_vit(img_size=32), keep_rate=0.7, blocks=(0,)), torch.randn(4, 3, 32, 32)
    for attention in ("float", "log-sqrt2"):
        quantized = repq_vit(trunk, images, attention=attention)
        assert sum(isinstance(s, QuantLinear) for s in sites(quantized).values()) == 9
        assert {q.scale.dim() for n, q in quantizers(quantized).items() if n.endswith("input_quantizer")} == {0}
        assert difference(quantized(images), trunk(images)) < 0.2


@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "vit_tiny_patch16_224"])
@torch.inference_mode()
def test_timm_models_of_other_forms(name):
    size = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2, "num_classes": 3}
    extra = (
        {} if "distilled" in name else {"qk_norm": True, "class_token": False, "global_pool": "avg", "init_values": 1.0}
    )
    model = timm.create_model(name, **size, **extra).eval()
    images = torch.randn(4, 3, 32, 32)
    assert repq_vit(model, images)(images).shape == (4, 3)


@settings(deadline=None)
@given(weight=st.integers(2, 8), act=st.integers(2, 8), upper=st.booleans())
def test_bits_are_read(weight, act, upper):
    text = f"w{weight}a{act}"
    assert parse_bits(text.upper() if upper else text) == (weight, act)


@pytest.mark.parametrize("text", ["", "w4", "w4a16", "w1a4", "4/4", "w4a4x"])
def test_refuses_other_bits(text):
    with pytest.raises(UserError, match="w8a8"):
        parse_bits(text)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"weight_bits": 1}, "weight_bits must be 2 to 8, got 1"),
        ({"act_bits": 9}, "act_bits"),
        ({"attention": "ln"}, "log2"),
    ],
    ids=["weights", "activations", "attention"],
)
def test_refuses_settings_that_mean_nothing(change, message):
    with pytest.raises(UserError, match=message):
        repq_vit(tiny_vit(), torch.randn(2, 3, 16, 16), **change)


def test_refuses_broken_input():
    refuses_broken_input(repq_vit, tiny_vit(), torch.randn(2, 3, 16, 16))


def test_verdicts_follow_the_figures():
    def found(ours, tensor, channel, w6):
        rows = {"w4a4": ours, "w4a4 norm per tensor": tensor, "w4a4 norm per channel": channel, "w6a6": w6}
        by_draw = {name: [rows.get(name, 0.0) + d for d in (-0.1, 0.0, 0.1)] for name in VARIANTS}
        return Calibrated(by_draw, 79.9, 1000, 32)

    assert judge(found(69.0, 33.2, 70.3, 78.9)) == "reproduced"
    assert judge(found(69.0, 65.0, 70.3, 78.9)) == "direction only"
    assert judge(found(60.0, 33.2, 70.3, 78.9)) == "direction only"
    assert judge(found(69.0, 70.0, 70.3, 78.9)) == "not reproduced"
    assert judge(found(69.0, 68.5, 70.3, 78.9)) == "not reproduced"  # within what other pictures would change


def test_the_recipe_has_the_presets():
    text = resources.files("vitalk.systems.repq_vit").joinpath("recipe.yaml").read_text()
    presets = yaml.safe_load(text)["presets"]
    assert set(presets) == {"tiny", "cpu", "paper"}
    assert all(set(p) >= {"model", "data", "trainer"} for p in presets.values())
