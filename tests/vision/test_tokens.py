"""The trunk equals the model that it runs, and shows of its attention what is asked for and no more."""

import copy
from dataclasses import replace

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, VisionTransformer
from timm.optim import create_optimizer_v2
from torch import nn

from vitalk.errors import UserError
from vitalk.nn.attention import SiteAttention
from vitalk.vision.tokens import Attended, TokenReducer, Tokens, Trunk, attend, survivors, take

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2, "num_classes": 5}


class WovenEmbed(nn.Module):
    """An embedding with overlap, which is not timm's."""

    def __init__(self, img_size, embed_dim, **_):
        super().__init__()
        self.grid_size, self.num_patches = (img_size // 8, img_size // 8), (img_size // 8) ** 2
        self.cut = nn.Unfold(11, stride=8, padding=2)
        self.project = nn.Linear(3 * 121, embed_dim)

    def forward(self, images):
        return self.project(self.cut(images).transpose(1, 2))


class WovenViT(VisionTransformer):
    """As T2T-ViT: its own embedding, no qkv bias, fixed sinusoidal positions."""

    def __init__(self, **kwargs):
        super().__init__(embed_layer=WovenEmbed, qkv_bias=False, **kwargs)
        place = torch.arange(self.pos_embed.shape[1])[:, None] / 10000 ** (
            torch.arange(self.embed_dim) / self.embed_dim
        )
        self.pos_embed = nn.Parameter(place.sin()[None], requires_grad=False)


MODELS = {
    "plain": (VisionTransformer, {}),
    "distilled": (VisionTransformerDistilled, {}),
    "registers": (VisionTransformer, {"reg_tokens": 4, "no_embed_class": True}),
    "mean pooled": (VisionTransformer, {"class_token": False, "global_pool": "avg"}),
    "all norms": (VisionTransformer, {"qk_norm": True, "scale_attn_norm": True, "pre_norm": True, "init_values": 0.1}),
    "unfused": (VisionTransformer, {"attn_layer": SiteAttention}),
    "own embedding": (WovenViT, {}),
}


def small(kind="plain", **kwargs):
    torch.manual_seed(0)
    cls, options = MODELS[kind]
    return cls(**{**SMALL, **options, **kwargs}).eval()


def trunk(vit, reducer=TokenReducer, **kwargs):
    return Trunk(vit, [reducer() for _ in vit.blocks], **kwargs)


class Curious(TokenReducer):
    """Looks at everything, changes nothing."""

    needs = frozenset({"keys", "class_attention", "attention"})

    def forward(self, tokens, seen):
        self.seen = seen
        return tokens


class Halve(TokenReducer):
    """Keeps every second patch."""

    def forward(self, tokens, seen):
        def keep(x):
            return None if x is None else torch.cat([x[:, :1], x[:, 1::2]], 1)

        return replace(tokens, features=keep(tokens.features), source=keep(tokens.source))


@pytest.mark.parametrize("kind", MODELS)
@torch.inference_mode()
def test_reducing_nothing_is_the_model_bit_for_bit(kind):
    vit, images = small(kind), torch.randn(2, 3, 32, 32)
    run = trunk(vit)
    assert torch.equal(run(images), vit(images))
    assert torch.equal(run.forward_features(images), vit.forward_features(images))
    torch.testing.assert_close(trunk(vit, Curious)(images), vit(images))


@torch.inference_mode()
def test_pictures_of_any_size_where_the_model_takes_them():
    vit = small(dynamic_img_size=True)
    for size in (32, 48):
        images = torch.randn(2, 3, size, size)
        assert torch.equal(trunk(vit)(images), vit(images))


def test_training_mode_draws_the_same_dropout():
    vit = small(drop_path_rate=0.5, proj_drop_rate=0.3, attn_drop_rate=0.2).train()
    images, outputs = torch.randn(4, 3, 32, 32), []
    for model in (vit, trunk(vit)):
        torch.manual_seed(1)
        outputs.append(model(images))
    assert torch.equal(*outputs)


def test_nothing_asked_for_costs_nothing():
    """At keep rate 1 a block runs timm's own attention, once, and no row of the map beside it."""
    vit, calls = small(), []
    for block in vit.blocks:
        block.attn.register_forward_hook(lambda *_: calls.append(1))
    trunk(vit)(torch.randn(1, 3, 32, 32))
    assert len(calls) == len(vit.blocks)


@pytest.mark.parametrize("kind", ["plain", "all norms", "unfused"])
@torch.inference_mode()
def test_attention_is_shown_as_it_is(kind):
    attn, x = small(kind).blocks[0].attn, torch.randn(2, 9, 24)
    out, seen = attend(attn, x, None, Curious.needs)
    torch.testing.assert_close(out, attn(x))
    assert seen.keys.shape == (2, 2, 9, 12) and seen.attention.shape == (2, 2, 9, 9)
    torch.testing.assert_close(seen.attention.sum(-1), torch.ones(2, 2, 9))
    torch.testing.assert_close(seen.class_attention, seen.attention[:, :, 0].mean(1))
    for need in Curious.needs:
        alone, one = attend(attn, x, None, frozenset({need}))
        torch.testing.assert_close(alone, out)
        torch.testing.assert_close(getattr(one, need), getattr(seen, need))
        assert all(getattr(one, other) is None for other in Curious.needs - {need})


@pytest.mark.parametrize("kind", ["plain", "unfused"])
@torch.inference_mode()
def test_a_token_of_size_two_is_two_equal_tokens(kind):
    attn, x = small(kind).blocks[0].attn, torch.randn(2, 6, 24)
    doubled, needs = torch.cat([x, x[:, 3:4]], 1), frozenset({"class_attention"})
    size = torch.ones(2, 6)
    size[:, 3] = 2
    merged, row = attend(attn, x, size, needs)
    plain, rows = attend(attn, doubled, None, needs)
    torch.testing.assert_close(merged, plain[:, :6])
    torch.testing.assert_close(row.class_attention[:, 3], rows.class_attention[:, 3] + rows.class_attention[:, 6])


@torch.inference_mode()
def test_gated_attention_keeps_its_gate():
    attn = timm.layers.Attention(24, 2, gated=True)
    x = torch.randn(2, 9, 24)
    torch.testing.assert_close(attend(attn, x, None, frozenset({"keys"}))[0], attn(x))


def test_class_attention_carries_gradients():
    attn, x = small().blocks[0].attn, torch.randn(1, 5, 24)
    attend(attn, x, None, frozenset({"class_attention"}))[1].class_attention[0, 2].backward()
    assert attn.qkv.weight.grad.abs().sum() > 0


def test_state_dicts_are_the_models_own():
    vit = small()
    run = trunk(vit)
    assert list(run.state_dict()) == list(vit.state_dict())
    run.load_state_dict(small().state_dict())
    inside = nn.ModuleDict({"model": run})
    assert set(inside.state_dict()) == {f"model.{key}" for key in vit.state_dict()}
    inside.load_state_dict(copy.deepcopy(inside).state_dict())
    broken = vit.state_dict()
    broken["blocks.7.norm1.weight"] = broken.pop("head.bias")
    with pytest.raises(RuntimeError, match=r"(?s)Missing.*head\.bias.*Unexpected.*blocks\.7"):
        run.load_state_dict(broken)


def test_weights_of_reducers_are_saved_beside_the_models():
    class Learned(TokenReducer):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.rand(1))

    run, other = trunk(small(), Learned), trunk(small(), Learned)
    assert set(run.state_dict()) - set(run.vit.state_dict()) == {f"reducers.{i}.scale" for i in range(3)}
    other.load_state_dict(run.state_dict())
    assert other.reducers[1].scale == run.reducers[1].scale


def test_is_a_timm_backbone():
    run, images = trunk(small()), torch.randn(2, 3, 32, 32)
    run.vit.pretrained_cfg = {"input_size": (3, 32, 32)}
    run.reset_classifier(7)
    assert run.num_classes == 7 and run(images).shape == (2, 7) and run.get_classifier().out_features == 7
    torch.testing.assert_close(run.forward_head(run.forward_features(images)), run(images))
    assert run.forward_head(run.forward_features(images), pre_logits=True).shape == (2, run.num_features)
    assert run.pretrained_cfg is run.default_cfg is run.vit.pretrained_cfg
    assert (run.head_hidden_size, run.num_prefix_tokens) == (24, 1)


def test_optimizers_group_its_parameters_as_the_models():
    run = trunk(small())
    theirs, ours = (
        create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.1, layer_decay=0.7).param_groups
        for model in (run.vit, run)
    )
    assert len(ours) == len(theirs) > 4
    for a, b in zip(ours, theirs, strict=True):
        assert (a["lr_scale"], a["weight_decay"]) == (b["lr_scale"], b["weight_decay"])
        assert {id(p) for p in a["params"]} == {id(p) for p in b["params"]}


def test_gradient_checkpointing_changes_no_gradient():
    vit, images, gradients = small(), torch.randn(2, 3, 32, 32), []
    for enable in (False, True):
        vit.zero_grad()
        run = trunk(vit, Halve)
        run.set_grad_checkpointing(enable)
        run(images).square().sum().backward()
        gradients.append(vit.blocks[0].attn.qkv.weight.grad.clone())
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("wrapped", ["", "model", "state_dict"])
def test_reads_checkpoints_of_other_grids_and_wrappings(wrapped):
    large, run = small(img_size=64), trunk(small())
    state = {f"module.{key}": value for key, value in large.state_dict().items()}
    run.load_state_dict(run.checkpoint_filter_fn({wrapped: state} if wrapped else state, run))
    torch.testing.assert_close(run.vit.blocks[1].mlp.fc1.weight, large.blocks[1].mlp.fc1.weight)
    torch.testing.assert_close(run.vit.pos_embed[:, 0], large.pos_embed[:, 0])
    assert run.vit.pos_embed.shape[1] == 17 and large.pos_embed.shape[1] == 65


@torch.inference_mode()
def test_sources_follow_the_tokens():
    run = Trunk(small(), [TokenReducer(), Halve(), Halve()], trace=True)
    tokens = run.forward_tokens(torch.randn(2, 3, 32, 32))
    assert tokens.features.shape == (2, 5, 24) and tokens.source.shape == (2, 5, 16)
    assert tokens.source[:, 0].sum() == 0  # the class token holds no patch
    assert survivors(tokens.source).nonzero()[:, 1].tolist() == 2 * [0, 4, 8, 12]
    run.trace = False
    assert run.forward_tokens(torch.randn(1, 3, 32, 32)).source is None


def test_merged_patches_do_not_survive():
    source = torch.tensor([[[0.0, 0, 0, 0], [0, 1, 0, 0], [0.5, 0, 0.5, 0], [0, 0, 0, 0.2]]])
    assert survivors(source).tolist() == [[False, True, False, False]]


@settings(deadline=None, max_examples=30)
@given(tokens=st.integers(1, 20), trailing=st.lists(st.integers(1, 3), max_size=2), data=st.data())
def test_take_picks_rows_of_any_shape(tokens, trailing, data):
    x = torch.randn(2, tokens, *trailing)
    index = torch.tensor(
        data.draw(st.lists(st.lists(st.integers(0, tokens - 1), min_size=3, max_size=3), min_size=2, max_size=2))
    )
    assert torch.equal(take(x, index), torch.stack([x[b][index[b]] for b in range(2)]))
    assert take(None, index) is None


def test_a_block_runs_its_mlp_on_what_the_reducer_left():
    block, widths = small().blocks[0], []
    block.mlp.register_forward_hook(lambda _, inputs, out: widths.append(out.shape[1]))
    out = Halve().through(block, Tokens(torch.randn(1, 17, 24)))
    assert widths == [9] and out.features.shape == (1, 9, 24)
    assert TokenReducer()(out, Attended()) is out


class OwnPass(VisionTransformer):
    def forward_features(self, x):
        return super().forward_features(x) * 2


class OwnBlock(Block):
    def forward(self, x, **_):
        return x


class OwnAttention(timm.layers.Attention):
    def forward(self, x, **_):
        return x


@pytest.mark.parametrize(
    "make, named",
    [
        (lambda: timm.create_model("resnet10t"), "ResNet"),
        (lambda: OwnPass(**SMALL), "OwnPass"),
        (lambda: VisionTransformer(**SMALL, block_fn=OwnBlock), "OwnBlock"),
        (lambda: VisionTransformer(**SMALL, attn_layer=OwnAttention), "OwnAttention"),
        (lambda: VisionTransformer(**SMALL, attn_layer="diff"), "DiffAttention"),
    ],
)
def test_refuses_models_of_another_form(make, named):
    with pytest.raises(UserError, match=named):
        Trunk(make(), [TokenReducer()] * 3)


def test_refuses_the_wrong_number_of_reducers():
    with pytest.raises(UserError, match="3 blocks need as many reducers, got 2"):
        Trunk(small(), [TokenReducer()] * 2)
