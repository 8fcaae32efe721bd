"""T2T-ViT against its official implementation and against the paper's own invariants."""

from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.parity import parity
from tests.systems.vision_checks import measured_on_one_seed, preset_of
from vitalk.errors import UserError
from vitalk.nn.positions import sinusoid_table
from vitalk.systems.evit import evit
from vitalk.systems.t2t_vit import (
    T2TViT,
    T2TViTDense,
    T2TViTGhost,
    T2TViTSE,
    TokenLayer,
    TokensToToken,
    checkpoint_filter_fn,
    reproduce,
)
from vitalk.systems.t2t_vit.checkpoint import convert
from vitalk.vision.cost import count
from vitalk.vision.experiments import Comparison
from vitalk.vision.tokens import TokenReducer, Trunk

SMALL = {"img_size": 32, "splits": [(3, 2, 1), (3, 2, 1)], "embed_dim": 32, "depth": 2, "num_heads": 2}
PARAMS = {
    "t2t_vit_7": 4_255_694,
    "t2t_vit_10": 5_834_702,
    "t2t_vit_12": 6_887_374,
    "t2t_vit_14": 21_465_806,
    "t2t_vit_14_384": 21_465_806,
    "t2t_vit_t_14": 21_465_422,
    "t2t_vit_19": 39_085_070,
    "t2t_vit_t_19": 39_084_686,
    "t2t_vit_24": 64_000_974,
    "t2t_vit_t_24": 64_000_590,
    "t2t_vit_14_wide": 25_000_910,
    # Not in the paper: those of the official classes.
    "t2t_vit_14_resnext": 21_465_806,
    "t2t_vit_14_se": 21_723_854,
    "t2t_vit_16_ghost": 16_173_518,
    "t2t_vit_dense": 23_617_750,
}


def fixture(name):
    return parity.load(Path(__file__).parents[1] / "parity" / f"t2t-vit.{name}.json")


def official_state(known):
    return {key: torch.from_numpy(value) for key, value in parity.filled_state(known).items()}


def picture(known, name="image"):
    return torch.from_numpy(parity.tensor(name, **known["inputs"][name]))


def assert_equal_to_official(known, **outputs):
    for name, output in outputs.items():
        assert parity.distance(output.numpy(), known["outputs"][name]) < 1e-4, name


def small(**kwargs):
    return T2TViT(**{**SMALL, **kwargs}).eval()


# Parity

DESIGNS = {
    "transformer_small": (
        T2TViT,
        {"tokenizer": "transformer", "img_size": 96, "num_classes": 100, "embed_dim": 192, "depth": 4, "num_heads": 3},
    ),
    "vit7_performer_td16": (T2TViT, {"embed_dim": 256, "depth": 7, "num_heads": 4, "mlp_ratio": 2.0, "token_dim": 16}),
    "se": (
        T2TViTSE,
        {"tokenizer": "transformer", "img_size": 64, "num_classes": 20, "embed_dim": 96, "depth": 2, "num_heads": 3},
    ),
    "dense": (
        T2TViTDense,
        {"tokenizer": "transformer", "img_size": 64, "num_classes": 20, "growth_rate": 16, "block_config": (2, 3, 2)}
        | {"embed_dim": 64},
    ),
}


@torch.inference_mode()
@pytest.mark.parametrize("name", DESIGNS)
def test_agrees_with_the_official_model(name):
    known, (design, arguments) = fixture(name), DESIGNS[name]
    model = design(**arguments).eval()
    assert sum(p.numel() for p in model.parameters()) == known["params"]
    model.load_state_dict(checkpoint_filter_fn(official_state(known), model))
    seen = {}
    layers = {"block_1": model.blocks[0], "block_last": model.blocks[-1], "after_t2t": model.patch_embed}
    layers |= {f"token_layer_{i + 1}": stage.layer for i, stage in enumerate(model.patch_embed.stages[:-1])}
    for key, layer in layers.items():
        if key in known["outputs"]:
            layer.register_forward_hook(lambda _, __, out, key=key: seen.update({key: out}))
    logits = model(picture(known))
    assert {*seen, "logits"} == set(known["outputs"])
    assert_equal_to_official(known, logits=logits, **seen)


@torch.inference_mode()
@pytest.mark.parametrize(("kind", "dim", "width"), [("performer", 48, 16), ("transformer", 147, 64)])
def test_token_layer_agrees_with_the_official_one(kind, dim, width):
    known, layer = fixture(f"token_{kind}"), TokenLayer(dim, width, kind).eval()
    state = convert({f"tokens_to_token.attention1.{key}": value for key, value in official_state(known).items()})
    layer.load_state_dict({key.removeprefix("patch_embed.stages.0.layer."): value for key, value in state.items()})
    x = picture(known, "tokens")
    assert_equal_to_official(known, tokens_out=layer(x))
    if kind == "performer":
        keys = layer.qkv(layer.norm1(x)).chunk(3, dim=-1)[1]
        assert_equal_to_official(known, key_features=layer.features(keys), attention_part=layer.attend(x))


# Official checkpoints of the designs without a fixture


def official_ghost(model):
    """The state of a ghost model of ours under the official names."""
    state = {}
    for key, value in model.state_dict().items():
        block = key.rpartition("attn.qkv.")[0] or key.rpartition("mlp.")[0]
        if key.endswith("qkv.primary.weight"):
            state |= {f"{block}attn.{n}.weight": part for n, part in zip("qkv", value.chunk(3), strict=True)}
        elif key.endswith("qkv.cheap"):
            state |= {
                f"{block}attn.cheap_operation_{n}.weight": v[:, None, None] for n, v in zip("qkv", value, strict=True)
            }
        elif key.endswith("mlp.cheap"):
            state |= {f"{block}mlp.cheap_operation{n}.weight": value[n - 2, :, None, None] for n in (2, 3)}
        else:
            state[key] = value
    return state


def test_official_ghost_weights_are_put_together():
    model = T2TViTGhost(**SMALL)
    official = official_ghost(model)
    assert not set(official) <= set(model.state_dict())
    converted = checkpoint_filter_fn(official, model)
    assert set(converted) == set(model.state_dict())
    assert all(torch.equal(converted[key], value) for key, value in model.state_dict().items())


@torch.inference_mode()
def test_a_ghost_block_is_a_plain_block_with_repeated_weights():
    """Half of q, k, v and two thirds of the MLP are multiples; writing these out gives a plain projection."""
    model = T2TViTGhost(**SMALL).eval()
    block, x = model.blocks[0], torch.randn(2, 5, 32)
    halves = [w for half, cheap in zip(block.attn.qkv.primary.weight.chunk(3), block.attn.qkv.cheap, strict=True)
              for w in (half, half * cheap[:, None])]  # fmt: skip
    torch.testing.assert_close(block.attn.qkv(x), x @ torch.cat(halves).T)
    first = F.gelu(block.mlp.fc1(x))
    hidden = torch.cat([first, *(F.gelu(first * cheap) for cheap in block.mlp.cheap)], dim=-1)
    torch.testing.assert_close(block.mlp(x), block.mlp.fc2(hidden))


@torch.inference_mode()
def test_official_convolution_weights_are_three_convolutions():
    shapes = {"soft_split0": (64, 3, 7, 7), "soft_split1": (64, 64, 3, 3), "project": (48, 64, 3, 3)}
    state = {f"tokens_to_token.{key}.weight": 0.1 * torch.randn(shape) for key, shape in shapes.items()}
    state |= {f"tokens_to_token.{key}.bias": torch.randn(shape[0]) for key, shape in shapes.items()}
    model = T2TViT(img_size=64, tokenizer="conv", embed_dim=48, depth=1, num_heads=2).eval()
    converted = convert(state)
    assert set(converted) == {key for key in model.state_dict() if key.startswith("patch_embed")}
    model.load_state_dict(converted, strict=False)
    x = images = torch.randn(2, 3, 64, 64)
    for key, (stride, padding) in zip(shapes, [(4, 2), (2, 1), (2, 1)], strict=True):
        weight, bias = (state[f"tokens_to_token.{key}.{part}"] for part in ("weight", "bias"))
        x = F.conv2d(x, weight, bias, stride, padding)
    torch.testing.assert_close(model.patch_embed(images), x.flatten(2).transpose(1, 2))


@pytest.mark.parametrize("wrap", [
    lambda s: s,
    lambda s: {"state_dict": s, "epoch": 3},
    lambda s: {"state_dict": {k: v + 1 for k, v in s.items()}, "state_dict_ema": s},
    lambda s: {"state_dict_ema": {f"module.{k}": v for k, v in s.items()}, "arch": "t2t_vit_7"},
    lambda s: {"model": {f"module.{k}": v for k, v in s.items()}},
])  # fmt: skip
def test_takes_checkpoints_however_they_are_wrapped(wrap):
    model = small()
    state = {key: value for key, value in model.state_dict().items() if key != "pos_embed"}
    converted = checkpoint_filter_fn(wrap(state), model)
    assert all(torch.equal(converted[key], value) for key, value in model.state_dict().items())
    assert set(converted) == set(model.state_dict())


def test_a_checkpoint_for_other_pictures_has_its_positions_resized():
    model, table = small(img_size=48), small().pos_embed
    state = {**model.state_dict(), "pos_embed": table}
    resized = checkpoint_filter_fn(state, model)["pos_embed"]
    assert torch.equal(resized[:, 0], table[:, 0])
    grid = table[:, 1:].transpose(1, 2).unflatten(2, (8, 8))
    wanted = F.interpolate(grid, size=(12, 12), mode="bicubic").flatten(2).transpose(1, 2)
    torch.testing.assert_close(resized[:, 1:], wanted)


# The registered models


@pytest.mark.parametrize(("name", "params"), PARAMS.items())
def test_parameter_counts(name, params):
    with torch.device("meta"):
        model = timm.create_model(name)
    assert sum(p.numel() for p in model.parameters()) == params


@pytest.mark.parametrize(("name", "giga"), [("t2t_vit_7", 1.1), ("t2t_vit_14", 4.8), ("t2t_vit_t_14", 6.1)])
def test_multiply_accumulates_are_the_published_ones(name, giga):
    with torch.device("meta"):
        assert count(timm.create_model(name), torch.empty(1, 3, 224, 224)).macs / 1e9 == pytest.approx(giga, abs=0.05)


def test_timm_knows_how_to_prepare_pictures():
    with torch.device("meta"):
        models = [timm.create_model(name) for name in ("t2t_vit_14", "t2t_vit_14_384")]
    configs = [timm.data.resolve_model_data_config(model) for model in models]
    assert [config["input_size"] for config in configs] == [(3, 224, 224), (3, 384, 384)]
    assert all(config["crop_pct"] == 0.9 and config["interpolation"] == "bicubic" for config in configs)
    assert configs[0]["mean"] == timm.data.IMAGENET_DEFAULT_MEAN
    assert models[1].patch_embed.grid_size == (24, 24)


@torch.inference_mode()
def test_is_a_timm_backbone():
    model, x = timm.create_model("t2t_vit_7", num_classes=5, **SMALL).eval(), torch.randn(2, 3, 32, 32)
    features = model.forward_features(x)
    assert features.shape == (2, 65, 32) and model(x).shape == (2, 5)
    assert torch.equal(model.forward_head(features), model(x))
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)
    assert {info["reduction"] for info in model.feature_info} == {4}
    maps = timm.create_model("t2t_vit_7", features_only=True, out_indices=(0, 1), **SMALL).eval()
    assert [tuple(m.shape) for m in maps(x)] == [(2, 32, 8, 8)] * 2


def test_new_classes_leave_the_dense_model_whole():
    model = T2TViTDense(growth_rate=8, block_config=(1, 1), embed_dim=32, img_size=32, num_heads=2)
    model.reset_classifier(3)
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 3)
    assert [info["num_chs"] for info in model.feature_info] == [40, 20, 28]


def test_pretrained_weights_bring_their_attention_scale(tmp_path):
    path = tmp_path / "t2t.pth"
    state = small(mlp_ratio=2.0).state_dict()
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, path)
    released = timm.create_model("t2t_vit_7", pretrained=True, pretrained_cfg_overlay={"file": str(path)}, **SMALL)
    plain = timm.create_model("t2t_vit_7", **SMALL)
    x = torch.randn(2, 4, 5, 16)
    factor = (32**-0.5) / (16**-0.5)
    for block, other in zip(released.blocks, plain.blocks, strict=True):
        torch.testing.assert_close(block.attn.q_norm(x), x * factor)
        assert torch.equal(other.attn.q_norm(x), x)
    assert torch.equal(released.state_dict()["head.weight"], state["head.weight"])


@torch.inference_mode()
def test_the_attention_scale_is_that_of_the_logits():
    model = small(qk_scale=32**-0.5)
    attn, x = model.blocks[0].attn, torch.randn(2, 7, 32)
    q, k, v = attn.qkv(x).reshape(2, 7, 3, 2, 16).permute(2, 0, 3, 1, 4)
    mixed = (q @ k.transpose(-2, -1) * 32**-0.5).softmax(-1) @ v
    torch.testing.assert_close(attn(x), attn.proj(mixed.transpose(1, 2).flatten(2)))


# Tokens


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["performer", "transformer"])
def test_shapes_along_the_embedding(kind):
    embed = TokensToToken(224, embed_dim=48, tokenizer=kind)
    x, windows, widths = torch.randn(1, 3, 224, 224), [], []
    for stage in embed.stages:
        windows.append(tuple(stage.split(x).shape[1:]))
        x = stage(x)
        widths.append(tuple(x.shape[1:]))
    assert windows == [(3136, 147), (784, 576), (196, 576)]
    assert widths == [(64, 56, 56), (64, 28, 28), (48, 14, 14)]
    assert embed.num_patches == 196


def test_overlap_of_the_windows():
    stage = TokensToToken(16, splits=[(3, 2, 1)], embed_dim=4).stages[0]
    tokens = stage.split(torch.ones(1, 1, 16, 16))
    covered = F.fold(tokens.transpose(1, 2), 16, kernel_size=3, padding=1, stride=2)[0, 0]
    assert set(covered[1:-1, 1:-1].flatten().tolist()) == {1, 2, 4}
    assert covered.sum() == tokens.sum()


@torch.inference_mode()
def test_a_split_without_overlap_is_the_plain_patch_embedding():
    embed = TokensToToken(32, embed_dim=8, splits=[(4, 4, 0)])
    linear, x = embed.stages[0].layer, torch.randn(2, 3, 32, 32)
    wanted = F.conv2d(x, linear.weight.unflatten(1, (3, 4, 4)), linear.bias, stride=4)
    torch.testing.assert_close(embed(x), wanted.flatten(2).transpose(1, 2))


@settings(deadline=None, max_examples=20)
@given(kind=st.sampled_from(["performer", "transformer"]), count=st.integers(1, 30), dim=st.integers(4, 40))
@torch.inference_mode()
def test_token_layer_does_not_see_the_order_of_tokens(kind, count, dim):
    layer, x, order = TokenLayer(dim, 16, kind).eval(), torch.randn(2, count, dim), torch.randperm(count)
    torch.testing.assert_close(layer(x[:, order]), layer(x)[:, order], atol=1e-5, rtol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["performer", "transformer"])
def test_token_layer_with_silent_branches_is_its_value_projection(kind):
    layer, x = TokenLayer(27, 16, kind).eval(), torch.randn(2, 9, 27)
    for linear in (layer.proj, layer.mlp.fc2):
        nothing = {key: torch.zeros_like(value) for key, value in linear.state_dict().items()}
        linear.load_state_dict(nothing)
    assert torch.equal(layer(x), layer.qkv(layer.norm1(x))[..., 32:])


def test_dropout_of_the_performer_is_on_whatever_the_rate():
    layers = {kind: TokenLayer(27, 16, kind).train() for kind in ("performer", "transformer")}
    x = torch.randn(2, 9, 27)
    assert not torch.equal(layers["performer"](x), layers["performer"](x))
    assert torch.equal(layers["transformer"](x), layers["transformer"](x))


# The whole


@pytest.mark.parametrize("kind", ["performer", "transformer", "conv"])
def test_everything_learns_but_the_random_features_and_the_positions(kind):
    model = small(tokenizer=kind).train()
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not silent
    fixed = {name for name, _ in model.named_buffers()}
    assert fixed == {"pos_embed"} | (
        {"patch_embed.stages.0.layer.features.projection"} if kind == "performer" else set()
    )
    assert fixed <= set(model.state_dict())


def test_positions_are_the_sinusoid_and_survive_a_new_initialisation():
    model = small()
    assert torch.equal(model.pos_embed[0], sinusoid_table(65, 32))
    before = model.patch_embed.stages[0].layer.features.projection.clone()
    model.init_weights()
    assert torch.equal(model.pos_embed[0], sinusoid_table(65, 32))
    assert not torch.equal(before, model.patch_embed.stages[0].layer.features.projection)
    assert 0.005 < model.cls_token.std() < 0.05


@torch.inference_mode()
def test_reads_another_size_after_set_input_size():
    model = small()
    model.set_input_size(48)
    assert model(torch.randn(1, 3, 48, 48)).shape == (1, 1000)
    assert model.pos_embed.shape == (1, 145, 32) and "pos_embed" in dict(model.named_buffers())
    with pytest.raises(UserError):
        model.set_input_size(50)
    assert model(torch.randn(1, 3, 48, 48)).shape == (1, 1000)
    dynamic = small(dynamic_img_size=True)
    assert dynamic(torch.randn(1, 3, 48, 48)).shape == dynamic(torch.randn(1, 3, 32, 32)).shape


@torch.inference_mode()
@pytest.mark.parametrize("design", [T2TViT, T2TViTSE, T2TViTGhost])
def test_the_trunk_carries_it(design):
    model, x = design(**SMALL, qk_scale=0.1).eval(), torch.randn(2, 3, 32, 32)
    trunk = Trunk(model, [TokenReducer() for _ in model.blocks])
    torch.testing.assert_close(trunk(x), model(x))
    reduced = evit(model, keep_rate=0.5, blocks=(0,))
    assert reduced.forward_features(x).shape == (2, 1 + 32 + 1, 32) and reduced(x).isfinite().all()


def test_the_trunk_refuses_dense_blocks():
    model = T2TViTDense(growth_rate=8, block_config=(1,), embed_dim=32, img_size=32, num_heads=2)
    with pytest.raises(ValueError, match="DenseBlock"):
        Trunk(model, [TokenReducer()])


@pytest.mark.parametrize("size", [(224, 192), 100, 0, (3, 32, 32)])
def test_refuses_sizes_that_do_not_divide(size):
    with pytest.raises(UserError, match="square pictures whose side is a multiple of 16"):
        T2TViT(img_size=size, depth=1)


@pytest.mark.parametrize("shape", [(32, 28), (28, 32), (33, 33), (64, 64)])
def test_refuses_pictures_of_another_size(shape):
    with pytest.raises(UserError, match=f"{shape[0]} x {shape[1]}"):
        small()(torch.zeros(1, 3, *shape))


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"tokenizer": "linear"}, "there is no tokenizer 'linear'"),
        ({"splits": []}, "at least one split"),
        ({"splits": [(3, 2)]}, "a split is"),
        ({"splits": [(2, 2, 1)]}, "a split is"),
        ({"splits": [(9, 2, 1)]}, "a split is"),
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
        built = timm.create_model(model["model"], **model["model_args"])
        assert built(torch.empty(1, 3, data["size"], data["size"])).shape == (1, 1000)


@pytest.mark.parametrize(
    ("performer", "transformer", "convolutions", "verdict"),
    [
        ([72.1, 72.0, 72.2], [72.3, 72.2, 72.4], [71.2, 71.4, 71.3], "reproduced"),
        ([72.1, 72.0, 72.2], [72.3, 72.2, 72.4], [73.2, 73.4, 73.3], "direction only"),
        ([70.2, 70.3, 70.4], [70.3, 70.2, 70.4], [70.1, 70.2, 70.1], "direction only"),
        ([75.0, 69.0, 70.0], [72.3, 72.2, 72.4], [71.2, 71.4, 71.3], "not reproduced"),
        ([69.1, 69.0, 69.2], [72.3, 72.2, 72.4], [71.2, 71.4, 71.3], "not reproduced"),
    ],
)
def test_the_verdict_follows_from_the_numbers(performer, transformer, convolutions, verdict):
    top1 = {"patches": [70.0, 70.1, 69.9], "performer": performer}
    top1 |= {"transformer": transformer, "convolutions": convolutions}
    found = Comparison(top1, 100, 64)
    assert reproduce.judge(found, {"performer": 4.0, "transformer": 16.0}, "nothing").verdict == verdict


@pytest.mark.data
def test_measures_on_real_pictures(monkeypatch):
    growth = {"performer": 4.0, "transformer": 16.0}
    measured = measured_on_one_seed(reproduce, monkeypatch, attention_growth=lambda seconds: growth)
    assert len(measured.details["top1"]) == 4
    assert measured.verdict == "not reproduced"  # one seed shows nothing
