"""Placing quantizers: what gets which, and what is refused."""

import pytest
import timm
import torch

from tests.nn.quant.test_sites import tiny_swin, tiny_vit
from vitalk.errors import UserError
from vitalk.nn.quant import (
    Log2Quantizer,
    Policy,
    QuantMatMul,
    TwinUniformQuantizer,
    UniformQuantizer,
    calibrate,
    expose,
    parse_bits,
    place,
    sites,
    switched_off,
)
from vitalk.nn.quant.policy import behind_gelu


def test_every_kind_of_site_gets_what_the_policy_says():
    model, images = tiny_vit(), torch.randn(2, 3, 16, 16)
    policy = Policy(softmax=Log2Quantizer, gelu=lambda bits: TwinUniformQuantizer(bits, signed=True))
    placed = place(model, 4, 6, policy, images[:1])
    with switched_off(placed):
        torch.testing.assert_close(placed(images), model(images), rtol=1e-5, atol=1e-6)
    for name, site in sites(placed).items():
        if isinstance(site, QuantMatMul):
            assert isinstance(site.left_quantizer, Log2Quantizer) == name.endswith("matmul2")
            assert site.left_quantizer.bits == site.right_quantizer.bits == 6
        else:
            assert isinstance(site.input_quantizer, TwinUniformQuantizer) == name.endswith("fc2")
            assert site.weight_quantizer.bits == 4
            assert site.input_quantizer.bits == (8 if name == "patch_embed.proj" else 6)
    assert not sites(model)


@pytest.mark.parametrize("build, size", [(tiny_vit, 16), (tiny_swin, 32)])
def test_layers_behind_gelu_are_found_by_data_flow(build, size):
    placed = place(build(), 8, 8, Policy())
    found = behind_gelu(placed, torch.randn(1, 3, size, size))
    assert found == {name for name in sites(placed) if name.endswith("fc2")}


def test_convolutions_behind_gelu_are_found_too():
    model = timm.create_model("efficientformer_l1", num_classes=3).eval()
    placed = place(model, 8, 8, Policy())
    found = behind_gelu(placed, torch.randn(1, 3, 224, 224))
    assert "stages.0.blocks.0.mlp.fc2" in found and not any(name.endswith("fc1") for name in found)


def test_products_may_stay_in_float():
    placed = place(tiny_vit(), 8, 8, Policy(products=None))
    assert not any(isinstance(site, QuantMatMul) for site in sites(placed).values())


def test_refuses_bits_and_models_that_cannot_be():
    for bits in ((1, 8), (8, 9)):
        with pytest.raises(UserError, match="2 to 8"):
            place(tiny_vit(), *bits, Policy())
    with pytest.raises(UserError, match="already"):
        place(place(tiny_vit(), 8, 8, Policy()), 8, 8, Policy())


def test_only_some_are_calibrated():
    placed, images = place(tiny_vit(), 8, 8, Policy()), torch.randn(4, 3, 16, 16)
    for site in sites(placed).values():
        if not isinstance(site, QuantMatMul):
            site.weight_quantizer.enabled = False
    missed = calibrate(placed, images, only=lambda name: not name.endswith("weight_quantizer"))
    assert missed == []
    layers = [site for site in sites(placed).values() if not isinstance(site, QuantMatMul)]
    assert all(site.input_quantizer.fitted and not site.weight_quantizer.fitted for site in layers)
    assert isinstance(layers[0].weight_quantizer, UniformQuantizer)


def test_bits_are_read_and_misspelt_ones_refused():
    assert parse_bits("W4A8") == (4, 8)
    for text in ("w1a8", "w8", "int8", "w9a9"):
        with pytest.raises(UserError, match="w8a8"):
            parse_bits(text)


def test_products_of_a_model_that_was_exposed_before_stay_float_too():
    placed = place(expose(tiny_vit()), 8, 8, Policy(products=None))
    products = [site for site in sites(placed).values() if isinstance(site, QuantMatMul)]
    assert products and all(p.left_quantizer is None and p.right_quantizer is None for p in products)
