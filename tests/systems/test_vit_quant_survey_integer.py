"""The integer-only ViT: near the float network, equal to its simulation and to its ONNX graph."""

import onnxruntime
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from tests.nn.quant.test_sites import tiny_swin, tiny_vit
from vitalk.errors import UserError
from vitalk.nn.quant import UniformQuantizer
from vitalk.systems.vit_quant_survey import integer_onnx, integer_vit, logits_report
from vitalk.systems.vit_quant_survey.integer_build import linear, scale_of
from vitalk.systems.vit_quant_survey.integer_graph import operators
from vitalk.vision.eye import ConvStem

FORMS = {
    "plain": {},
    "average": {"global_pool": "avg", "class_token": False},
    "average of normed": {"global_pool": "avg", "fc_norm": False},
    "registers and layer scale": {"reg_tokens": 2, "no_embed_class": True, "init_values": 0.3},
    "stem": {"embed_layer": ConvStem, "patch_size": 4, "dynamic_img_size": True},
}


def lively(**kwargs):
    """A small ViT whose logits depend on its parts, and pictures."""
    torch.manual_seed(0)
    model = tiny_vit(**kwargs)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and "embed" not in name:
            nn.init.normal_(parameter, std=1.2 / parameter[0].numel() ** 0.5)
    return model.eval(), torch.randn(16, 3, 16, 16)


@torch.inference_mode()
@pytest.mark.parametrize("form", FORMS)
def test_integers_are_near_float_and_the_graph_equals_them(form):
    model, images = lively(**FORMS[form])
    network = integer_vit(model, images)
    logits = network(images)
    found = logits_report(logits, model(images))
    assert found["cosine"] > 0.97 and found["agreement"] > 0.8
    graph = integer_onnx(network)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    for batch in (images, images[:1]):
        (got,) = session.run(None, {"image": batch.numpy()})
        assert torch.equal(torch.from_numpy(got), network(batch))


@torch.inference_mode()
@pytest.mark.parametrize("softmax, gelu", [("polynomial", "polynomial"), ("log2", "shift")])
def test_every_kernel_serves(softmax, gelu):
    model, images = lively()
    network = integer_vit(model, images, softmax, gelu)
    assert logits_report(network(images), model(images))["cosine"] > 0.95
    graph = integer_onnx(network)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    assert torch.equal(torch.from_numpy(session.run(None, {"image": images.numpy()})[0]), network(images))


@torch.inference_mode()
def test_the_graph_has_no_float_operator_but_at_its_ends():
    model, images = lively()
    graph = integer_onnx(integer_vit(model, images))
    kinds = list(operators(graph))
    assert kinds[0] == "QuantizeLinear" and kinds[-1] == "Mul"
    assert not {"Softmax", "Gelu", "Erf", "Sqrt", "Exp", "Pow", "MatMul", "DequantizeLinear"} & set(kinds)
    assert kinds.count("QuantizeLinear") == 1
    assert kinds.count("MatMulInteger") == 1 + 2 * (4 + 1 + 2) + 1  # patches, two blocks with a wide product, head
    floats = [i.name for i in graph.graph.initializer if i.data_type in (1, 10, 11)]
    assert len(floats) == 2  # the two scales


@torch.inference_mode()
def test_a_linear_layer_equals_its_fake_quantized_form():
    torch.manual_seed(0)
    layer, x = nn.Linear(24, 8).double(), torch.randn(5, 24, dtype=torch.float64)
    scale = scale_of(x)
    made = linear(layer.weight, layer.bias, scale)
    codes = (x / scale).round().clamp(-128, 127)
    fake = [UniformQuantizer(8, axis=axis, symmetric=True) for axis in (None, 0)]
    fake[0].scale, fake[0].zero_point = torch.tensor(scale, dtype=torch.float64), torch.zeros(()).double()
    fake[1].fit(layer.weight)
    simulated = fake[0].quantize(x) @ fake[1].quantize(layer.weight).T
    sums = made(codes.numpy().astype("int64")) - made.bias
    torch.testing.assert_close(torch.from_numpy(sums * made.scale), simulated, rtol=1e-12, atol=1e-12)
    assert abs(made.bias * made.scale - layer.bias.numpy()).max() <= made.scale.max() / 2 + 1e-12


@torch.inference_mode()
def test_codes_stay_in_their_widths():
    model, images = lively()
    network = integer_vit(model, images)
    x = network.embedding(network.encode(3 * images))
    for block in network.blocks:
        y = block.norm1(x)
        assert abs(x).max() < 2**17 and y.min() >= -128 and y.max() <= 127
        assert abs(block.attention(y)).max() < 2**30
        x = block(x)


def test_refuses_what_it_cannot_run():
    model, images = lively()
    with pytest.raises(UserError, match="shiftmax, polynomial, log2"):
        integer_vit(model, images, softmax="hardmax")
    with pytest.raises(UserError, match="gelu must be"):
        integer_vit(model, images, gelu="relu")
    with pytest.raises(UserError, match="not SwinTransformer"):
        integer_vit(tiny_swin(), torch.randn(2, 3, 32, 32))
    with pytest.raises(UserError, match="parts that do not run in integers"):
        integer_vit(tiny_vit(qk_norm=True), images)
    with pytest.raises(UserError, match="parts that do not run in integers"):
        integer_vit(VisionTransformer(img_size=16, patch_size=8, embed_dim=32, depth=1, num_heads=2, act_layer=nn.ReLU),
                    images)  # fmt: skip
    with pytest.raises(UserError, match="needs pictures"):
        integer_vit(model, images[:0])
    with pytest.raises(UserError, match="pictures hold NaN"):
        integer_vit(model, images * float("nan"))


def test_refuses_pictures_of_another_size():
    model, images = lively()
    network = integer_vit(model, images)
    with pytest.raises(UserError, match=r"takes pictures .count, 3 x 16 x 16., got .16, 3, 8, 8."):
        network(images[..., :8, :8])
