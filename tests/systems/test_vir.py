"""ViR against the release, a reimplementation and the paper's own invariants."""

from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.parity import parity
from tests.systems.vision_checks import measured_on_one_seed, preset_of
from vitalk.deploy.onnx_export import export_onnx
from vitalk.deploy.preprocess import Preprocess
from vitalk.deploy.runtime import Eye
from vitalk.errors import UserError
from vitalk.nn.retention import LineState, decay_mask, retain
from vitalk.systems.vir import HybridRetention, Retention, VisionRetention, checkpoint_filter_fn, probe, reproduce
from vitalk.systems.vir.layers import post_layer, retain_with_softmax
from vitalk.systems.vir.reproduce import Costs
from vitalk.training import run
from vitalk.vision.checkpoints import load_matching
from vitalk.vision.experiments import Comparison
from vitalk.vision.tokens import TokenReducer, Trunk

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "init_values": 1.0}
HYBRID = {"dims": (8, 16, 32, 64), "depths": (1, 1, 2, 1), "head_dim": 16, "init_values": 1.0}
PARAMS = {
    "vir_tiny_patch16_224": 5_721_832,
    "vir_small_patch16_224": 22_059_496,
    "vir_base_patch16_224": 86_585_320,
    "vir_large_patch16_224": 304_374_760,
    "vir_large_patch14_224": 304_251_880,
    # Ours.
    "hvir_tiny": 23_627_016,
    "hvir_small": 54_666_232,
    "hvir_base": 106_254_504,
}
REIMPLEMENTATION = {"post": "ln_gelu", "schedule": "retnet", "init_values": None, "global_pool": "final",
                    "norm_layer": nn.LayerNorm, "num_classes": 0}  # fmt: skip
DESIGNS = [
    {},
    {"decay": "2d"},
    {"decay": "2d", "global_pool": "token"},
    {"global_pool": "avg", "post": "groupnorm", "init_values": None},
    {"global_pool": "final", "post": "ln_gelu", "schedule": "retnet"},
    {"bidirectional": True},
    {"bidirectional": True, "global_pool": "avg"},
]


def fixture(name):
    return parity.load(Path(__file__).parents[1] / "parity" / f"vir.{name}.json")


def official_state(known):
    return {key: torch.from_numpy(value) for key, value in parity.filled_state(known).items()}


def given_input(known, name):
    return torch.from_numpy(parity.tensor(name, **known["inputs"][name]))


def assert_equal_to_official(known, **outputs):
    for name, output in outputs.items():
        assert parity.distance(output.numpy(), known["outputs"][name]) < 1e-4, name


def small(**kwargs):
    torch.manual_seed(0)
    return VisionRetention(**{**SMALL, "num_classes": 5, **kwargs}).eval()


def images(count=2, size=(32, 32), channels=3):
    return torch.randn(count, channels, *size, generator=torch.Generator().manual_seed(1))


def relative(got, wanted):
    return float((got - wanted).detach().abs().max() / wanted.detach().abs().max())


# Parity


@torch.inference_mode()
def test_agrees_with_the_release():
    known = fixture("release_small")
    model = VisionRetention(img_size=96, embed_dim=96, depth=4, num_heads=4, num_classes=100).eval()
    assert sum(p.numel() for p in model.parameters()) == known["params"]
    load_matching(model, checkpoint_filter_fn(official_state(known), model))
    x, seen = given_input(known, "image"), []
    model.blocks[0].register_forward_hook(lambda _, __, out: seen.append(out))
    outputs = {
        "chunkwise_tokens": model.forward_features(x, "chunkwise", 16),
        "recurrent_tokens": model.forward_features(x, "recurrent"),
        "logits_from_chunkwise": model(x, "chunkwise", 16),
        "parallel_softmax_logits": model(x, "release_softmax"),
        "block_1": seen[0],
    }
    assert set(outputs) == set(known["outputs"])
    assert_equal_to_official(known, **outputs)
    # The release's parallel logits are those of its softmax; ours are those of its other forms.
    assert_equal_to_official(known, logits_from_chunkwise=model(x))
    assert parity.distance(model(x).numpy(), known["outputs"]["parallel_softmax_logits"]) > 0.1


@torch.inference_mode()
def test_a_retention_layer_agrees_with_the_release_s():
    known, layer = fixture("retention"), Retention(64, num_heads=4)
    layer.load_state_dict({key.replace("out_proj", "proj"): value for key, value in official_state(known).items()})
    x = given_input(known, "tokens")
    gamma = torch.tensor([0.96875, 0.9875984191894531, 0.995078444480896, 0.998046875])
    mask, state, recurrent = decay_mask(50, gamma), LineState(gamma), LineState(gamma)
    outputs = {
        "mask": mask,
        "one_chunk": layer(x, partial(retain, mask=mask)),
        "parallel_softmax": layer(x, partial(retain_with_softmax, mask=mask)),
        "chunkwise": torch.cat([layer(chunk, state) for chunk in x.split(16, 1)], 1),
        "recurrent": torch.cat([layer(token, recurrent) for token in x.split(1, 1)], 1),
        "gammas": gamma,
    }
    assert_equal_to_official(known, **outputs, state=state.memory, state_recurrent=recurrent.memory)
    assert {*outputs, "state", "state_recurrent"} == set(known["outputs"])


@torch.inference_mode()
def test_agrees_with_the_reimplementation():
    known = fixture("bp_small")
    model = VisionRetention(img_size=64, patch_size=8, embed_dim=96, depth=4, num_heads=3, **REIMPLEMENTATION).eval()
    load_matching(model, checkpoint_filter_fn(official_state(known), model))
    # Zeros off the blocks of the projections are what we have more.
    zeros = 4 * 3 * (96 * 96 - 3 * 32 * 32)
    assert sum(p.numel() for p in model.parameters()) == known["params"] + zeros
    x, seen = given_input(known, "image"), {}
    model.blocks[0].attn.register_forward_hook(lambda _, __, out: seen.setdefault("retention_1", out))
    model.blocks[0].register_forward_hook(lambda _, __, out: seen.setdefault("block_1", out))
    outputs = {
        "parallel": model.forward_features(x),
        "recurrent": model.forward_features(x, "recurrent"),
        "chunkwise_10": model.forward_features(x, "chunkwise", 10),
    }
    assert {*outputs, *seen} == set(known["outputs"])
    assert_equal_to_official(known, **outputs, **seen)


# Checkpoints


def released(model):
    """The state of a model of ours under the release's names."""
    names = {".attn.qkv.": ".retention.qkv.", ".attn.proj.": ".retention.out_proj."}
    state = model.state_dict()
    for new, old in names.items():
        state = {key.replace(new, old): value for key, value in state.items()}
    return state


@pytest.mark.parametrize("wrap", [
    lambda s: s,
    lambda s: {"state_dict": s, "epoch": 3},
    lambda s: {"state_dict": {k: v + 1 for k, v in s.items()}, "state_dict_ema": s},
    lambda s: {"model": {f"module.{k}": v for k, v in s.items()}, "arch": "vir_small_patch16_224"},
])  # fmt: skip
@pytest.mark.parametrize("names", [released, lambda model: model.state_dict()])
def test_takes_checkpoints_however_they_are_wrapped(wrap, names):
    model = small()
    converted = checkpoint_filter_fn(wrap(names(model)), model)
    assert list(converted) == list(model.state_dict())
    assert all(torch.equal(converted[key], value) for key, value in model.state_dict().items())


@torch.inference_mode()
@pytest.mark.parametrize("pool", ["token", "token_last"])
def test_a_position_of_the_class_token_goes_into_it(pool):
    model, position = small(global_pool=pool), torch.randn(1, 1, 32)
    state = released(model)
    parts = (position, state["pos_embed"]) if pool == "token" else (state["pos_embed"], position)
    converted = checkpoint_filter_fn({**state, "pos_embed": torch.cat(parts, 1)}, model)
    torch.testing.assert_close(converted["cls_token"], model.cls_token + position)
    assert torch.equal(converted["pos_embed"], model.pos_embed)


def test_a_class_token_that_is_never_read_is_left_out():
    model = small(global_pool="avg")
    load_matching(model, checkpoint_filter_fn({**released(model), "cls_token": torch.zeros(1, 1, 32)}, model))


def test_positions_are_resized_to_the_picture():
    source, model = small(), small(img_size=64)
    load_matching(model, checkpoint_filter_fn(released(source), model))
    wanted = timm.layers.resample_abs_pos_embed(source.pos_embed, [8, 8], num_prefix_tokens=0)
    torch.testing.assert_close(model.pos_embed, wanted)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"embed_dim": 64}, r"cls_token is \[1, 1, 64\], the model has \[1, 1, 32\]"),
        ({"depth": 3}, r"blocks.2.norm1.weight \[32\] is unknown"),
        ({"depth": 1}, r"blocks.1.norm1.weight \[32\] is missing"),
        ({"post": "ln_gelu"}, r"blocks.0.attn.post.0.weight \[32\] is unknown"),
        ({"patch_size": 4}, r"patch_embed.proj.weight is \[32, 3, 4, 4\], the model has \[32, 3, 8, 8\]"),
    ],
)
def test_checkpoints_of_other_variants_are_refused(other, words):
    model = small()
    with pytest.raises(UserError, match=words):
        load_matching(model, checkpoint_filter_fn(released(small(**other)), model))


# The registered models


@pytest.mark.parametrize(("name", "params"), PARAMS.items())
def test_parameter_counts(name, params):
    with torch.device("meta"):
        model = timm.create_model(name)
    assert sum(p.numel() for p in model.parameters()) == params


@torch.inference_mode()
@pytest.mark.parametrize("design", DESIGNS)
def test_is_a_timm_backbone(design):
    model = timm.create_model("vir_tiny_patch16_224", num_classes=5, in_chans=1, **{**SMALL, **design}).eval()
    x = images(channels=1)
    features = model.forward_features(x)
    assert torch.equal(model.forward_head(features), model(x)) and model(x).shape == (2, 5)
    assert model.forward_head(features, pre_logits=True).shape == (2, 32)
    model.reset_classifier(3)
    assert model(x).shape == (2, 3) and model.get_classifier() is model.head
    maps = timm.create_model("vir_tiny_patch16_224", features_only=True, out_indices=(0, 1), **{**SMALL, **design})
    assert [tuple(m.shape) for m in maps(images())] == [(2, 32, 4, 4)] * 2
    assert maps.feature_info.reduction() == [8, 8]


@torch.inference_mode()
@pytest.mark.parametrize("design", DESIGNS)
def test_feature_maps_are_those_of_the_patches(design):
    model, x = small(**design), images()
    tokens, found = model.forward_intermediates(x, [1], norm=True, return_prefix_tokens=True)
    ((grid, token),) = found
    assert torch.equal(tokens, model.forward_features(x))
    places = {"last": range(16), "first": range(1, 17), None: range(16)}[model.mixing.class_token]
    if model.bidirectional:
        places = [tokens.shape[1] - 1 - i for i in places]
    torch.testing.assert_close(grid.flatten(2).transpose(1, 2), tokens[:, list(places)])
    assert token.shape[1] == (model.mixing.class_token is not None)


def test_timm_knows_how_to_prepare_pictures():
    with torch.device("meta"):
        config = timm.data.resolve_model_data_config(timm.create_model("vir_small_patch16_224"))
    assert config["crop_pct"] == 0.875 and config["mean"] == timm.data.IMAGENET_INCEPTION_MEAN


def test_positions_and_class_token_are_left_alone_by_weight_decay():
    assert {"pos_embed", "cls_token"} <= small().no_weight_decay()
    assert small().pos_embed.shape == (1, 16, 32), "patches alone have positions"


# The forms


@torch.inference_mode()
@pytest.mark.parametrize("design", DESIGNS)
def test_the_modes_agree(design):
    model, x = small(**design), images()
    logits = model(x)
    assert relative(model(x, "recurrent"), logits) < 1e-5
    for chunk in (1, 7, 16, 17, 40):
        assert relative(model(x, "chunkwise", chunk), logits) < 1e-5
    own = small(**design, mode="chunkwise", chunk_size=3)
    own.load_state_dict(model.state_dict())
    assert torch.equal(own(x), model(x, "chunkwise", 3))


@torch.inference_mode()
@pytest.mark.parametrize("decay", ["1d", "2d"])
def test_the_release_s_softmax_agrees_with_nothing(decay):
    model, x = small(decay=decay), images()
    assert relative(model(x, "release_softmax"), model(x)) > 0.01
    first = small(decay=decay, depth=1).forward_features(x, "release_softmax")[:, 0]
    later = small(decay=decay, depth=1).forward_features(x.clone().index_fill_(3, torch.arange(24, 32), 0.0),
                                                         "release_softmax")[:, 0]  # fmt: skip
    assert not torch.equal(first, later), "the first patch sees later ones through it"


@pytest.mark.parametrize("decay", ["1d", "2d"])
@pytest.mark.parametrize(("pool", "sees"), [("token_last", True), ("token", False)])
def test_the_class_token_sees_all_patches_from_the_end_and_none_from_the_front(pool, sees, decay):
    x = images(1).requires_grad_()
    small(global_pool=pool, decay=decay)(x).square().sum().backward()
    patches = x.grad.unfold(2, 8, 8).unfold(3, 8, 8).abs().sum((0, 1, 4, 5))
    assert (patches > 0).all() if sees else not patches.any()


@torch.inference_mode()
def test_patches_see_their_past_and_with_a_second_reading_all():
    x, changed = images(1), images(1)
    changed[:, :, 8:16, 8:16] += 1  # patch 5
    moved = {}
    for name, design in (("1d", {}), ("2d", {"decay": "2d"}), ("both", {"bidirectional": True})):
        model = small(global_pool="final", **design)
        before, after = (model.forward_intermediates(p, [1], intermediates_only=True)[0] for p in (x, changed))
        moved[name] = (before != after).any(1)[0]
    index = torch.arange(16).reshape(4, 4)
    assert torch.equal(moved["1d"], index >= 5) and moved["both"].all()
    assert torch.equal(moved["2d"], (index // 4 >= 1) & (index % 4 >= 1))


@torch.inference_mode()
def test_a_bidirectional_sequence_is_followed_by_its_reversal():
    model, seen = small(bidirectional=True), []
    model.blocks[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    model(images())
    assert seen[0].shape[1] == 2 * 17 and torch.equal(seen[0], seen[0].flip(1))


@torch.inference_mode()
def test_heads_are_normalised_by_themselves():
    y = post_layer("groupnorm", 8, 2, nn.LayerNorm)(torch.randn(2, 3, 8) * torch.tensor([1.0] * 4 + [100.0] * 4))
    torch.testing.assert_close(y.unflatten(2, (2, 4)).var(-1, correction=0), torch.ones(2, 3, 2), atol=1e-3, rtol=0)


@torch.inference_mode()
def test_other_picture_sizes():
    model, x = small(decay="2d"), images(size=(48, 64))
    model.set_input_size((48, 64))
    assert model.pos_embed.shape == (1, 48, 32) and relative(model(x, "recurrent"), model(x)) < 1e-5
    dynamic = small(dynamic_img_size=True, decay="2d")
    for size in ((32, 32), (48, 64)):
        x = images(size=size)
        assert relative(dynamic(x, "chunkwise", 9), dynamic(x)) < 1e-5
    dynamic.set_input_size(64)
    assert dynamic(images(size=(64, 64))).shape == (2, 5)


# Streams


@torch.inference_mode()
@pytest.mark.parametrize("design", [d for d in DESIGNS if "bidirectional" not in d])
@pytest.mark.parametrize("cuts", [(8, 8, 8, 8), (16, 8, 8), (32,)])
def test_strips_of_a_picture_give_its_logits(design, cuts):
    model, x = small(**design), images()
    assert relative(model.classify_stream(model.embed_strips(x.split(cuts, 2))), model(x)) < 1e-5
    tokens = torch.cat(list(model.stream(model.embed_strips(x.split(cuts, 2)))), 1)
    assert relative(tokens, model.forward_features(x)) < 1e-5


@torch.inference_mode()
def test_a_model_with_a_class_token_may_average_its_patches():
    model, x = small(), images()
    model.reset_classifier(5, "avg")
    wanted = model.head(model.forward_features(x)[:, :-1].mean(1))
    torch.testing.assert_close(model(x), wanted)
    torch.testing.assert_close(model.classify_stream(model.embed_strips(x.split(16, 2))), wanted)


@settings(deadline=None, max_examples=10)
@given(cuts=st.lists(st.integers(1, 19), max_size=5))
@torch.inference_mode()
def test_tokens_may_come_in_any_chunks(cuts):
    model, x = small(), torch.randn(2, 20, 32)
    edges = [0, *sorted(set(cuts)), 20]
    parts, states = [x[:, a:b] for a, b in pairwise(edges)], model.start()
    whole = model.step(x, model.start())
    assert relative(torch.cat([model.step(part, states) for part in parts], 1), whole) < 1e-5


@pytest.mark.parametrize("decay", ["1d", "2d"])
def test_a_stream_keeps_no_more_than_its_states(decay):
    model = small(decay=decay)
    states, kept = model.start(), set()
    for tokens in model.stream((torch.randn(1, 8, 32) for _ in range(100)), states):
        assert tokens.isfinite().all() and not tokens.requires_grad
        kept.add(tuple(tuple(state.memory.shape) for state in states))
        assert all(state.memory.untyped_storage().nbytes() == 4 * state.memory.numel() for state in states)
    shape = (1, 2, 16, 16) if decay == "1d" else (1, 2, 4, 16, 16)
    assert kept == {(shape, shape)}


def test_streams_that_cannot_be_are_refused():
    strip = images()[:, :, :8]
    with pytest.raises(UserError, match="bidirectional model needs the whole"):
        small(bidirectional=True).start()
    with pytest.raises(UserError, match="softmax form needs the whole"):
        small(mode="release_softmax").start()
    with pytest.raises(UserError, match="eval mode"):
        next(small().train().stream([torch.randn(1, 1, 32)]))
    with pytest.raises(UserError, match="no tokens"):
        small().classify_stream([])
    with pytest.raises(UserError, match="pools nothing"):
        small(global_pool="").classify_stream([torch.randn(1, 1, 32)])
    for strips, words in (
        ([strip[:, :, :5]], "strip of 5 x 32 pixels at row 0"),
        ([strip[..., :16]], "strip of 8 x 16"),
        ([strip] * 5, "strip of 8 x 32 pixels at row 32"),
        ([strip] * 3, "end at row 24 of 32"),
        ([], "end at row 0 of 32"),
    ):
        for pool in ("token", "token_last"):
            with pytest.raises(UserError, match=words):
                list(small(global_pool=pool).embed_strips(strips))


# The hybrid


@torch.inference_mode()
def test_the_hybrid_is_a_timm_backbone():
    model = timm.create_model("hvir_tiny", num_classes=5, in_chans=1, **HYBRID).eval()
    x = images(size=(64, 96), channels=1)
    features = model.forward_features(x)
    assert features.shape == (2, 64, 2, 3) and torch.equal(model.forward_head(features), model(x))
    assert model.forward_head(features, pre_logits=True).shape == (2, 64)
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)
    maps = timm.create_model("hvir_tiny", features_only=True, **HYBRID).eval()
    assert [tuple(m.shape) for m in maps(images(size=(64, 64)))] == [(2, 8 * 2**i, 16 // 2**i, 16 // 2**i)
                                                                      for i in range(4)]  # fmt: skip
    assert maps.feature_info.reduction() == [4, 8, 16, 32]


@torch.inference_mode()
@pytest.mark.parametrize("decay", ["1d", "2d"])
def test_the_modes_of_the_hybrid_agree(decay):
    model, x = HybridRetention(**HYBRID, decay=decay, num_classes=5).eval(), images(size=(128, 64))
    for mode, chunk in (("recurrent", 1), ("chunkwise", 3), ("chunkwise", 12), ("chunkwise", 100)):
        assert relative(model(x, mode, chunk), model(x)) < 1e-5
    assert [type(stage.blocks[0]).__name__ for stage in model.stages] == ["ConvBlock"] * 2 + ["RetentionBlock"] * 2


# Training and deployment


@pytest.mark.parametrize("make", [
    *(partial(small, mode=m, decay=d) for m in ("parallel", "chunkwise", "recurrent") for d in ("1d", "2d")),
    partial(HybridRetention, **HYBRID, num_classes=5),
])  # fmt: skip
@pytest.mark.parametrize("checkpointing", [False, True])
def test_learns_under_bf16_autocast(make, checkpointing):
    model = make().train()
    model.set_grad_checkpointing(checkpointing)
    size = 64 if isinstance(model, HybridRetention) else 32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(images(size=(size, size)))
    logits.float().square().sum().backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    assert all(g is not None and g.isfinite().all() and g.any() for g in grads.values()), grads.keys()


@torch.inference_mode()
def test_decays_survive_a_model_in_bfloat16():
    model = small().bfloat16()
    assert model.mixing.gamma(torch.device("cpu")).tolist() == pytest.approx([1 - 1 / 32, 1 - 1 / 512])
    assert relative(model(images().bfloat16(), "recurrent").float(), model(images().bfloat16()).float()) < 0.05


@pytest.mark.parametrize("make", [
    partial(small, depth=1, decay="2d"),
    partial(small, depth=1, mode="chunkwise", chunk_size=9, post="groupnorm"),
    partial(HybridRetention, **HYBRID, num_classes=5),
])  # fmt: skip
def test_exports_to_onnx(make, tmp_path):
    model = make().eval()
    size = (64, 64) if isinstance(model, HybridRetention) else (32, 32)
    path = export_onnx(model, tmp_path / "m.onnx", Preprocess(size), list("abcde"))
    for batch in (1, 3):
        x = images(batch, size)
        with torch.inference_mode():
            np.testing.assert_allclose(Eye.load(path).logits(x.numpy()), model(x).numpy(), atol=1e-4)


def test_trains_from_its_recipe(picture_folder, tmp_path):
    short = ["--trainer.max_steps=2", "--data.init_args.batch_size=8", "--data.init_args.workers=0"]
    trained = run("vir", "tiny", str(picture_folder), tmp_path / "run", short)
    assert trained.suffix == ".safetensors" and trained.stat().st_size > 1e6


@pytest.mark.parametrize("preset", ["tiny", "cpu", "paper"])
def test_recipes_build_their_model(preset):
    recipe = preset_of(reproduce, preset)
    model, data = (recipe[part]["init_args"] for part in ("model", "data"))
    with torch.device("meta"):
        built = timm.create_model(model["model"], **model["model_args"])
    assert built.patch_embed.img_size == (data["size"], data["size"])


def test_the_trunk_refuses_what_depends_on_places():
    model = small()
    with pytest.raises(UserError, match="forward pass of its own"):
        Trunk(model, [TokenReducer() for _ in model.blocks])


# Bad input


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"img_size": 33}, "33 x 33 pixels do not divide into patches of 8 x 8"),
        ({"img_size": 0}, "0 x 0"),
        ({"global_pool": "max"}, "no global_pool 'max'"),
        ({"decay": "3d"}, "no decay '3d'"),
        ({"schedule": "linear"}, "no decay schedule 'linear'"),
        ({"schedule": [0.5]}, "2 heads need as many decays"),
        ({"post": "batchnorm"}, "no post 'batchnorm'"),
        ({"mode": "serial"}, "no mode 'serial'"),
        ({"mode": "chunkwise", "chunk_size": 0}, "chunk_size=0"),
        ({"num_heads": 5}, "5 heads do not share 32 channels"),
        ({"bidirectional": True, "decay": "2d"}, "along a sequence only"),
        ({"patch_drop_rate": 0.5}, "patch_drop_rate means nothing"),
    ],
)
def test_refuses_designs_that_mean_nothing(bad, words):
    with pytest.raises(UserError, match=words):
        small(**bad)


def test_refuses_input_that_does_not_fit():
    model = small()
    with pytest.raises(UserError, match="40 x 32 pixels, the model reads 32 x 32"):
        model(images(size=(40, 32)))
    with pytest.raises(UserError, match="33 x 32 pixels, which patches"):
        small(dynamic_img_size=True)(images(size=(33, 32)))
    with pytest.raises(UserError, match="50 x 50"):
        model.set_input_size(50)
    with pytest.raises(UserError, match="no class token for global_pool='token'"):
        model.reset_classifier(3, "token")
    with pytest.raises(UserError, match="final token of this model"):
        model.reset_classifier(3, "final")
    with pytest.raises(UserError, match="no mode 'serial'"):
        model(images(), "serial")
    with pytest.raises(UserError, match=r"chunk_size=1\.5"):
        model(images(), "chunkwise", 1.5)
    with pytest.raises(UserError, match="mask of its own"):
        model.forward_intermediates(images(), attn_mask=torch.ones(17, 17))


def test_the_hybrid_refuses_what_does_not_fit():
    with pytest.raises(UserError, match="multiples of 32 pixels, not 48 x 64"):
        HybridRetention(**HYBRID)(images(size=(48, 64)))
    with pytest.raises(UserError, match="multiples of 32 pixels, not 100 x 100"):
        HybridRetention(**HYBRID, img_size=100)
    with pytest.raises(UserError, match="heads of 24 channels"):
        HybridRetention(**{**HYBRID, "head_dim": 24})
    with pytest.raises(UserError, match="not by 'max'"):
        HybridRetention(**HYBRID, global_pool="max")
    with pytest.raises(UserError, match="no mode 'serial'"):
        HybridRetention(**HYBRID, mode="serial")


# Measurement

GOOD = {
    "top1": {"ViT": [60.0, 61.0], "ViR": [60.5, 60.4], "ViR 2-D": [61.0, 61.5], "no decay": [59.0, 58.0]},
    "agreement": {"ViR": (1e-6, 1.0)},
    "seconds": {196: {"parallel": 1.0, "chunk 64": 1.1}, 3136: {"parallel": 9.0, "chunk 64": 4.0}},
    "memory": {3136: {"parallel": 900, "chunk 64": 90}},
    "stream": {784: (1.0, 20 << 20), 65536: (60.0, 25 << 20)},
}


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({}, "reproduced"),
        ({"seconds": {196: {"parallel": 1.0, "chunk 64": 1.1}}}, "direction only"),
        ({"top1": {**GOOD["top1"], "ViR": [50.0, 51.0]}}, "direction only"),
        ({"top1": {name: values[:1] for name, values in GOOD["top1"].items()}}, "direction only"),
        ({"agreement": {"ViR": (1e-3, 1.0)}}, "not reproduced"),
        ({"agreement": {"ViR": (1e-6, 0.99)}}, "not reproduced"),
        ({"memory": {3136: {"parallel": 80, "chunk 64": 90}}}, "not reproduced"),
        ({"stream": {784: (1.0, 20 << 20), 65536: (60.0, 70 << 20)}}, "not reproduced"),
    ],
)
def test_the_verdict_follows_from_the_numbers(change, verdict):
    figures = {**GOOD, **change}
    costs = Costs(figures["seconds"], figures["memory"], figures["stream"])
    judged = reproduce.judge(Comparison(figures["top1"], 100, 64), figures["agreement"], costs, "nothing")
    assert judged.verdict == verdict and "65536 tokens" in judged.measured


def test_agreement_is_measured_on_logits():
    model = small()
    difference, equal = reproduce.agree(model, images(4))
    assert difference < 1e-5 and equal == 1
    assert reproduce.agree(_Undecided(), images(4)) == (2.0, 0.0)


class _Undecided(nn.Module):
    def forward(self, x, mode, chunk_size=1):
        return torch.tensor([[1.0, -1.0]] if mode == "parallel" else [[-1.0, 1.0]])


@pytest.mark.parametrize("form", ["start", "parallel", "chunkwise", "stream"])
def test_probes_run(form, monkeypatch):
    made = []
    monkeypatch.setattr(probe, "sized", lambda tokens: made.append(small(img_size=32)) or made[-1])
    probe.run(form, 16, 5)
    assert len(made) == 1


@pytest.mark.data
def test_measures_on_real_pictures(monkeypatch):
    trunk, costs = (
        {**reproduce.TRUNK, "embed_dim": 32, "depth": 1},
        Costs(GOOD["seconds"], GOOD["memory"], GOOD["stream"]),
    )
    measured = measured_on_one_seed(reproduce, monkeypatch, TRUNK=trunk, measure_costs=lambda time, minutes: costs)
    assert len(measured.details["top1"]) == 4
    assert measured.details["agreement"].keys() == {"ViR", "ViR 2-D", "no decay"}
    assert measured.verdict == "direction only"  # one seed shows nothing about accuracy
