"""4 bits as 4 bits: the same numbers from half the file."""

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from tests.nn.quant.test_export import exported, run, weight_bytes
from tests.nn.quant.test_sites import tiny_vit
from vitalk.nn.quant import UniformQuantizer, calibrate, expose, sites
from vitalk.nn.quant.export import fold_weights
from vitalk.nn.quant.packing import pack_weights
from vitalk.systems.repq_vit import repq_vit


@torch.no_grad()
@pytest.mark.parametrize("bits, acts", [(4, 4), (4, 8), (3, 6)])
def test_packed_graphs_compute_the_same(bits, acts, tmp_path):
    torch.manual_seed(0)
    images = torch.randn(4, 3, 16, 16)
    model = repq_vit(tiny_vit(embed_dim=64, num_heads=2), images, bits, acts, attention="float")
    plain = fold_weights(exported(model, images))
    packed = pack_weights(plain)
    onnx.checker.check_model(packed)
    assert weight_bytes(packed) < 0.75 * weight_bytes(plain)
    expected, _ = run(plain, images, tmp_path)
    found, operators = run(packed, images, tmp_path)
    assert operators["MatMulNBits"] == 10 and not operators["MatMulIntegerToFloat"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("inner", [12, 16, 20, 96])
@pytest.mark.parametrize("symmetric", [True, False])
def test_rows_of_any_length_with_and_without_zero_points(inner, symmetric, tmp_path):
    torch.manual_seed(inner)
    model, images = nn.Sequential(nn.Flatten(), nn.Linear(3 * inner, 7)), torch.randn(4, 3, 1, inner)
    for site in sites(expose(model)).values():
        site.input_quantizer = UniformQuantizer(8)
        site.weight_quantizer = UniformQuantizer(4, axis=0, symmetric=symmetric)
    calibrate(model, images)
    packed = pack_weights(fold_weights(exported(model, images)))
    found, operators = run(packed, images, tmp_path)
    assert operators["MatMulNBits"] == 1
    np.testing.assert_allclose(found, model(images).numpy(), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_eight_bits_stay_as_they_are(tmp_path):
    images = torch.randn(4, 3, 16, 16)
    plain = fold_weights(exported(repq_vit(tiny_vit(), images, attention="float"), images))
    assert {n.op_type for n in pack_weights(plain).graph.node} == {n.op_type for n in plain.graph.node}
