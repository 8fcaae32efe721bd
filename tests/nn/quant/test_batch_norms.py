"""Folding BatchNorms into the convolutions in front of them, found by type or by data flow."""

import pytest
import timm
import torch
from timm.layers import BatchNormAct2d
from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg
from torch import nn

from vitalk.nn.quant import Policy, fold_batch_norms, place

HYBRIDS = {
    "mobilevit_xxs": {},
    "mobilevitv2_050": {},
    "efficientformer_l1": {},
    "efficientformerv2_s0": {"img_size": 64},
}


def with_statistics(model):
    """``model`` with the statistics of a trained network."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return model.eval()


def hybrid(name, **kwargs):
    """A hybrid of timm."""
    torch.manual_seed(0)
    return with_statistics(timm.create_model(name, num_classes=5, **{**HYBRIDS[name], **kwargs}))


def tiny_hybrid(kind="mobilevit"):
    """Two inverted residuals and one MobileViT block ("mobilevit") or one of MobileViTv2 ("mobilevit2"), 32 pixels."""
    torch.manual_seed(0)
    residual = {"type": "bottle", "s": 2, "gs": 1, "br": 2.0, "block_kwargs": {"bottle_in": True, "linear_out": True}}
    sizes = {"transformer_dim": 16, "transformer_depth": 1, "patch_size": 2, "num_heads": 2}
    mixer = ByoBlockCfg(type=kind, d=1, c=12, s=1, gs=1, br=0.5, block_kwargs=sizes)
    blocks = (ByoBlockCfg(d=1, c=8, **residual), (ByoBlockCfg(d=1, c=12, **residual), mixer))
    stem = {"stem_chs": 8, "stem_type": "3x3", "stem_pool": "", "downsample": ""}
    cfg = ByoModelCfg(blocks=blocks, act_layer="silu", num_features=24, **stem)
    return with_statistics(ByobNet(cfg, num_classes=5))


def norms(model):
    return sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())


@torch.no_grad()
@pytest.mark.parametrize("name", HYBRIDS)
def test_every_batch_norm_of_a_hybrid_is_folded_by_data_flow(name):
    size = 224 if name == "efficientformer_l1" else 64
    model, images = hybrid(name), torch.randn(1, 3, size, size)
    wanted = model(images)
    before = norms(model)
    fold_batch_norms(model, images)
    left = norms(model)
    assert before > 20 and left == (name == "efficientformerv2_s0")  # whose last one stands before the head
    assert (model(images) - wanted).abs().max() < 1e-4 * wanted.abs().max().clamp_min(1)


@torch.no_grad()
def test_without_a_picture_the_types_tell():
    model, images = hybrid("mobilevit_xxs"), torch.randn(1, 3, 64, 64)
    wanted = model(images)
    fold_batch_norms(model)
    assert norms(model) == 0
    torch.testing.assert_close(model(images), wanted, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("image", [None, torch.randn(1, 3, 8, 8)])
def test_the_activation_of_a_batch_norm_stays(image):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), BatchNormAct2d(8, act_layer=nn.SiLU)).eval()
    images = torch.randn(2, 3, 8, 8)
    wanted = model(images)
    fold_batch_norms(model, image)
    assert norms(model) == 0 and isinstance(model[1], nn.SiLU)
    torch.testing.assert_close(model(images), wanted)


class Reused(nn.Module):
    """What the convolution puts out is used beside the BatchNorm too; the second pair is plain."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.mix, self.after = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.branch, self.other = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)  # neighbours that are no pair

    def forward(self, x):
        x = self.conv(x)
        x = self.bn(x) + x
        x = self.after(self.mix(x))
        return (self.branch(x) + self.other(x)).mean((2, 3))


@torch.inference_mode()
def test_what_others_use_as_well_is_not_folded():
    with torch.inference_mode(False):
        model = Reused().eval()
        for norm in (model.bn, model.after, model.other):
            norm.running_mean.uniform_(-1, 1)
            norm.running_var.uniform_(0.5, 2)
    images = torch.randn(2, 3, 8, 8)
    wanted = model(images)
    fold_batch_norms(model, images)
    assert isinstance(model.after, nn.Identity) and norms(model) == 2
    torch.testing.assert_close(model(images), wanted)


@torch.no_grad()
def test_a_convolution_that_is_called_twice_keeps_its_batch_norm():
    conv, norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
    model = nn.Sequential(nn.Sequential(conv), nn.Sequential(norm), nn.Sequential(conv)).eval()
    fold_batch_norms(model, torch.randn(1, 3, 4, 4))
    assert norms(model) == 1


def test_biases_that_blocks_gathered_are_not_copied():
    model, images = hybrid("efficientformerv2_s0"), torch.randn(1, 3, 64, 64)
    out = model(images)  # with gradients: what is gathered here has a graph, and cannot be copied
    placed = place(model, 8, 8, Policy(), images)
    first = next(m for m in placed.modules() if hasattr(m, "attention_bias_cache"))
    assert first.attention_bias_cache == {}
    out.sum().backward()
