"""What a quantized network costs, and which arithmetic it runs in."""

import torch
from torch import nn

from tests.nn.quant.test_sites import tiny_vit
from vitalk.nn.quant import Log2Quantizer, Policy, UniformQuantizer, calibrate, place, sites
from vitalk.nn.quant.describe import arithmetic, bit_operations, bits_of, costs, packed_bytes, set_bits
from vitalk.vision.cost import count


def placed(bits=8, **kwargs):
    model, images = place(tiny_vit(), bits, bits, Policy(**kwargs)), torch.randn(4, 3, 16, 16)
    return model, images


def test_multiplications_are_those_that_the_cost_counter_finds():
    model, images = placed()
    assert sum(cost.macs for cost in costs(model, images[:1]).values()) == count(tiny_vit(), images[:1]).macs


def test_bits_can_be_set_site_by_site():
    model, images = placed()
    set_bits(model, {"blocks.0.mlp.fc1": (3, 5), "blocks.1.attn.matmul1": (4, 6)})
    calibrate(model, images)
    bits = bits_of(model)
    assert bits["blocks.0.mlp.fc1"] == (3, 5) and bits["blocks.1.attn.matmul1"] == (6, 6)
    assert bits["blocks.1.mlp.fc1"] == (8, 8)
    assert sites(model)["blocks.0.mlp.fc1"].weight_quantizer(model.blocks[0].mlp.fc1.weight)[0].unique().numel() <= 8
    model.head.weight_quantizer.enabled = False
    assert bits_of(model)["head"] == (32, 8)


def test_bytes_and_bit_operations_follow_the_bits():
    (eight, images), (four, _) = placed(8), placed(4)
    weights = sum(cost.params for cost in costs(eight, images[:1]).values())
    assert packed_bytes(eight) - packed_bytes(four) == weights // 2
    macs = count(tiny_vit(), images[:1]).macs
    first = costs(eight, images[:1])["patch_embed.proj"].macs  # its pictures have 8 bits in both
    assert bit_operations(eight, images[:1]) == 64 * macs
    assert bit_operations(four, images[:1]) == 16 * (macs - first) + 32 * first


def test_arithmetic_is_integer_only_where_runtimes_have_it():
    model, images = placed(softmax=Log2Quantizer)
    calibrate(model, images)
    found = arithmetic(model)
    assert found["blocks.0.attn.qkv"] == found["blocks.0.attn.matmul1"] == found["patch_embed.proj"] == "int8"
    assert found["blocks.0.attn.matmul2"] == "simulated"
    layer = sites(model)["head"]
    layer.input_quantizer = UniformQuantizer(8, axis=-1)
    assert arithmetic(model)["head"] == "simulated"
    layer.input_quantizer.enabled = layer.weight_quantizer.enabled = False
    assert arithmetic(model)["head"] == "float"
    stem = nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1, groups=4))
    assert [*arithmetic(place(stem, 8, 8, Policy())).values()] == ["simulated", "int8", "simulated"]
