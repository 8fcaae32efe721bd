"""Site attention against timm's unfused attention."""

import pytest
import timm
import torch
from timm.layers import Attention
from timm.models.efficientformer import Attention as BiasedAttention
from timm.models.swin_transformer import WindowAttention

from vitalk.nn.attention import SiteAttention, SiteBiasedAttention, SiteWindowAttention, attend


def unfused(attn):
    attn.fused_attn = False
    return attn.eval()


OPTIONS = [
    {},
    {"qkv_bias": True},
    {"attn_head_dim": 6},
    {"qk_norm": True, "scale_norm": True, "norm_layer": torch.nn.LayerNorm},
    {"gated": True, "proj_bias": False},
]


@torch.inference_mode()
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_equals_timm_bit_for_bit(options):
    attn = unfused(Attention(32, num_heads=4, **options))
    x = torch.randn(2, 9, 32)
    assert torch.equal(SiteAttention.from_timm(attn)(x), attn(x))


@torch.inference_mode()
@pytest.mark.parametrize("mask", [torch.rand(9, 9) > 0.5, torch.randn(2, 1, 9, 9)], ids=["boolean", "additive"])
def test_masks_mean_what_they_mean_in_timm(mask):
    mask = mask | torch.eye(9, dtype=torch.bool) if mask.dtype == torch.bool else mask
    attn = unfused(Attention(32, num_heads=4))
    x = torch.randn(2, 9, 32)
    site = SiteAttention.from_timm(attn)
    torch.testing.assert_close(site(x, mask), attn(x, mask))
    torch.testing.assert_close(site(x, is_causal=True), attn(x, is_causal=True))


@torch.inference_mode()
@pytest.mark.parametrize("masked", [False, True])
def test_window_attention_equals_timm_bit_for_bit(masked):
    attn = unfused(WindowAttention(32, num_heads=4, window_size=3))
    x = torch.randn(8, 9, 32)
    mask = torch.where(torch.rand(4, 9, 9) > 0.5, 0.0, -100.0) if masked else None
    site = SiteWindowAttention.from_timm(attn)
    assert torch.equal(site(x, mask=mask), attn(x, mask=mask))


@torch.inference_mode()
@pytest.mark.parametrize("ratio", [1, 4])
def test_biased_attention_equals_timm_bit_for_bit(ratio):
    attn = BiasedAttention(24, key_dim=8, num_heads=3, attn_ratio=ratio, resolution=(3, 2))
    attn.attention_biases.normal_()
    attn.eval()
    x = torch.randn(2, 6, 24)
    assert torch.equal(SiteBiasedAttention.from_timm(attn)(x), attn(x))


def test_biases_are_gathered_anew_in_each_pass():
    site = SiteBiasedAttention.from_timm(BiasedAttention(24, 8, 3, resolution=2))
    site.eval()
    for _ in range(2):  # timm's kept biases cannot be differentiated twice
        site(torch.randn(2, 4, 24)).sum().backward()
    x = torch.randn(1, 4, 24)
    before = site(x)
    site.attention_biases.data[:, 1] += 5
    assert not torch.allclose(site(x), before)
    assert site.attention_biases.grad.abs().sum() > 0


KINDS = {
    SiteAttention: lambda: Attention(32, num_heads=4),
    SiteWindowAttention: lambda: WindowAttention(32, num_heads=4, window_size=3),
    SiteBiasedAttention: lambda: BiasedAttention(32, 8, 4, resolution=3),
}


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_are_shared_and_keep_their_names(kind):
    attn = KINDS[kind]()
    attn.eval()
    site = kind.from_timm(attn)
    assert not site.training
    assert {n: id(p) for n, p in site.named_parameters()} == {n: id(p) for n, p in attn.named_parameters()}
    assert list(site.state_dict()) == list(attn.state_dict())


def test_is_an_attention_layer_for_timm():
    small = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}
    plain = timm.create_model("vit_tiny_patch16_224", **small).eval()
    site = timm.create_model("vit_tiny_patch16_224", attn_layer=SiteAttention, **small).eval()
    site.load_state_dict(plain.state_dict())
    image = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(site(image), plain(image))


def test_attention_is_the_same_with_and_without_gradients():
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 7, 8) for _ in range(3))
    keys = torch.arange(7)[None, None, None] < torch.tensor([7, 4])[:, None, None, None]
    for seen in (None, keys):
        with torch.no_grad():
            fused = attend(q, k, v, seen)
        torch.testing.assert_close(attend(q, k, v, seen), fused)
