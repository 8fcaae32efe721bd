"""Export: the ONNX graph computes what the fake-quantized model does, with integer products."""

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from tests.nn.quant.test_sites import tiny_vit
from vitalk.errors import UserError
from vitalk.nn.quant import AdaptiveLogQuantizer, QuantLinear, UniformQuantizer, calibrate, expose, sites
from vitalk.nn.quant.export import TRANSLATIONS, check_exportable, fold_weights
from vitalk.nn.quant.nonuniform import LEAST_GELU
from vitalk.systems.repq_vit import repq_vit


def exported(model, images):
    program = torch.onnx.export(
        model.eval(), (images[:2],), dynamo=True, opset_version=20, input_names=["image"], output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch", min=1)},), custom_translation_table=TRANSLATIONS, verbose=False,
    )  # fmt: skip
    return program.model_proto


def run(model, images, folder):
    """(output, operators of the optimised graph)."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(folder / "optimised.onnx"), 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    out = session.run(None, {"image": images.numpy()})[0]
    return out, Counter(node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node)


def weight_bytes(model):
    return sum(onnx.numpy_helper.to_array(i).nbytes for i in model.graph.initializer)


def relative(a, b):
    return np.abs(a - b).max() / np.abs(b).max()


@torch.no_grad()
@pytest.mark.parametrize("bits, attention", [(8, "float"), (4, "float"), (4, "log-sqrt2")])
def test_onnx_equals_the_fake_quantized_vit_with_integer_products(bits, attention, tmp_path):
    torch.manual_seed(0)
    plain, images = tiny_vit(), torch.randn(6, 3, 16, 16)
    nn.init.normal_(plain.head.bias)  # a bias of zero is dropped, and the head then no special case
    model = repq_vit(plain, images, bits, bits, attention=attention)
    check_exportable(model)
    raw = exported(model, images)
    small = fold_weights(raw)
    onnx.checker.check_model(small, full_check=True)
    out, operators = run(small, images, tmp_path)
    assert relative(out, model(images).numpy()) < 1e-3
    products = 2 if attention == "log-sqrt2" else 0  # q k^T of each block
    assert operators["MatMulIntegerToFloat"] == 10 + products  # patch embedding, 2 x 4 layers, head
    assert not operators["Gemm"] and not operators["Conv"]
    assert relative(run(raw, images, tmp_path)[0], out) < 1e-5


@torch.no_grad()
def test_weights_are_stored_in_bytes():
    torch.manual_seed(0)
    model = repq_vit(tiny_vit(embed_dim=64, num_heads=2), torch.randn(4, 3, 16, 16), 4, 8, attention="float")
    raw = exported(model, torch.randn(2, 3, 16, 16))
    small = fold_weights(raw)
    assert weight_bytes(small) < 0.35 * weight_bytes(raw)
    stored = {i.name: onnx.numpy_helper.to_array(i) for i in small.graph.initializer}
    codes = [array for array in stored.values() if array.ndim == 2 and array.dtype == np.int8]
    assert len(codes) == 10
    assert all(array.min() >= -8 and array.max() <= 7 for array in codes)
    assert not any(array.dtype == np.float32 and array.ndim == 2 for array in stored.values())


class Branches(nn.Module):
    """Two layers on one activation."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(12, 8), nn.Linear(12, 8, bias=False)

    def forward(self, images):
        x = images.flatten(2)
        return self.first(x) + self.second(x)


def quantized(model, images, symmetric=True):
    for site in sites(expose(model)).values():
        site.input_quantizer = UniformQuantizer(8)
        site.weight_quantizer = UniformQuantizer(8, axis=0, symmetric=symmetric)
    calibrate(model, images)
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize("symmetric", [True, False])
def test_layers_on_one_activation_share_its_quantizer(symmetric, tmp_path):
    images = torch.randn(4, 3, 3, 4)
    model = quantized(Branches(), images, symmetric)
    small = fold_weights(exported(model, images))
    assert Counter(node.op_type for node in small.graph.node)["QuantizeLinear"] == 1
    out, operators = run(small, images, tmp_path)
    assert operators["MatMulIntegerToFloat"] == 2
    np.testing.assert_allclose(out, model(images).numpy(), atol=1e-5)


@torch.no_grad()
def test_convolutions_that_overlap_stay_convolutions(tmp_path):
    images = torch.randn(4, 3, 8, 8)
    model = quantized(nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.GELU(), nn.Flatten(2), nn.Linear(16, 5)), images)
    out, operators = run(fold_weights(exported(model, images)), images, tmp_path)
    assert operators["Conv"] + operators["FusedConv"] == 1 and operators["MatMulIntegerToFloat"] == 1
    # The weight is stored in codes, and is a float weight once the file is loaded.
    assert operators["DequantizeLinear"] <= 1 and not operators["Cast"] and not operators["Mul"]
    stored = [tensor for tensor in fold_weights(exported(model, images)).graph.initializer if len(tensor.dims) == 4]
    assert {tensor.data_type for tensor in stored if np.prod(tensor.dims) == 6 * 3 * 3 * 3} == {onnx.TensorProto.INT8}
    np.testing.assert_allclose(out, model(images).numpy(), atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("folded", [True, False])
def test_adaptive_logarithms_are_written_as_float_operators(folded, tmp_path):
    images = torch.randn(4, 3, 4, 4)
    model = quantized(nn.Sequential(nn.GELU(), nn.Flatten(2), nn.Linear(16, 5)), images)
    model[2].input_quantizer = AdaptiveLogQuantizer(4, LEAST_GELU)
    calibrate(model, images)
    model[2].input_quantizer.folded = folded
    out, operators = run(fold_weights(exported(model, images)), images, tmp_path)
    # Not the MatMulNBits of onnxruntime, which would round the logarithm's values to 8 bits.
    assert operators["Log"] == 1 and operators["MatMul"] + operators["Gemm"] == 1
    np.testing.assert_allclose(out, model(images).numpy(), atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("bits, symmetric", [(8, False), (4, False), (4, True)])
def test_single_pixels_are_integer_products_and_depthwise_scales_are_kept(bits, symmetric, tmp_path):
    torch.manual_seed(0)
    images = torch.randn(4, 3, 8, 8) * torch.tensor([0.1, 1.0, 10.0]).view(1, 3, 1, 1)
    model = nn.Sequential(nn.Conv2d(3, 6, 3, 1, 1, groups=3), nn.SiLU(), nn.Conv2d(6, 5, 1), nn.AdaptiveAvgPool2d(1))
    for site in sites(expose(model)).values():
        site.weight_quantizer = UniformQuantizer(bits, axis=0, symmetric=True)
        site.input_quantizer = UniformQuantizer(bits, symmetric=symmetric)
    model[0].input_quantizer = UniformQuantizer(bits, axis=1, symmetric=symmetric, groups=3)
    calibrate(model, images)
    check_exportable(model)
    out, operators = run(fold_weights(exported(model.append(nn.Flatten()), images)), images, tmp_path)
    assert operators["MatMulIntegerToFloat"] == 1 and operators["Conv"] + operators["FusedConv"] == 1
    assert relative(out, model(images).numpy()) < 1e-4


@torch.no_grad()
def test_channel_scales_of_a_dense_convolution_or_within_a_group_are_refused():
    images = torch.randn(4, 6, 8, 8) * torch.logspace(-1, 1, 6).view(1, -1, 1, 1)
    for groups in (1, 3):
        model = expose(nn.Sequential(nn.Conv2d(6, 6, 3, groups=groups)))
        model[0].input_quantizer = UniformQuantizer(8, axis=1)
        calibrate(model, images)
        with pytest.raises(UserError, match="scale for each channel"):
            check_exportable(model)


@torch.no_grad()
def test_float_graphs_pass_through(tmp_path):
    model, images = tiny_vit(), torch.randn(2, 3, 16, 16)
    out, _ = run(fold_weights(exported(model, images)), images, tmp_path)
    np.testing.assert_allclose(out, model(images).numpy(), atol=1e-5)


def test_refuses_what_has_no_integer_form():
    images = torch.randn(4, 3, 16, 16)
    with pytest.raises(UserError, match="whole number"):
        check_exportable(repq_vit(tiny_vit(), images, integer=False))
    with pytest.raises(UserError, match="scale for each channel"):
        check_exportable(repq_vit(tiny_vit(), images, norm_inputs="channel", attention="float"))
    model = nn.Sequential(QuantLinear.wrap(nn.Linear(4, 4)))
    model[0].input_quantizer = UniformQuantizer(8)
    with pytest.raises(UserError, match="calibrate"):
        check_exportable(model)
