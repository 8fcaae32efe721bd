"""DHVT against its official implementation and against the paper's own invariants."""

import re
from pathlib import Path

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.vision_transformer import VisionTransformer

from tests.parity import parity
from tests.systems.vision_checks import (
    awake,
    exports_with_any_batch,
    measured_on_one_seed,
    preset_of,
    trained_by_recipe,
)
from vitalk.errors import UserError
from vitalk.nn.quant import expose, sites
from vitalk.systems.dhvt import (
    DAFF,
    DHVT,
    SOPE,
    Affine,
    DHVTWithMlp,
    HeadTokenAttention,
    checkpoint_filter_fn,
    reproduce,
)
from vitalk.systems.evit import evit
from vitalk.vision.checkpoints import load_matching
from vitalk.vision.cost import count
from vitalk.vision.experiments import Comparison
from vitalk.vision.tokens import TokenReducer, Trunk

PARAMS = {
    "dhvt_tiny_cifar_patch4": 6_008_650,
    "dhvt_small_cifar_patch4": 23_425_450,
    "dhvt_tiny_cifar_patch2": 5_845_162,
    "dhvt_small_cifar_patch2": 22_766_698,
    "dhvt_tiny_domain_patch16": 6_105_975,
    "dhvt_small_domain_patch16": 23_788_431,  # published as 23.8 M
    "dhvt_tiny_imagenet_patch16": 6_267_334,
    "dhvt_small_imagenet_patch16": 24_040_606,
}
NAME = "dhvt_tiny_cifar_patch4"
SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 5}
PLAIN = {"sope": False, "daff": False, "head_tokens": False, "pos_embed": "learn"}
SWITCHES = [{}, PLAIN, {"sope": False}, {"daff": False}, {"head_tokens": False}, {"pos_embed": "learn"}]


def small(**kwargs):
    torch.manual_seed(0)
    return timm.create_model(NAME, **{**SMALL, **kwargs}).eval()


# Parity and checkpoints


@torch.inference_mode()
def test_agrees_with_the_official_model():
    known = parity.load(Path(__file__).parents[1] / "parity" / "dhvt.tiny_cifar_patch4.json")
    model = timm.create_model(NAME).eval()
    assert sum(p.numel() for p in model.parameters()) == known["params"]
    official = {key: torch.from_numpy(value) for key, value in parity.filled_state(known).items()}
    load_matching(model, checkpoint_filter_fn(official, model))
    seen = {}
    first = model.blocks[0]
    layers = {"after_stem": model.patch_embed, "attn_1": first.attn, "ffn_1": first.mlp, "block_1": first}
    for key, layer in {**layers, "block_last": model.blocks[-1]}.items():
        layer.register_forward_hook(lambda _, __, out, key=key: seen.update({key: out}))
    seen["logits"] = model(torch.from_numpy(parity.tensor("image", **known["inputs"]["image"])))
    assert set(seen) == set(known["outputs"])
    for name, output in seen.items():
        assert parity.distance(output.numpy(), known["outputs"][name]) < 1e-4, name


def official(name):
    """An entry of ours under the official name."""
    name = re.sub(r"^patch_embed\.proj\.convs\.", "patch_embed.proj.", name)
    name = re.sub(r"^patch_embed\.proj\.(pre|post)_affine", r"patch_embed.\1_affine", name)
    for number, layer in enumerate(("expand", "depthwise", "project"), 1):
        name = name.replace(f".mlp.{layer}.0.", f".mlp.conv{number}.").replace(f".mlp.{layer}.1.", f".mlp.bn{number}.")
    return name.replace(".mhsa.", ".")


def test_the_official_names_are_those_of_the_fixture():
    known = parity.load(Path(__file__).parents[1] / "parity" / "dhvt.tiny_cifar_patch4.json")
    with torch.device("meta"):
        assert {official(key) for key in timm.create_model(NAME).state_dict()} == {key for key, *_ in known["state"]}


@pytest.mark.parametrize("name", PARAMS)
@pytest.mark.parametrize("wrap", [
    lambda s: s,
    lambda s: {"model": {f"module.{k}": v for k, v in s.items()}, "model_ema": {}, "epoch": 3},
])  # fmt: skip
def test_takes_official_checkpoints_of_every_variant(name, wrap):
    with torch.device("meta"):
        model = timm.create_model(name)
    own = model.state_dict()
    converted = checkpoint_filter_fn(wrap({official(key): value for key, value in own.items()}), model)
    assert {key: id(value) for key, value in converted.items()} == {key: id(value) for key, value in own.items()}


@pytest.mark.parametrize("switches", SWITCHES)
def test_takes_its_own_checkpoints_and_official_ones_of_every_ablation(switches):
    model = small(**switches)
    own = model.state_dict()
    for state in (own, {official(key): value for key, value in own.items()}):
        converted = checkpoint_filter_fn(state, model)
        assert set(converted) == set(own) and all(torch.equal(converted[key], own[key]) for key in own)


@pytest.mark.parametrize(
    ("switches", "words"),
    [
        ({"embed_dim": 48}, r"cls_token is \[1, 1, 32\], the model has \[1, 1, 48\]"),
        ({"patch_size": 2}, r"patch_embed.proj.convs.0.0.weight is \[16, 3, 3, 3\], the model has \[32, 3, 3, 3\]"),
        ({"num_heads": 2}, r"blocks.0.attn.pos_embed is \[1, 4, 32\], the model has \[1, 2, 32\]"),
        ({"pos_embed": "learn"}, r"pos_embed \[1, 65, 32\] is missing"),
        ({"depth": 3}, r"blocks.2.norm1.weight \[32\] is missing"),
        ({"head_tokens": False}, r"blocks.0.attn.qkv.weight \[96, 32\] is missing"),
    ],
)
def test_refuses_checkpoints_of_another_variant(switches, words):
    model = small(**switches)
    state = {official(key): value for key, value in small().state_dict().items()}
    with pytest.raises(UserError, match=f"a.pth does not fit DHVT: {words}"):
        load_matching(model, checkpoint_filter_fn(state, model), "a.pth")


def test_a_position_table_for_other_pictures_is_resized():
    model, table = small(img_size=48, pos_embed="learn"), small(pos_embed="learn").pos_embed
    resized = checkpoint_filter_fn({"pos_embed": table}, model)["pos_embed"]
    assert torch.equal(resized[:, 0], table[:, 0])
    patches = table[:, 1:].transpose(1, 2).unflatten(2, (8, 8))
    wanted = torch.nn.functional.interpolate(patches, size=(12, 12), mode="bicubic").flatten(2).transpose(1, 2)
    torch.testing.assert_close(resized[:, 1:], wanted)
    odd = torch.zeros(1, 51, 32)
    assert checkpoint_filter_fn({"pos_embed": odd}, model)["pos_embed"] is odd


# The registered models


@pytest.mark.parametrize(("name", "params"), PARAMS.items())
def test_parameter_counts(name, params):
    with torch.device("meta"):
        model = timm.create_model(name)
    assert sum(p.numel() for p in model.parameters()) == params
    config = timm.data.resolve_model_data_config(model)
    assert config["input_size"][1:] == model.patch_embed.img_size
    assert config["mean"] == timm.data.IMAGENET_DEFAULT_MEAN
    assert model.num_classes == (100 if "cifar" in name else 345 if "domain" in name else 1000)


@pytest.mark.parametrize(("name", "giga"), [(NAME, 0.4), ("dhvt_small_cifar_patch4", 1.5), (
    "dhvt_tiny_imagenet_patch16", 1.4)])  # fmt: skip
def test_multiply_accumulates_are_the_published_ones(name, giga):
    with torch.device("meta"):
        model = timm.create_model(name)
        image = torch.empty(1, *model.pretrained_cfg["input_size"])
    assert count(model, image).macs / 1e9 == pytest.approx(giga, abs=0.05)


@torch.inference_mode()
@pytest.mark.parametrize("switches", SWITCHES)
def test_is_a_timm_backbone(switches):
    model, x = small(in_chans=1, **switches), torch.randn(2, 1, 32, 32)
    features = model.forward_features(x)
    assert features.shape == (2, 65, 32) and torch.equal(model.forward_head(features), model(x))
    assert model.get_classifier() is model.head
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)
    assert {info["reduction"] for info in model.feature_info} == {4}
    maps = timm.create_model(NAME, features_only=True, out_indices=(0, 1), **SMALL, **switches).eval()
    assert [tuple(m.shape) for m in maps(torch.randn(2, 3, 32, 32))] == [(2, 32, 8, 8)] * 2


@torch.inference_mode()
def test_intermediates_are_those_of_the_forward_pass():
    model, x = awake(small(img_size=(32, 40))), torch.randn(2, 3, 32, 40)
    features = model.forward_features(x)
    final, both = model.forward_intermediates(x, return_prefix_tokens=True, norm=True)
    maps, prefix = both[-1]
    assert torch.equal(final, features) and torch.equal(prefix, features[:, :1])
    assert maps.shape == (2, 32, 8, 10) and torch.equal(maps.flatten(2).transpose(1, 2), features[:, 1:])
    first = model.forward_intermediates(x, [0], stop_early=True, output_fmt="NLC", intermediates_only=True)
    assert len(first) == 1 and torch.equal(first[0], model.blocks[0](*model._embed(x))[:, 1:])
    named = model.forward_intermediates(x, 1, output_dict=True, return_prefix_tokens=True)
    assert set(named) == {"image_intermediates", "image_intermediates_prefix", "image_features"}
    assert torch.equal(named["image_features"], features)
    assert torch.equal(model.get_intermediate_layers(x, n=1, reshape=True, norm=True)[0], maps)
    with pytest.raises(UserError, match="NCHW or NLC"):
        model.forward_intermediates(x, output_fmt="NHWC")


@torch.inference_mode()
def test_the_baseline_is_a_plain_vision_transformer():
    """DeiT: all parts switched off leave timm's own network, with its names."""
    plain, x = small(**PLAIN), torch.randn(2, 3, 32, 32)
    vit = VisionTransformer(32, 4, embed_dim=32, depth=2, num_heads=4, num_classes=5).eval()
    vit.load_state_dict(plain.state_dict())
    assert type(plain) is DHVTWithMlp and torch.equal(plain(x), vit(x))


@torch.inference_mode()
def test_token_reduction_runs_where_the_tokens_are_a_plain_sequence():
    x = torch.randn(2, 3, 32, 32)
    for switches in (PLAIN, {"daff": False, "head_tokens": False}):
        model = small(**switches)
        torch.testing.assert_close(Trunk(model, [TokenReducer()] * 2)(x), model(x))
        assert evit(model, keep_rate=0.5, blocks=(0,)).forward_features(x).shape == (2, 1 + 32 + 1, 32)
    with pytest.raises(UserError, match="DHVT has a forward pass of its own"):
        Trunk(small(), [TokenReducer()] * 2)
    with pytest.raises(UserError, match="HeadTokenAttention is not plain"):
        Trunk(small(daff=False), [TokenReducer()] * 2)


# The parts


@settings(deadline=None, max_examples=20)
@given(
    patch=st.sampled_from([2, 4, 16]),
    rows=st.integers(1, 5),
    columns=st.integers(1, 5),
    channels=st.sampled_from([1, 3]),
)
@torch.inference_mode()
def test_sope_has_one_token_for_each_patch(patch, rows, columns, channels):
    size = (rows * patch, columns * patch)
    embed = SOPE(size, patch, in_chans=channels, embed_dim=16).eval()
    assert embed.grid_size == embed.dynamic_feat_size(size) == (rows, columns)
    assert embed(torch.randn(2, channels, *size)).shape == (2, rows * columns, 16)
    assert len([m for m in embed.modules() if isinstance(m, torch.nn.Conv2d)]) == {2: 1, 4: 2, 16: 4}[patch]
    assert isinstance(embed.proj.convs[-1], torch.nn.GELU) == (patch == 2)


def test_affines_start_as_identities():
    model, x = small(), torch.randn(2, 3, 8, 8)
    affines = [m for m in model.modules() if isinstance(m, Affine)]
    assert [m.alpha.shape[1] for m in affines] == [3, 32]
    assert torch.equal(affines[0](x), x)


@settings(deadline=None, max_examples=20)
@given(tokens=st.integers(1, 30), heads=st.sampled_from([1, 2, 3, 6]))
@torch.inference_mode()
def test_head_tokens_leave_no_token_behind(tokens, heads):
    attention, x = HeadTokenAttention(24, heads, qkv_bias=True).eval(), torch.randn(2, 1 + tokens, 24)
    seen = []
    attention.mhsa.attn_drop.register_forward_hook(lambda _, args, __: seen.append(args[0]))
    fused = attention(x)
    attention.mhsa.fused_attn = False
    torch.testing.assert_close(attention(x), fused, atol=1e-5, rtol=1e-4)
    assert fused.shape == x.shape
    assert seen[-1].shape == (2, heads, 1 + tokens + heads, 1 + tokens + heads)


@torch.inference_mode()
def test_without_head_tokens_it_is_plain_attention():
    """Keys of the head tokens masked and their mean dropped."""
    attention, x = HeadTokenAttention(24, 3).eval(), torch.randn(2, 9, 24)
    mask = torch.arange(12) < 9
    alone = attention.mhsa(torch.cat([x, attention.head_tokens(x)], 1), mask.expand(12, 12))[:, :9]
    torch.testing.assert_close(alone, attention.mhsa(x))
    assert not torch.allclose(attention(x), alone, atol=1e-3)


@torch.inference_mode()
def test_a_head_token_is_made_of_its_slice_of_the_channels():
    attention, x = awake(HeadTokenAttention(24, 3)), torch.randn(2, 9, 24)
    tokens = attention.head_tokens(x) - attention.pos_embed
    other = x.clone()
    other[:, :, 8:16] += 1
    changed = (attention.head_tokens(other) - attention.pos_embed - tokens).abs().amax((0, 2)) > 1e-4
    assert changed.tolist() == [False, True, False]


@torch.inference_mode()
def test_masks_are_about_tokens_and_spare_the_head_tokens():
    attention, x = awake(HeadTokenAttention(24, 3)), torch.randn(2, 9, 24)
    everything = torch.ones(9, 9, dtype=torch.bool)
    torch.testing.assert_close(attention(x, everything), attention(x))
    torch.testing.assert_close(attention(x, torch.zeros(9, 9)), attention(x))
    blind = everything.clone()
    blind[:8, 8] = False
    minus = torch.zeros(9, 9).masked_fill(~blind, float("-inf"))
    torch.testing.assert_close(attention(x, blind), attention(x, minus))
    model, image = small(), torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(model(image, torch.ones(65, 65, dtype=torch.bool)), model(image))


@torch.inference_mode()
def test_order_matters_to_daff_but_not_to_attention():
    attention, daff = awake(HeadTokenAttention(24, 3)), awake(DAFF(24, 96))
    x, order = torch.randn(2, 13, 24), torch.cat([torch.zeros(1, dtype=torch.long), 1 + torch.randperm(12).flip(0)])
    torch.testing.assert_close(attention(x[:, order]), attention(x)[:, order], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(daff(x[:, order], (3, 4)), daff(x, (3, 4))[:, order], atol=1e-3)


@torch.inference_mode()
def test_daff_weighs_the_class_token_by_what_the_patches_say():
    daff, x = awake(DAFF(24, 96)), torch.randn(1, 13, 24).expand(3, 13, 24).clone()
    x[:, 0] = torch.tensor([[0.5], [1.0], [-2.0]])
    out = daff(x, (3, 4))
    gates = out[:, 0] / x[:, 0]
    torch.testing.assert_close(gates, gates[:1].expand(3, 24))
    torch.testing.assert_close(out[:, 1:], out[:1, 1:].expand(3, 12, 24))
    patches = out[0, 1:].mean(0)
    torch.testing.assert_close(gates[0], daff.excitation(torch.nn.functional.gelu(daff.compress(patches))))


@torch.inference_mode()
def test_daff_reads_grids_row_by_row():
    """A grid laid on its side, with kernels laid on their sides, gives the same on its side."""
    daff, x = awake(DAFF(24, 96)), torch.randn(2, 13, 24)

    def turned(tokens, grid):
        patches = tokens[:, 1:].unflatten(1, grid).transpose(1, 2).flatten(1, 2)
        return torch.cat([tokens[:, :1], patches], 1)

    wanted = turned(daff(x, (3, 4)), (3, 4))
    daff.depthwise[0].weight.data = daff.depthwise[0].weight.transpose(2, 3)
    torch.testing.assert_close(daff(turned(x, (3, 4)), (4, 3)), wanted, atol=1e-5, rtol=1e-4)


# The whole


@torch.inference_mode()
@pytest.mark.parametrize("size", [(40, 40), (32, 48), (4, 8)])
def test_reads_all_sizes_that_divide_and_interpolates_nothing(size):
    model, x = awake(small()), torch.randn(2, 3, *size)
    logits, state = model(x), {key: value.clone() for key, value in model.state_dict().items()}
    model.set_input_size(size)
    assert torch.equal(model(x), logits) and logits.isfinite().all()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    dynamic = small(dynamic_img_size=True)
    dynamic.load_state_dict(state)
    torch.testing.assert_close(dynamic(x), logits)
    dynamic = small(dynamic_img_size=True, dynamic_img_pad=True)
    assert dynamic(torch.randn(1, 3, 30, 37)).shape == (1, 5)


@torch.inference_mode()
@pytest.mark.parametrize("switches", [{"pos_embed": "learn"}, PLAIN])
def test_a_position_table_holds_the_model_to_its_size(switches):
    model, x = small(**switches), torch.randn(1, 3, 40, 48)
    with pytest.raises(UserError, match=r"40 x 48 pixels, the model reads 32 x 32.*dynamic_img_size"):
        model(x)
    assert small(dynamic_img_size=True, **switches)(x).shape == (1, 5)
    model.set_input_size((40, 48))
    assert model.pos_embed.shape == (1, 121, 32) and model(x).shape == (1, 5)


@pytest.mark.parametrize("switches", SWITCHES)
def test_everything_learns(switches):
    model = small(**switches).train()
    torch.nn.functional.cross_entropy(model(torch.randn(4, 3, 32, 32)), torch.arange(4)).backward()
    silent = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert not silent


def test_checkpointed_gradients_are_the_same():
    model, x = small(), torch.randn(2, 3, 32, 32)
    model(x).square().sum().backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    model.set_grad_checkpointing()
    model(x).square().sum().backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, wanted[name], msg=name)


def test_trains_in_bfloat16():
    model, x = small().train().to(memory_format=torch.channels_last), torch.randn(4, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(x.contiguous(memory_format=torch.channels_last))
    assert logits.dtype == torch.bfloat16 and logits.isfinite().all()
    logits.float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert {b.dtype for name, b in model.named_buffers() if "running" in name} == {torch.float32}


def test_dropout_comes_after_the_head_tokens_are_merged():
    attention, x = HeadTokenAttention(24, 3, proj_drop=1.0), torch.randn(2, 9, 24)
    assert not attention.train()(x).any() and attention.eval()(x).any()


def test_starts_as_published():
    torch.manual_seed(0)
    model = DHVT(img_size=32, patch_size=4, embed_dim=192, depth=1, num_heads=4, num_classes=100)
    attention = model.blocks[0].attn
    for value in (model.cls_token, attention.pos_embed, attention.ht_proj.weight, model.head.weight):
        assert 0.015 < value.std() < 0.025
    before = attention.pos_embed.clone()
    model.init_weights()
    assert not torch.equal(before, attention.pos_embed) and 0.015 < attention.pos_embed.std() < 0.025
    assert model.norm.eps == model.blocks[0].norm1.eps == 1e-6 and attention.ht_norm.eps == 1e-5
    assert model.no_weight_decay() >= {"cls_token"}


def test_exports_with_any_batch(tmp_path):
    exports_with_any_batch(awake(small(img_size=(16, 24), num_classes=3)), (16, 24), 3, tmp_path)


@torch.inference_mode()
def test_every_product_is_a_site_for_quantizers():
    model, x = awake(small()), torch.randn(2, 3, 32, 32)
    wanted = model(x)
    expose(model)
    assert len(sites(model)) == 2 + 2 * (2 + 2 + 1 + 3 + 2) + 1  # stem, blocks, head
    torch.testing.assert_close(model(x), wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"patch_size": 8}, "patches of 2, 4 or 16 pixels, not 8"),
        ({"patch_size": (4, 2)}, r"patches of 2, 4 or 16 pixels, not \(4, 2\)"),
        ({"img_size": 33, "patch_size": (4, 2), "sope": False}, "4 x 2 pixels do not tile a picture of 33 x 33"),
        ({"img_size": 30}, "4 x 4 pixels do not tile a picture of 30 x 30"),
        ({"img_size": (32, 0)}, "do not tile a picture of 32 x 0"),
        ({"img_size": (3, 32, 32)}, "do not tile a picture of 3 x 32 x 32"),
        ({"img_size": 30, **PLAIN}, "4 x 4 pixels do not tile"),
        ({"num_heads": 3}, "embed_dim 32 does not divide into 3 heads"),
        ({"reg_tokens": 2}, "one class token and no registers"),
        ({"class_token": False, "global_pool": "avg"}, "one class token"),
        ({"patch_drop_rate": 0.1}, "leave out patch_drop_rate"),
    ],
)
def test_refuses_designs_that_mean_nothing(bad, said):
    with pytest.raises(UserError, match=said):
        small(**bad)


@pytest.mark.parametrize("switches", [{}, {"sope": False}, PLAIN])
def test_refuses_pictures_that_do_not_divide(switches):
    model = small(**switches)
    with pytest.raises(UserError, match=r"do not tile a picture of 32 x 30|32 x 30 pixels, the model reads 32 x 32"):
        model(torch.zeros(1, 3, 32, 30))
    with pytest.raises(UserError, match="do not tile a picture of 33 x 33"):
        model.set_input_size(33)
    with pytest.raises(UserError, match="patches of 4 pixels are part of the network"):
        model.set_input_size(patch_size=8)
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 5)


# Recipe and measurement


@pytest.mark.parametrize("preset", ["tiny", "cpu", "paper"])
def test_recipes_build_their_model(preset):
    recipe = preset_of(reproduce, preset)
    model, data = (recipe[part]["init_args"] for part in ("model", "data"))
    with torch.device("meta"):
        built = timm.create_model(model["model"], **model["model_args"])
        assert built(torch.empty(1, 3, data["size"], data["size"])).shape == (1, 100)


def test_trains_by_its_recipe(tmp_path, picture_folder):
    weights = trained_by_recipe("dhvt", picture_folder, tmp_path / "run")
    model = timm.create_model(NAME, embed_dim=64, depth=3, num_classes=3)
    load_matching(model, weights)
    assert model.patch_embed.proj.convs[0][1].num_batches_tracked == 2


@pytest.mark.parametrize(
    ("lead", "verdict"),
    [
        ({}, "reproduced"),
        ({"full": [52.0, 52.1, 52.2]}, "direction only"),  # less than several points
        ({"SOPE": [60.5, 60.6, 60.4]}, "direction only"),  # DAFF is not the big step
        ({"SOPE": [49.9, 50.1, 50.1]}, "direction only"),
        ({"plain without positions": [51.0, 51.1, 51.2]}, "direction only"),
        ({"full": [50.0, 50.1, 49.8]}, "not reproduced"),
        ({"full": [70.0, 45.0, 50.0]}, "not reproduced"),
    ],
)
def test_the_verdict_follows_from_the_numbers(lead, verdict):
    top1 = {"plain": [50.0, 50.1, 49.9], "plain without positions": [45.0, 45.1, 45.2], "SOPE": [54.0, 54.2, 54.1]}
    top1 |= {"DAFF": [60.0, 60.1, 60.2], "full without head tokens": [61.0, 61.1, 61.2], "full": [61.0, 61.2, 61.5]}
    measured = reproduce.judge(Comparison(top1 | lead, 100, 64), "nothing")
    assert measured.verdict == verdict
    if not lead:
        assert "DAFF +10.1" in measured.measured and "head tokens +0.1" in measured.measured
        assert "DAFF +11.9" in measured.published and "3 seeds" in measured.data


@pytest.mark.data
def test_measures_on_real_pictures(monkeypatch):
    small = {"NETWORK": {"embed_dim": 32, "depth": 1, "num_heads": 2}}
    measured = measured_on_one_seed(reproduce, monkeypatch, **small)
    assert len(measured.details["top1"]) == 6
    assert measured.verdict == "not reproduced"  # one seed shows nothing
