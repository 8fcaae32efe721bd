"""LGViT against its official implementation and against the paper's own invariants."""

import copy
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.deit import VisionTransformerDistilled
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer

from tests.parity import parity
from vitalk.deploy.onnx_export import export_onnx
from vitalk.deploy.preprocess import Preprocess
from vitalk.deploy.runtime import open_engine
from vitalk.errors import UserError
from vitalk.systems.lgvit import (
    AtExit,
    EveryExit,
    Rule,
    heterogeneous_loss,
    homogeneous_loss,
    lgvit,
    prediction_loss,
    rules,
    weighted_loss,
)
from vitalk.systems.lgvit.heads import GlobalAggregation, LocalPerception
from vitalk.systems.lgvit.losses import soft_cross_entropy
from vitalk.systems.lgvit.model import Pass
from vitalk.systems.lgvit.trunks import spread
from vitalk.vision.cost import count

FOLDER = Path(__file__).parents[1] / "parity"
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2, "num_classes": 5}
SWIN = {"img_size": 32, "patch_size": 2, "embed_dim": 16, "depths": (1, 1, 3, 1), "num_heads": (1, 1, 2, 2)}
SWIN |= {"window_size": 4, "num_classes": 5, "drop_path_rate": 0.0}


def small(vit=VisionTransformer, spread_by=100.0, options=None, **kwargs):
    """A network whose heads, though random, are sure enough that pictures leave at different exits."""
    torch.manual_seed(0)
    model = lgvit(vit(**{**(SWIN if vit is SwinTransformer else SMALL), **(options or {})}), **kwargs).eval()
    for kind, head in zip(model.kinds, model.exits, strict=True):
        for classifier in head.classifiers:
            classifier.weight.data *= 20 * spread_by if kind.startswith("gah") else spread_by
    return model


def pictures(count=9):
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def official(variant):
    """The fixture, its weights, and its inputs."""
    fixture = parity.load(FOLDER / f"lgvit.{variant}.json")
    state = {key: torch.from_numpy(value) for key, value in parity.filled_state(fixture).items()}
    return fixture, state, {key: torch.from_numpy(parity.tensor(key, **s)) for key, s in fixture["inputs"].items()}


# The official models


def check_outputs(passed, fixture):
    outputs = fixture["outputs"]
    assert parity.distance(passed.logits.numpy(), outputs["logits"]) < 1e-4
    for index, head in enumerate(passed.exits):
        assert parity.distance(head.logits.numpy(), outputs[f"exit_{index}_logits"]) < 1e-4
        if f"exit_{index}_tokens" in outputs:
            assert parity.distance(head.tokens.numpy(), outputs[f"exit_{index}_tokens"]) < 1e-4


@torch.inference_mode()
def test_agrees_with_the_official_deit_and_with_the_losses_of_both_stages():
    fixture, state, given_ = official("deit_tiny")
    model = timm.create_model("lgvit_deit_base", embed_dim=192, num_heads=3, num_classes=100).eval()
    assert model.layers == (4, 5, 6, 7, 8, 9, 10, 11)
    model.load_state_dict(model.checkpoint_filter_fn(state, model))
    entered = []
    model.vit.norm.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
    model.vit.blocks[4].register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
    passed = model.forward_exits(given_["image"])
    check_outputs(passed, fixture)
    outputs = fixture["outputs"]
    assert parity.distance(entered[0].numpy(), outputs["layer_4"]) < 1e-4
    confidence = Rule("confidence").score(passed.stacked()[:-1])
    assert parity.distance(confidence.T.numpy(), outputs["confidence"]) < 1e-4
    target = F.one_hot(given_["label"], 100).float()
    even, odd = soft_cross_entropy(passed.logits, target), weighted_loss(passed, target, model.layers, 12)
    assert parity.distance(even[None].numpy(), outputs["stage1_even_loss"]) < 1e-4
    assert parity.distance(odd[None].numpy(), outputs["stage1_odd_loss"]) < 1e-4
    # The release's teacher classifies what leaves the last layer without the norm; ours is the network of inference.
    teacher = (model.vit.head(entered[1][:, 0]) + model.vit.head_dist(entered[1][:, 1])) / 2
    features = heterogeneous_loss(passed, model.kinds) + homogeneous_loss(passed, model.kinds)
    second = prediction_loss(passed, target, teacher) + 0.01 * features
    assert parity.distance(second[None].numpy(), outputs["stage2_loss"]) < 1e-4
    pooler = 192 * 192 + 192  # the release carries one that nothing reads
    assert sum(p.numel() for p in model.parameters()) == fixture["params"] - pooler


@torch.inference_mode()
def test_agrees_with_the_official_swin():
    fixture, state, given_ = official("swin_reduced")
    model = timm.create_model("lgvit_swin_base", embed_dim=32, num_heads=(1, 2, 4, 8), num_classes=20).eval()
    assert model.layers == (4, 7, 10, 13, 16, 19, 22, 23) and model.rule.threshold == 0.75
    idle = {"layernorm.weight": torch.zeros(256), "swin.encoder.layers.0.blocks.0.x.relative_position_index": None}
    model.load_state_dict(model.checkpoint_filter_fn(state | idle, model))
    passed = model.forward_exits(given_["image"])
    check_outputs(passed, fixture)
    target = F.one_hot(given_["label"], 20).float()
    first, second = soft_cross_entropy(passed.logits, target), weighted_loss(passed, target, model.layers, 24)
    assert parity.distance(first[None].numpy(), fixture["outputs"]["stage1_first_loss"]) < 1e-4
    assert parity.distance(second[None].numpy(), fixture["outputs"]["stage1_second_loss"]) < 1e-4
    assert sum(p.numel() for p in model.parameters()) == fixture["params"]


@pytest.mark.parametrize(
    "variant, depth, heads",
    [("vit_six", 7, "lgvit"), ("vit_linear", 3, "linear"), ("vit_ee", 3, "vit"), ("deit_linear", 3, "linear"),
     ("deit_ee", 3, "vit")],
)  # fmt: skip
@torch.inference_mode()
def test_agrees_with_the_official_heads_of_other_kinds(variant, depth, heads):
    fixture, state, given_ = official(variant)
    name = "lgvit_deit_base" if variant.startswith("deit") else "lgvit_vit_base"
    layers = [2] if heads == "vit" else list(range(1, depth))
    options = {"embed_dim": 32, "num_heads": 2, "img_size": 32, "patch_size": 8, "num_classes": 10, "depth": depth}
    model = timm.create_model(name, layers=layers, heads=heads, **options).eval()
    model.load_state_dict(model.checkpoint_filter_fn({"model": state}, model))
    check_outputs(model.forward_exits(given_["image"]), fixture)


@torch.inference_mode()
def test_agrees_with_the_official_bodies_and_feature_losses():
    fixture, state, given_ = official("heads")
    outputs, grid = fixture["outputs"], given_["tokens"].reshape(2, 14, 14, 32)
    for name in ("lph3", "lph1", "gah1", "gah2", "gah3"):
        body = (LocalPerception if name.startswith("lph") else GlobalAggregation)(32, int(name[-1])).eval()
        own = {key.removeprefix(f"{name}."): v for key, v in state.items() if key.startswith(f"{name}.")}
        (body.attn if name.startswith("gah") else body).load_state_dict(own)
        tokens = body(grid).flatten(1, 2)
        assert parity.distance(tokens.numpy(), outputs[name]) < 1e-4
        assert tokens.shape[1] == {"lph3": 196, "lph1": 196, "gah1": 196, "gah2": 49, "gah3": 25}[name]
    for stride in (2, 3):
        sampled = grid[:, ::stride, ::stride].flatten(1, 2)
        assert parity.distance(sampled.numpy(), outputs[f"subsample_{stride}"]) < 1e-4
    student, teacher, short = given_["student"], given_["teacher"], given_["teacher_short"]
    hidden = teacher.reshape(2, 5, 5, 32)
    found = heterogeneous_loss(Pass([said(student)], student, hidden), ("lph3",))
    assert parity.distance(found[None].numpy(), outputs["hete"]) < 1e-4
    found = homogeneous_loss(Pass([said(student), said(teacher)], student, hidden), ("lph3", "lph1"))
    assert parity.distance(found[None].numpy(), outputs["homo_mse"]) < 1e-4
    found = homogeneous_loss(Pass([said(student), said(short)], student, hidden), ("gah2", "gah3"))
    assert parity.distance(found[None].numpy(), outputs["homo_gram"]) < 1e-4
    entropy = Rule("entropy").score(student[:, 0])
    assert parity.distance(entropy.numpy(), outputs["entropy"]) < 1e-4


def said(tokens):
    from vitalk.systems.lgvit.heads import Exit

    return Exit(tokens[:, 0], tokens)


# Weights


def test_weights_of_the_plain_model_go_in_and_out():
    model, plain = small(), VisionTransformer(**SMALL)
    own = {key for key in model.state_dict() if not key.startswith("exits.")}
    assert own == set(plain.state_dict())
    heads = copy.deepcopy(model.exits.state_dict())
    model.load_state_dict(
        model.checkpoint_filter_fn({"module." + k: v for k, v in plain.state_dict().items()}, model), False
    )
    assert torch.equal(model.vit.blocks[1].mlp.fc1.weight, plain.blocks[1].mlp.fc1.weight)
    assert all(torch.equal(value, heads[key]) for key, value in model.exits.state_dict().items())
    plain.load_state_dict({key: value for key, value in model.state_dict().items() if key in own})
    again = small()
    again.load_state_dict(again.checkpoint_filter_fn(model.state_dict(), again))
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in again.state_dict().items())


def test_positions_are_resized_to_other_grids():
    _, state, _ = official("vit_linear")
    options = {"embed_dim": 32, "num_heads": 2, "patch_size": 8, "num_classes": 10, "depth": 3}
    model = timm.create_model("lgvit_vit_base", layers=[1, 2], heads="linear", img_size=48, **options)
    model.load_state_dict(model.checkpoint_filter_fn(state, model))
    table = state["deit.embeddings.position_embeddings"]
    wide = F.interpolate(table[:, 1:].reshape(1, 4, 4, 32).permute(0, 3, 1, 2), size=(6, 6), mode="bicubic")
    torch.testing.assert_close(model.vit.pos_embed[:, 1:], wide.flatten(2).transpose(1, 2))


@pytest.mark.parametrize("kind, added", [("lph3", "2 * c * c + 18 * c"), ("lph1", "2 * c * c + 6 * c"),
                                         ("gah2", "4 * c * c + c"), ("gah3", "4 * c * c + c")])  # fmt: skip
def test_heads_have_the_papers_parameters(kind, added):
    """Beside 2 c^2 + 9 c for the convolutions there are three biases and three norms of 2 c in LPH3, two in LPH1."""
    model, c = small(heads=kind, layers=(2,)), 32
    plain = sum(p.numel() for p in model.vit.parameters())
    body = eval(added, {"c": c})
    assert sum(p.numel() for p in model.parameters()) - plain == body + 5 * c + 5


# Inference


@settings(deadline=None, max_examples=25)
@given(
    kind=st.sampled_from(["confidence", "entropy", "patience", "patient_and_confident"]),
    threshold=st.floats(0.05, 1.5),
    patience=st.integers(1, 3),
    vit=st.sampled_from([VisionTransformer, VisionTransformerDistilled, SwinTransformer]),
)
@torch.inference_mode()
def test_batched_exit_is_the_exit_of_each_picture_alone(kind, threshold, patience, vit):
    model, images = small(vit), pictures(6)
    model.rule = Rule(kind, None if kind == "patience" else threshold, patience)
    left = model.infer(images)
    for index in range(len(images)):
        alone = model.infer(images[index : index + 1])
        assert alone.layer.item() == left.layer[index].item()
        torch.testing.assert_close(alone.logits[0], left.logits[index], rtol=1e-4, atol=1e-4)
    # and it is what the recorded logits of all exits say
    logits = model.forward_exits(images).stacked()
    chosen = model.rule.decide(model.rule.score(logits[:-1]))
    layers = torch.tensor([*model.layers, model.trunk.depth])
    assert torch.equal(layers[chosen], left.layer)
    torch.testing.assert_close(logits[chosen, torch.arange(6)], left.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model(images), left.logits)


@torch.inference_mode()
def test_layers_and_heads_run_on_those_that_stayed_only():
    model, seen = small(), {}
    model.rule = Rule("confidence", 0.8)
    for index, block in enumerate(model.vit.blocks):
        block.register_forward_pre_hook(lambda _, x, index=index: seen.update({index: len(x[0])}))
    layer = model.infer(pictures(40)).layer
    assert len(layer.unique()) == 4  # some leave at each exit, some nowhere
    assert [seen[i] for i in range(4)] == [int((layer > i).sum()) for i in range(4)]
    seen.clear()
    model.rule = Rule("confidence", 0.0)  # all leave at the first exit, and later layers do not run at all
    assert model.infer(pictures()).layer.tolist() == [1] * 9 and set(seen) == {0}


@pytest.mark.parametrize("vit", [VisionTransformer, VisionTransformerDistilled, SwinTransformer])
@torch.inference_mode()
def test_a_rule_that_never_fires_is_the_plain_network_and_asks_no_head(vit):
    model, asked = small(vit), []
    for head in model.exits:
        head.register_forward_hook(lambda *_: asked.append(1))
    never = (Rule("confidence", 1.0), Rule("confidence", 7), Rule("entropy", 0), Rule("patience", patience=9))
    for model.rule in (*never, Rule("patient_and_confident", 0.0)):
        assert torch.equal(model(pictures()), model.vit(pictures()))
        left = model.infer(pictures())
        assert torch.equal(left.logits, model.vit(pictures())) and set(left.layer.tolist()) == {model.trunk.depth}
    assert not asked
    model.rule = Rule("confidence", 0.9)
    assert torch.equal(model.train()(pictures()), model.vit(pictures()))  # and so it is in training


@torch.inference_mode()
def test_exits_refuse_nan_instead_of_leaving_or_staying():
    images = pictures(4)
    images[2] = float("nan")
    for rule in (Rule("confidence", 0.5), Rule("entropy", 0.1), Rule("patience", patience=2)):
        model = small()
        model.rule = rule
        with pytest.raises(UserError, match="the exit after layer 1 gives NaN or infinite logits for 1 of 4 pictures"):
            model(images)
    scores = Rule("patience").score(torch.full((3, 2, 5), float("nan")))
    assert Rule("patience", patience=2).decide(scores).tolist() == [3, 3]  # afterwards, too, nobody leaves on NaN


@settings(deadline=None)
@given(exits=st.integers(1, 6), seed=st.integers(0, 100))
def test_rules_fire_where_the_release_says(exits, seed):
    logits = 3 * torch.randn(exits, 7, 4, generator=torch.Generator().manual_seed(seed))
    share = logits.softmax(-1)
    for b in range(7):
        sure = [i for i in range(exits) if share[i, b].max() > 0.7]
        calm = [-(share[i, b] * share[i, b].log()).sum() < 0.6 for i in range(exits)]
        same = share[:, b].argmax(-1).tolist()
        rows = [i for i in range(1, exits) if same[i] == same[i - 1]]
        twice = [i for i in range(1, exits) if calm[i] and calm[i - 1]]
        low = [i for i in range(exits) if calm[i]]
        wanted = {("confidence", 0.7, 1): sure, ("entropy", 0.6, 1): low, ("patience", None, 2): rows,
                  ("patient_and_confident", 0.6, 2): twice}  # fmt: skip
        for options, fires in wanted.items():
            rule = Rule(*options)
            assert rule.decide(rule.score(logits))[b] == (fires[0] if fires else exits)


def test_an_underflowing_probability_has_no_share_in_the_entropy():
    assert Rule("entropy").score(torch.tensor([[0.0, 1000.0]])).tolist() == [0.0]


def test_autocast_runs_forwards_backwards_and_early():
    model = small().train()
    with torch.autocast("cpu", torch.bfloat16):
        passed = model.forward_exits(pictures())
        loss = weighted_loss(passed, torch.full((9, 5), 0.2), model.layers, 4) + homogeneous_loss(passed, model.kinds)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        model.eval().rule = Rule("confidence", 0.6)
        assert model.infer(pictures()).logits.isfinite().all()


def test_checkpointing_changes_no_gradient():
    grads = []
    for enable in (False, True):
        model = small()
        model.set_grad_checkpointing(enable)
        passed = model.forward_exits(pictures())
        weighted_loss(passed, torch.full((9, 5), 0.2), model.layers, 4).backward()
        grads.append(model.vit.blocks[0].attn.qkv.weight.grad)
    torch.testing.assert_close(*grads)


# Placement


def test_the_papers_placements():
    vit = timm.create_model("lgvit_cifar")
    assert vit.layers == (4, 5, 6, 7, 8, 9, 10, 11)
    assert vit.kinds == ("lph3", "lph3", "lph1", "lph1", "gah2", "gah2", "gah3", "gah3")
    kinds = {count: timm.create_model("lgvit_cifar", embed_dim=24, exits=count).kinds for count in (2, 4, 6)}
    assert kinds[2] == ("lph3", "gah2") and kinds[4] == ("lph3", "lph1", "gah2", "gah3")
    assert kinds[6] == ("lph3", "lph1", "gah2", "gah2", "gah3", "gah3")
    swin = lgvit(SwinTransformer(**{**SWIN, "depths": (2, 2, 18, 2)}))
    assert swin.kinds == ("lph3", "lph3", "lph1", "lph1", "gah1", "gah1", "gah2", "gah2")
    tiny = lgvit(SwinTransformer(**{**SWIN, "depths": (2, 2, 6, 2)}))
    assert tiny.layers == (4, 5, 6, 7, 8, 9, 10, 11) and tiny.kinds == swin.kinds
    assert timm.create_model("lgvit_cifar", embed_dim=24, heads="vit").layers == (6,)  # ViT-EE
    eye = timm.create_model("lgvit_eye")
    assert eye.layers == (1, 2, 3) and eye.kinds == ("lph3", "lph1", "gah2")


def test_explicit_placements():
    assert small(layers=(1, 3), heads=("gah1", "linear")).kinds == ("gah1", "linear")
    assert small(layers=(0.25, 0.5)).layers == (1, 2)
    assert small(options={"class_token": False, "global_pool": "avg"}).trunk.special == 0


@settings(deadline=None)
@given(first=st.integers(1, 20), room=st.integers(1, 20), data=st.data())
def test_exits_spread_over_different_layers(first, room, data):
    count = data.draw(st.integers(1, room))
    layers = spread(first, first + room - 1, count)
    assert len(set(layers)) == count and list(layers) == sorted(layers)
    assert first <= layers[0] and layers[-1] <= first + room - 1


@torch.inference_mode()
def test_registers_are_no_patches_and_pictures_may_be_oblong():
    model = small(options={"reg_tokens": 3, "dynamic_img_size": True})
    passed = model.forward_exits(torch.randn(2, 3, 32, 64))
    assert passed.hidden.shape == (2, 4, 8, 32) and passed.exits[0].tokens.shape == (2, 32, 32)


@pytest.mark.parametrize("vit", [VisionTransformer, SwinTransformer])
def test_learning_rates_fall_with_depth_and_heads_keep_theirs(vit):
    from timm.optim import param_groups_layer_decay

    model = small(vit)
    scale = {}
    for group in param_groups_layer_decay(model, layer_decay=0.5):
        scale |= {id(p): group["lr_scale"] for p in group["params"]}
    named = dict(model.named_parameters())
    first = "blocks.0" if vit is VisionTransformer else "layers.0.blocks.0"
    assert scale[id(named[f"trunk.vit.{first}.attn.qkv.weight"])] < scale[id(named["trunk.vit.norm.weight"])]
    assert all(scale[id(p)] == 1.0 for name, p in named.items() if name.startswith("exits."))


def test_new_classes_everywhere():
    model = small(VisionTransformerDistilled)
    model.reset_classifier(3)
    assert model.num_classes == 3 and model.forward_exits(pictures()).stacked().shape == (4, 9, 3)
    kept = model.no_weight_decay() & {name for name, _ in model.named_parameters()}
    assert kept == {"trunk.vit.pos_embed", "trunk.vit.cls_token", "trunk.vit.dist_token"}


# Export


@pytest.mark.parametrize("form", ["exit", "every", "rule"])
def test_exports_to_onnx_with_any_batch(form, tmp_path):
    model = small(SwinTransformer if form == "exit" else VisionTransformer, layers=(1, 2), heads=("lph3", "gah2"))
    model.rule = Rule("confidence", 0.8)
    run = {"exit": AtExit(model, -1), "every": EveryExit(model), "rule": model}[form].eval()
    cfg = Preprocess.from_timm_cfg({"input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.5,) * 3})
    path = export_onnx(run, tmp_path / "lgvit.onnx", cfg, list("abcde"))
    engine, _ = open_engine(path)
    with torch.inference_mode():
        for batch in (1, 2):
            expected = run(pictures()[:batch])
            torch.testing.assert_close(
                torch.from_numpy(engine(pictures()[:batch].numpy())), expected, atol=1e-3, rtol=1e-3
            )
    if form == "exit":
        held = sum(p.numel() for p in model.vit.layers[:2].parameters()) * 4
        assert held < path.stat().st_size < 4 * sum(p.numel() for p in model.parameters())


def test_a_network_cut_off_costs_no_more_than_its_layers_and_head():
    model = small(layers=(1, 3))
    costs = [count(AtExit(model, index), pictures(1)).macs for index in range(2)]
    plain = count(model.vit, pictures(1)).macs
    assert costs[0] < costs[1] < plain and not model.training


# Refusals


@pytest.mark.parametrize(
    "options, message",
    [
        ({"layers": (0, 2)}, "no exit after layer 0: give layers from 1 to 3"),
        ({"layers": (4,)}, "no exit after layer 4"),
        ({"layers": (1.5,)}, "no exit after layer 1.5"),
        ({"layers": (2, 2)}, r"different layers in ascending order.*\[2, 2\]"),
        ({"layers": ()}, "at least one"),
        ({"exits": 4}, "4 exits do not fit between layers 1 and 3"),
        ({"exits": 2, "layers": (1,)}, "not both"),
        ({"heads": "conv"}, "no kind of exit head 'conv'"),
        ({"layers": (1, 2), "heads": ("lph3",)}, "1 kinds of head were given for 2 exits"),
        ({"rule": "hope"}, "no exit rule 'hope'"),
        ({"threshold": float("nan")}, "threshold must be a number of at least 0, got nan"),
        ({"threshold": -0.1}, "threshold"),
        ({"patience": 0}, "patience must be at least one exit, got 0"),
        ({"rule": "patience", "threshold": 0.5}, "takes no threshold"),
    ],
)
def test_refuses_what_does_not_go_together(options, message):
    with pytest.raises(UserError, match=message):
        small(**options)


def test_refuses_other_models_and_widths():
    with pytest.raises(UserError, match="ResNet is none of them"):
        lgvit(timm.create_model("resnet10t"))
    with pytest.raises(UserError, match="do not share a width of 36"):
        small(options={"embed_dim": 36})
    with pytest.raises(UserError, match="num_classes=0"):
        small(options={"num_classes": 0})
    with pytest.raises(UserError, match="patch_drop_rate"):
        small(options={"patch_drop_rate": 0.5})
    with pytest.raises(UserError, match="no feature maps"):
        timm.create_model("lgvit_vit_base", features_only=True)
    with pytest.raises(UserError, match="no exit 3"):
        AtExit(small(), 3)
    with pytest.raises(UserError, match="no trained weights"):
        timm.create_model("lgvit_cifar", pretrained=True)


def test_rules_go_from_eager_to_never():
    for kind in ("confidence", "entropy", "patience", "patient_and_confident"):
        found = rules(kind, 3, 10)
        assert found[-1].never(3) and not found[0].never(3)
