"""Sites: exposing a model changes nothing until quantizers are set."""

import copy

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from vitalk.errors import UserError
from vitalk.nn.attention import SiteAttention, SiteWindowAttention
from vitalk.nn.quant import (
    QuantConv2d,
    QuantLinear,
    QuantMatMul,
    UniformQuantizer,
    calibrate,
    expose,
    fold_batch_norms,
    load_quantized,
    quantizers,
    sites,
    skeleton,
    switched_off,
)


def tiny_vit(**kwargs):
    size = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}
    return VisionTransformer(**{**size, **kwargs}).eval()


def tiny_swin():
    return timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=32, window_size=4, embed_dim=16, depths=(2, 2), num_heads=(2, 2),
        num_classes=5,
    ).eval()  # fmt: skip


def unfused(model):
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    return model


@torch.inference_mode()
@pytest.mark.parametrize("build, size", [(tiny_vit, 16), (tiny_swin, 32)])
def test_exposed_models_equal_timm_bit_for_bit(build, size):
    plain = unfused(build())
    images = torch.randn(2, 3, size, size)
    wanted = plain(images)
    site = expose(copy.deepcopy(plain))
    assert torch.equal(site(images), wanted)
    assert list(site.state_dict()) == list(plain.state_dict())


def test_every_product_of_a_vit_is_a_site():
    kinds = [type(site) for site in sites(expose(tiny_vit())).values()]
    assert kinds.count(QuantConv2d) == 1
    assert kinds.count(QuantLinear) == 2 * 4 + 1
    assert kinds.count(QuantMatMul) == 2 * 2


def test_every_product_of_a_swin_is_a_site():
    model = expose(tiny_swin())
    assert sum(isinstance(m, SiteWindowAttention) for m in model.modules()) == 4
    kinds = [type(site) for site in sites(model).values()]
    assert kinds.count(QuantMatMul) == 8
    assert kinds.count(QuantLinear) == 4 * 4 + 1 + 1


def test_exposing_twice_is_exposing_once():
    model = expose(tiny_vit())
    before = dict(model.named_modules())
    assert dict(expose(model).named_modules()) == before


def test_without_attention_timms_fused_attention_stays():
    model = expose(tiny_vit(), attention=False)
    assert not any(isinstance(m, SiteAttention | QuantMatMul) for m in model.modules())


def test_shared_layers_stay_shared():
    layer = nn.Linear(4, 4)
    model = expose(nn.Sequential(layer, nn.GELU(), layer))
    assert isinstance(model[0], QuantLinear) and model[0] is model[2]


def test_layers_that_compute_in_their_own_way_are_left_alone():
    class Odd(nn.Linear):
        def forward(self, x):
            return super().forward(x) * 2

    assert type(expose(nn.Sequential(Odd(4, 4)))[0]) is Odd


@torch.inference_mode()
@pytest.mark.parametrize("stride, padding", [(8, 0), (2, 1), (4, "valid")])
def test_convolutions_keep_stride_and_padding(stride, padding):
    conv = nn.Conv2d(3, 6, 8, stride, padding)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(QuantConv2d.wrap(conv)(images), conv(images))


@torch.inference_mode()
@pytest.mark.parametrize("dims", [(4, 4), (2, 4)])
def test_a_patch_embedding_as_product_is_the_convolution(dims):
    site = QuantConv2d.wrap(nn.Conv2d(3, 6, dims, dims).double())
    images = torch.randn(2, 3, 8, 12, dtype=torch.float64)
    assert site._cuts_patches(images)
    torch.testing.assert_close(site._as_product(images), site(images))
    assert not QuantConv2d.wrap(nn.Conv2d(3, 6, 4, 2))._cuts_patches(images)


@torch.inference_mode()
def test_batch_norms_are_folded_into_their_convolutions():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.GELU(), nn.Conv2d(8, 4, 1)).eval()
    model[1].running_mean.uniform_(-1, 1)
    model[1].running_var.uniform_(0.5, 2)
    images = torch.randn(2, 3, 8, 8)
    wanted = model(images)
    fold_batch_norms(model)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    torch.testing.assert_close(model(images), wanted)


@torch.inference_mode()
def test_a_convolution_of_single_pixels_as_product_is_the_convolution():
    site = QuantConv2d.wrap(nn.Conv2d(6, 5, 1).double())
    images = torch.randn(2, 6, 4, 3, dtype=torch.float64)
    assert site.is_product and not site.is_patch_embedding
    torch.testing.assert_close(site._as_product(images), site(images))
    for other in (nn.Conv2d(6, 6, 1, groups=2), nn.Conv2d(6, 5, 1, stride=2), nn.Conv2d(6, 5, 1, padding=1)):
        assert not QuantConv2d.wrap(other).is_product


@torch.inference_mode()
def test_all_but_the_named_sites_are_switched_off():
    images = torch.randn(4, 3, 16, 16)
    model = with_quantizers(expose(tiny_vit()))
    calibrate(model, images)
    with switched_off(model, ["head"]):
        on = [name for name, quantizer in quantizers(model).items() if quantizer.enabled]
    assert sorted(on) == ["head.input_quantizer", "head.weight_quantizer"]
    assert all(quantizer.enabled for quantizer in quantizers(model).values())


def with_quantizers(model):
    for site in sites(model).values():
        if not isinstance(site, QuantMatMul):
            site.weight_quantizer, site.input_quantizer = UniformQuantizer(4, axis=0), UniformQuantizer(4)
    return model


@torch.inference_mode()
def test_switched_off_is_the_float_model_and_back_on_it_is_not():
    plain, images = unfused(tiny_vit()), torch.randn(4, 3, 16, 16)
    model = with_quantizers(expose(copy.deepcopy(plain)))
    calibrate(model, images)
    with switched_off(model):
        assert torch.equal(model(images), plain(images))
    assert not torch.allclose(model(images), plain(images))


def test_calibration_fits_every_quantizer_to_what_is_quantized_upstream():
    model = with_quantizers(expose(nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.Flatten(), nn.Linear(16, 4))))
    images = torch.randn(8, 3, 8, 8)
    assert calibrate(model, images, progress=True) == []
    assert all(q.fitted for q in quantizers(model).values())
    expected = UniformQuantizer(4)
    expected.fit(model[0](images))
    assert torch.equal(model[2].input_quantizer.scale, expected.scale)


def test_sites_that_forward_never_reaches_are_named_and_stay_float():
    class Spare(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.spare = nn.Conv2d(3, 4, 4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.used(x)

    model = with_quantizers(expose(Spare()))
    missed = calibrate(model, torch.randn(2, 3, 8, 8))
    assert sorted(missed) == ["spare.input_quantizer", "spare.weight_quantizer"]
    assert torch.equal(model.spare(torch.ones(1, 4)), nn.Linear.forward(model.spare, torch.ones(1, 4)))


@pytest.mark.parametrize("images", [torch.zeros(0, 3, 16, 16), torch.zeros(3, 16, 16)], ids=["empty", "one picture"])
def test_refuses_calibration_without_pictures(images):
    with pytest.raises(UserError, match="needs pictures"):
        calibrate(expose(tiny_vit()), images)


def test_refuses_broken_pictures_and_weights():
    images = torch.zeros(2, 3, 16, 16)
    images[1, 0, 3, 3] = float("nan")
    with pytest.raises(UserError, match="pictures hold NaN"):
        calibrate(expose(tiny_vit()), images)
    model = tiny_vit()
    model.blocks[1].mlp.fc1.weight.data[0, 0] = float("inf")
    with pytest.raises(UserError, match=r"blocks\.1\.mlp\.fc1\.weight"):
        calibrate(expose(model), torch.zeros(2, 3, 16, 16))


def test_saved_states_come_back_with_biases_that_were_created():
    images = torch.randn(2, 3, 16, 16)
    saved, model = (skeleton(tiny_vit(qkv_bias=False), 8, 8) for _ in range(2))
    saved.blocks[0].attn.qkv.bias = nn.Parameter(torch.ones(96))
    calibrate(saved, images)
    load_quantized(model, saved.state_dict())
    assert torch.equal(model(images), saved(images))
    with pytest.raises(UserError, match="other settings"):
        load_quantized(skeleton(tiny_vit(depth=1), 8, 8), saved.state_dict())
