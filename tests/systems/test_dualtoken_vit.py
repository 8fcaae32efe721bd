"""DualToken-ViT against the paper's own invariants; no weights and no code have been released to compare with."""

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.optim import create_optimizer_v2
from torch import nn

from tests.systems.vision_checks import (
    awake,
    exports_with_any_batch,
    measured_on_one_seed,
    preset_of,
    trained_by_recipe,
)
from vitalk.errors import UserError
from vitalk.nn.quant import expose
from vitalk.systems.dualtoken_vit import (
    BiDimAttention,
    ConvEncoder,
    CrossAttention,
    Downsample,
    DualTokenViT,
    MergePatch,
    NormalTokens,
    PositionTokens,
    WindowEncoder,
    reproduce,
    token_mlp,
)
from vitalk.vision.checkpoints import load_matching
from vitalk.vision.classifier import Classifier
from vitalk.vision.cost import count
from vitalk.vision.experiments import Comparison, Pictures

SIZES = {  # parameters, multiply-accumulates at 224 pixels rounded to 0.1 G, widths
    "dualtoken_vit_tiny_mix": (6_363_790, 0.5, (32, 96, 192)),
    "dualtoken_vit_small_mix": (10_361_870, 1.0, (64, 128, 256)),
    "dualtoken_vit_small": (10_883_507, 1.0, (64, 128, 256)),
}
NAME = "dualtoken_vit_cifar"
SMALL = {"embed_dims": (16, 32), "depths": (1, 1), "mlp_ratios": (2, 2), "head_dim": 8, "neck_dim": 24}
SMALL |= {"img_size": 16, "grid": 4, "num_classes": 5}  # maps of 8 and 4
SWITCHES = [
    {},
    {"tokens": "normal", "num_tokens": 3},
    {"tokens": "none"},
    {"local": "window"},
    {"downsample": "onestep"},
    {"global_mlp": "mix", "learn_alpha": True},
    {"global_ffn": True},
    {"token_grid": 2},
]


def small(**kwargs):
    torch.manual_seed(0)
    return timm.create_model(NAME, **{**SMALL, **kwargs}).eval()


def position_tokens(alpha, dim=16, side=8, grid=4, kind="mlp"):
    return awake(PositionTokens(dim, 2, Downsample(dim, side, grid), token_mlp(kind, dim, grid**2), alpha))


# The registered models


@pytest.mark.parametrize("name", SIZES)
def test_sizes_and_shapes_at_224(name):
    params, giga, widths = SIZES[name]
    with torch.device("meta"):
        model, image = timm.create_model(name), torch.empty(1, 3, 224, 224)
        shapes, attended, scores = [], [], []
        for stage in model.stages:
            stage.register_forward_hook(lambda _, __, out: shapes.append((tuple(out[0].shape), tuple(out[1].shape))))
            for block in stage.blocks:
                block.tokens.attn.register_forward_hook(lambda _, args, __: attended.append(args[0].shape[1]))
                block.broadcast.register_forward_hook(
                    lambda _, args, __: scores.append((args[0].shape[1], args[1].shape[1]))
                )
        cost = count(model, image)
    assert cost.params == params and cost.macs / 1e9 == pytest.approx(giga, abs=0.05)
    assert shapes == [((1, s, s, c), (1, 49, c)) for s, c in zip((28, 14, 7), widths, strict=True)]
    depths = [len(stage.blocks) for stage in model.stages]
    assert attended == [49] * sum(depths)
    assert scores == [(n, 49) for n, depth in zip((784, 196, 49), depths, strict=True) for _ in range(depth)]
    repeats = [{len(block.tokens.downsample.steps) for block in stage.blocks} for stage in model.stages]
    assert repeats == [{1}, {0}, {0}]
    assert [(info["num_chs"], info["reduction"]) for info in model.feature_info] == list(
        zip(widths, (8, 16, 32), strict=True)
    )


def test_costs_compare_as_published():
    with torch.device("meta"):
        models = [
            timm.create_model("dualtoken_vit_small_mix", **arguments)
            for arguments in ({}, {"downsample": "onestep"}, {"global_mlp": "mlp"})
        ]
        image, (mix, onestep, mlp) = (
            torch.empty(1, 3, 224, 224),
            (sum(p.numel() for p in m.parameters()) for m in models),
        )
        vit = timm.create_model(reproduce.VIT[0], **reproduce.VIT[1])
        macs, as_much = (count(model, image).macs for model in (models[0], vit))
    assert mlp > mix
    assert mix - onestep == 2 * (9 * 64 * 64 + 2 * 64)  # 0.1 M: a convolution and its norm for each block at 28 x 28
    assert as_much == pytest.approx(macs, rel=0.05)  # the ViT that the latencies are compared with


def test_cost_grows_no_faster_than_the_pixels():
    with torch.device("meta"):
        model = timm.create_model("dualtoken_vit_tiny_mix", depths=(1, 1, 1))
        macs = [count(model, torch.empty(1, 3, side, side)).macs for side in (224, 448)]
    assert 3 * macs[0] < macs[1] < 4 * macs[0]


@torch.inference_mode()
@pytest.mark.parametrize("switches", SWITCHES)
def test_is_a_timm_backbone(switches):
    model, x = awake(small(in_chans=1, **switches)), torch.randn(2, 1, 16, 16)
    features = model.forward_features(x)
    own = {"normal": 3, "none": 0}.get(switches.get("tokens"), 16)
    assert features.shape == (2, own + 16, 32) and torch.equal(model.forward_head(features), model(x))
    assert model(x).shape == (2, 5) and model.forward_head(features, pre_logits=True).shape == (2, 24)
    assert model.get_classifier() is model.head
    final, maps = model.forward_intermediates(x, norm=True)
    assert torch.equal(final, features) and [tuple(m.shape) for m in maps] == [(2, 16, 8, 8), (2, 32, 4, 4)]
    torch.testing.assert_close(maps[1].flatten(2).transpose(1, 2), features[:, own:])
    first = model.forward_intermediates(x, [0], stop_early=True, intermediates_only=True)
    assert len(first) == 1 and torch.equal(first[0], maps[0])
    model.reset_classifier(3, "")
    assert model(x).shape == (2, own + 16, 3)
    model.reset_classifier(0, "avg")
    assert model(x).shape == (2, 24)


@torch.inference_mode()
def test_feature_maps_are_those_of_the_whole_model():
    arguments = {"embed_dims": (16, 32, 32), "depths": (1, 1, 1), "mlp_ratios": (2, 2, 2), "head_dim": 8}
    maps = timm.create_model("dualtoken_vit_tiny_mix", features_only=True, **arguments).eval()
    assert maps.feature_info.reduction() == [8, 16, 32] and maps.feature_info.channels() == [16, 32, 32]
    x = torch.randn(1, 3, 64, 96)
    assert [tuple(m.shape) for m in maps(x)] == [(1, 16, 8, 12), (1, 32, 4, 6), (1, 32, 2, 3)]
    one = timm.create_model("dualtoken_vit_tiny_mix", features_only=True, out_indices=(1,), **arguments).eval()
    one.load_state_dict(maps.state_dict(), strict=False)
    assert torch.equal(one(x)[0], maps(x)[1]) and len(one.model.stages) == 2
    with pytest.raises(UserError, match="NCHW, not NLC"):
        small().forward_intermediates(torch.zeros(1, 3, 16, 16), output_fmt="NLC")


@pytest.mark.parametrize(
    ("switches", "words"),
    [
        ({"embed_dims": (16, 48)}, r"stages.1.merge.reduction.weight is \[32, 64\], the model has \[48, 64\]"),
        ({"grid": 2}, r"global_tokens is \[1, 16, 16\], the model has \[1, 4, 16\]"),
        ({"global_mlp": "mix"}, r"stages.0.blocks.0.tokens.mlp.norm1.weight \[16\] is missing"),
        ({"tokens": "none"}, r"global_tokens \[1, 16, 16\] is unknown to the model"),
    ],
)
def test_refuses_checkpoints_of_another_variant(switches, words):
    state = small().state_dict()
    with pytest.raises(UserError, match=f"a.safetensors does not fit DualTokenViT: {words}"):
        load_matching(small(**switches), state, "a.safetensors")
    load_matching(small(), state)


# Local information, pooling, merging


@settings(deadline=None, max_examples=20)
@given(grid=st.integers(1, 7), power=st.integers(0, 3))
@torch.inference_mode()
def test_step_wise_and_one_step_pooling_agree_where_nothing_happens_between(grid, power):
    side = grid * 2**power
    x = torch.randn(2, side, side, 3)
    steps, one = Downsample(3, side, grid), Downsample(3, side, grid, one_step=True)
    assert len(steps.steps) == max(power - 1, 0) and len(one.steps) == 0
    for i in range(len(steps.steps)):
        steps.steps[i] = nn.Identity()
    assert one(x).shape == (2, grid**2, 3)
    torch.testing.assert_close(steps(x), one(x))
    if not power:
        assert torch.equal(one(x), x.flatten(1, 2))


@settings(deadline=None, max_examples=20)
@given(height=st.integers(1, 40), width=st.integers(1, 40))
@torch.inference_mode()
def test_maps_of_any_size_are_pooled_to_the_grid(height, width):
    pooling = Downsample(3, 28, 7).eval()
    assert pooling(torch.randn(1, height, width, 3)).shape == (1, 49, 3)


@torch.inference_mode()
def test_pooled_tokens_lie_where_the_cells_are():
    x = torch.zeros(1, 8, 8, 1)
    x[0, 2, 5] = 4.0  # in cell (1, 2) of four by four
    assert Downsample(1, 8, 4)(x)[0, :, 0].nonzero().tolist() == [[1 * 4 + 2]]


@torch.inference_mode()
def test_the_conv_encoder_sees_seven_by_seven_and_returns_the_update():
    encoder, x = awake(ConvEncoder(8)), torch.randn(1, 12, 12, 8)
    other = x.clone()
    other[0, 5, 5] += 1
    changed = (encoder(other) - encoder(x)).abs().amax(-1)[0] > 1e-6
    assert changed.nonzero().amin(0).tolist() == [2, 2] and changed.nonzero().amax(0).tolist() == [8, 8]
    nn.init.zeros_(encoder.mlp.fc2.weight), nn.init.zeros_(encoder.mlp.fc2.bias)
    assert not encoder(x).any()


@torch.inference_mode()
@pytest.mark.parametrize("size", [(8, 8), (8, 12), (6, 3)])
def test_windows_do_not_see_each_other(size):
    encoder, x = awake(WindowEncoder(8, 2, window=4)), torch.randn(1, *size, 8)
    other = x.clone()
    other[0, 0, 0, 0] += 1
    out = encoder(x)
    changed = (encoder(other) - out).abs().amax(-1)[0] > 1e-6
    assert out.shape == x.shape and changed[:4, :4].all() and changed.sum() == min(size[0], 4) * min(size[1], 4)
    encoder.attn.fused_attn = not encoder.attn.fused_attn
    torch.testing.assert_close(encoder(x), out, atol=1e-5, rtol=1e-4)


@torch.inference_mode()
def test_merging_lays_cells_side_by_side_and_keeps_constants_constant():
    merge = awake(MergePatch(4, 6))
    x, g = torch.randn(2, 4, 6, 4), torch.randn(2, 9, 4)
    merged, tokens = merge(x, g)
    assert merged.shape == (2, 2, 3, 6) and tokens.shape == (2, 9, 6)
    cell = torch.cat([x[:, 2, 4], x[:, 3, 4], x[:, 2, 5], x[:, 3, 5]], -1)
    strongest = x[:, 2:, 4:].amax((1, 2))
    torch.testing.assert_close(merged[:, 1, 2], merge.reduction(merge.norm(cell)) + merge.shortcut(strongest))
    flat, _ = merge(torch.randn(4).expand(1, 4, 6, 4), None)
    torch.testing.assert_close(flat, flat[:, :1, :1].expand_as(flat))
    with pytest.raises(UserError, match="4 x 5 cannot be merged"):
        merge(x[:, :, :5], g)


@settings(deadline=None, max_examples=20)
@given(tokens=st.integers(1, 30), scale=st.sampled_from([0.1, 1.0, 30.0]))
@torch.inference_mode()
def test_gates_only_close(tokens, scale):
    gates, h = awake(BiDimAttention(8)), scale * torch.randn(2, tokens, 8)
    assert all(((gate > 0) & (gate < 1)).all() for gate in gates.gates(h))
    assert (gates(h).abs() <= h.abs()).all()
    for value in gates.parameters():
        value.data.zero_()
    torch.testing.assert_close(gates(h), h / 4)


@torch.inference_mode()
def test_the_spatial_gate_is_a_linear_layer_of_both_features_side_by_side():
    gates, h = awake(BiDimAttention(8)), torch.randn(2, 5, 8)
    n = gates.norm(h)
    whole = torch.nn.functional.gelu(gates.global_reduce(n.mean(1, keepdim=True)))
    own = torch.nn.functional.gelu(gates.local_reduce(n))
    weight = torch.cat([gates.spatial_select.weight, gates.spatial_select_global.weight], 1)
    both = torch.cat([own, whole.expand(-1, 5, -1)], -1)
    wanted = torch.nn.functional.linear(both, weight, gates.spatial_select.bias).sigmoid()
    torch.testing.assert_close(gates.gates(h)[1], wanted)


@torch.inference_mode()
def test_fused_cross_attention_is_the_formula():
    attention = awake(CrossAttention(16, 2))
    x, seen = torch.randn(2, 9, 16), torch.randn(2, 4, 16)
    fused = attention(x, seen)
    attention.fused_attn = not attention.fused_attn
    torch.testing.assert_close(attention(x, seen), fused, atol=1e-5, rtol=1e-4)
    order = torch.randperm(4)
    torch.testing.assert_close(attention(x, seen[:, order]), attention(x, seen), atol=1e-5, rtol=1e-4)


# Global tokens


@torch.inference_mode()
def test_alpha_weighs_the_picture_against_the_tokens():
    x, g = torch.randn(2, 8, 8, 16), torch.randn(1, 16, 16).expand(2, -1, -1)
    blind = position_tokens(0.0)
    assert torch.equal(blind(x, g), blind(torch.randn(2, 8, 8, 16), g))
    deaf = position_tokens(1.0)
    assert torch.equal(deaf(x, g), deaf(x, torch.randn(2, 16, 16)))
    half = position_tokens(0.5)
    assert not torch.allclose(half(x, g), half(x, g + 1)) and not torch.allclose(half(x, g), half(x.flip(1), g))


@torch.inference_mode()
def test_mix_mlp_knows_the_places_and_the_mlp_does_not():
    x, order = torch.randn(2, 16, 8), torch.randperm(16, generator=torch.Generator().manual_seed(0))
    mlp, mix = awake(token_mlp("mlp", 8, 16)), awake(token_mlp("mix", 8, 16))
    torch.testing.assert_close(mlp(x[:, order]), mlp(x)[:, order])
    assert not torch.allclose(mix(x[:, order]), mix(x)[:, order], atol=1e-3)
    for layer in (mix.mlp_tokens.fc2, mix.mlp_channels.fc2):
        nn.init.zeros_(layer.weight), nn.init.zeros_(layer.bias)
    assert torch.equal(mix(x), x)


@torch.inference_mode()
def test_normal_tokens_do_not_know_where_things_are():
    tokens = awake(NormalTokens(16, 2, token_mlp("mlp", 16, 3)))
    x, g, order = torch.randn(2, 4, 4, 16), torch.randn(2, 3, 16), torch.randperm(16)
    shuffled = x.flatten(1, 2)[:, order].unflatten(1, (4, 4))
    torch.testing.assert_close(tokens(shuffled, g), tokens(x, g), atol=1e-5, rtol=1e-4)


@torch.inference_mode()
def test_global_tokens_count_and_so_do_their_places():
    model, x = awake(small()), torch.randn(2, 3, 16, 16)
    logits, kept = model(x), model.global_tokens.data
    for changed in (torch.zeros_like(kept), kept.flip(1)):
        model.global_tokens.data = changed
        assert not torch.allclose(model(x), logits, atol=1e-4)


@torch.inference_mode()
def test_a_silent_local_branch_and_broadcast_leave_the_map_to_the_feed_forward():
    """The input is counted once: with both updates at zero the block is its feed-forward."""
    block = awake(small()).stages[0].blocks[0]
    for layer in (block.local.mlp.fc2, block.broadcast.proj):
        nn.init.zeros_(layer.weight), nn.init.zeros_(layer.bias)
    x, g = torch.randn(2, 8, 8, 16), torch.randn(2, 16, 16)
    out, new = block(x, g)
    tokens = x.flatten(1, 2)
    torch.testing.assert_close(out.flatten(1, 2), tokens + block.ffn(tokens))
    torch.testing.assert_close(new, block.tokens(x, g))


@torch.inference_mode()
def test_tokens_in_the_feed_forward_change_its_means():
    block = awake(small(global_ffn=True)).stages[0].blocks[0]
    x, g = torch.randn(2, 8, 8, 16), torch.randn(2, 16, 16)
    together, new = block(x, g)
    block.global_ffn = False
    apart, updated = block(x, g)
    assert new.shape == g.shape and together.shape == x.shape
    assert not torch.allclose(together, apart, atol=1e-4) and not torch.allclose(new, updated, atol=1e-4)


@torch.inference_mode()
def test_tokens_of_another_grid_are_interpolated():
    model = small(token_grid=2)
    assert model.global_tokens.shape == (1, 4, 16)
    model.global_tokens.data[:] = torch.arange(4.0)[:, None]
    g = model._begin(torch.zeros(2, 3, 16, 16))[1]
    assert g.shape == (2, 16, 16) and g[0, 0, 0] == 0 and g[0, -1, 0] == 3
    assert (g[0, :, 0].view(4, 4).diff(dim=1) > 0).all()


# The whole


@torch.inference_mode()
@pytest.mark.parametrize("size", [(24, 40), (4, 4), (64, 16)])
@pytest.mark.parametrize("switches", [{}, {"local": "window"}])
def test_reads_all_sizes_that_divide(size, switches):
    model = awake(small(**switches))
    logits = model(torch.randn(2, 3, *size))
    assert logits.shape == (2, 5) and logits.isfinite().all()


@pytest.mark.parametrize("size", [(16, 18), (17, 16), (16, 2)])
def test_refuses_pictures_that_do_not_divide(size):
    with pytest.raises(UserError, match=f"multiples of 4 pixels here, not {size[0]} x {size[1]}"):
        small()(torch.zeros(1, 3, *size))


@pytest.mark.parametrize("switches", SWITCHES)
def test_everything_learns(switches):
    model = awake(small(**switches)).train()
    torch.nn.functional.cross_entropy(model(torch.randn(4, 3, 16, 16)), torch.arange(4)).backward()
    silent = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert not silent


def test_checkpointed_gradients_are_the_same():
    model, x = awake(small(global_mlp="mix")), torch.randn(2, 3, 16, 16)
    model(x).square().sum().backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    model.set_grad_checkpointing()
    model(x).square().sum().backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, wanted[name], msg=name)


@pytest.mark.parametrize("switches", [{}, {"tokens": "normal"}, {"local": "window"}])
def test_trains_in_bfloat16(switches):
    model = small(drop_path_rate=0.1, **switches).train().to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(torch.randn(4, 3, 16, 16).contiguous(memory_format=torch.channels_last))
    assert logits.dtype == torch.bfloat16 and logits.isfinite().all()
    logits.float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_maps_stay_channels_last():
    model, seen = small().to(memory_format=torch.channels_last), []
    model.stages[0].blocks[0].local.conv_dw.register_forward_hook(lambda _, args, out: seen.extend([args[0], out]))
    model(torch.randn(2, 3, 16, 16).contiguous(memory_format=torch.channels_last))
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in seen)


def test_starts_as_described_and_decays_what_it_should():
    model = DualTokenViT(depths=(1, 1, 1), learn_alpha=True, local="window")
    for value in (model.global_tokens, model.head.weight, model.stages[1].blocks[0].broadcast.kv.weight):
        assert 0.015 < value.std() < 0.025
    assert not model.head.bias.any() and model.stages[0].blocks[0].tokens.alpha == 0.5
    exempt = model.no_weight_decay()
    assert "global_tokens" in exempt and len(exempt) == 4
    groups = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.1, layer_decay=0.5).param_groups
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    scale = {id(p): (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert scale[id(model.global_tokens)] == (min(s for s, _ in scale.values()), 0)
    assert scale[id(model.head.weight)] == (1, 0.1)
    assert model.norm.eps == model.stages[0].blocks[0].ffn.norm.eps == 1e-6
    assert model.stem.norm.eps == model.stages[1].merge.norm.eps == model.stages[0].blocks[0].ffn.bidim.norm.eps == 1e-5


@pytest.mark.parametrize("switches", [{"global_mlp": "mix"}, {"local": "window", "tokens": "normal"}])
def test_exports_with_any_batch(tmp_path, switches):
    exports_with_any_batch(awake(small(num_classes=3, **switches)), (16, 20), 3, tmp_path)


@torch.inference_mode()
@pytest.mark.parametrize("switches", SWITCHES)
def test_sites_for_quantizers_change_nothing(switches):
    model, x = awake(small(**switches)), torch.randn(2, 3, 16, 16)
    wanted = model(x)
    torch.testing.assert_close(expose(model)(x), wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"local": "pool"}, "local is one of 'conv', 'window', not 'pool'"),
        ({"tokens": "some"}, "tokens is one of 'position', 'normal', 'none', not 'some'"),
        ({"downsample": "max"}, "downsample is one of"),
        ({"global_mlp": "kan"}, "global_mlp is one of"),
        ({"global_pool": "max"}, "global_pool is one of"),
        ({"stem_stride": 16}, "stem_stride is 8, 4 or 2, not 16"),
        ({"alpha": 1.5}, "alpha is a weight between 0 and 1, not 1.5"),
        ({"depths": (1, 1, 1)}, "not 2, 3 and 2"),
        ({"depths": (1, 0)}, r"depths\[1\] must be at least 1, not 0"),
        ({"embed_dims": (16, 36)}, "16, 36 must be multiples of head_dim 8"),
        ({"grid": 0}, "grid must be at least 1, not 0"),
        ({"token_grid": -1}, "token_grid must be at least 1, not -1"),
        ({"num_tokens": 0}, "num_tokens must be at least 1, not 0"),
        ({"img_size": 18}, "multiples of 4 pixels here, not 18 x 18"),
    ],
)
def test_refuses_designs_that_mean_nothing(bad, said):
    with pytest.raises(UserError, match=said):
        small(**bad)


# Recipe and measurement


@pytest.mark.parametrize("preset", ["tiny", "cpu", "paper"])
def test_recipes_build_their_model(preset):
    recipe = preset_of(reproduce, preset)
    model, data = (recipe[part]["init_args"] for part in ("model", "data"))
    with torch.device("meta"):
        built = timm.create_model(model["model"], num_classes=7, **model["model_args"])
        assert built(torch.empty(1, 3, data["size"], data["size"])).shape == (1, 7)


def test_trains_by_its_recipe(tmp_path, picture_folder):
    weights = trained_by_recipe("dualtoken-vit", picture_folder, tmp_path / "run")
    model = timm.create_model(NAME, depths=(1, 1, 1), num_classes=3)
    load_matching(model, weights)
    assert model.stem.convs[1].num_batches_tracked == 2


TIMES = {"system": {224: 0.1, 448: 0.41}, "ViT": {224: 0.1, 448: 0.55}}


@pytest.mark.parametrize(
    ("lead", "times", "verdict"),
    [
        ({}, TIMES, "reproduced"),
        ({}, {**TIMES, "system": {224: 0.1, 448: 0.6}}, "direction only"),
        ({}, {**TIMES, "ViT": {224: 0.1, 448: 0.35}}, "direction only"),
        ({"without global branch": [61.0, 57.0, 60.0]}, TIMES, "direction only"),  # within the noise
        ({"without global branch": [50.0, 50.1, 50.2]}, TIMES, "direction only"),  # costs more than the convolution
        ({"without global branch": [61.0, 61.1, 61.2]}, TIMES, "not reproduced"),
        ({"windows for the conv encoder": [60.0, 60.1, 60.0]}, TIMES, "not reproduced"),
        ({"full": [70.0, 45.0, 60.0]}, TIMES, "not reproduced"),
    ],
)
def test_the_verdict_follows_from_the_numbers(lead, times, verdict):
    top1 = {"full": [60.0, 60.2, 60.1], "without global branch": [59.0, 59.1, 59.2]}
    top1 |= {"windows for the conv encoder": [55.0, 55.1, 55.2], "one-step pooling": [60.0, 60.0, 60.1]}
    top1 |= {"normal global tokens": [59.8, 60.0, 59.9]}
    changed = {"set to zero": -10.0, "shuffled": -3.0}
    measured = reproduce.judge(Comparison(top1 | lead, 100, 64), changed, times, "nothing")
    assert measured.verdict == verdict
    if not lead and times is TIMES:
        assert "windows for the conv encoder +5.0" in measured.measured and "shuffled -3.0" in measured.measured
        assert "x4.1, ViT of equal MACs x5.5" in measured.measured and "3 seeds" in measured.data


def test_disturbed_tokens_are_put_back():
    model = Classifier(NAME, SMALL, num_classes=5)
    before = model.model.global_tokens.detach().clone()
    test = Pictures(torch.randint(256, (6, 3, 16, 16), dtype=torch.uint8), torch.arange(6) % 5)
    found = reproduce.disturbed(model.model, test)
    assert set(found) == {"set to zero", "shuffled"} and torch.equal(model.model.global_tokens, before)


@pytest.mark.data
def test_measures_on_real_pictures(monkeypatch):
    small = {"NETWORK": {"embed_dims": (32, 32, 32), "depths": (1, 1, 1)}, "SIDES": (32, 64)}
    measured = measured_on_one_seed(reproduce, monkeypatch, **small)
    assert len(measured.details["top1"]) == 5
    assert measured.verdict == "not reproduced"  # one seed shows nothing
