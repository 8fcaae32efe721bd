"""DiffRate under a schedule, against its official implementation and against the paper's own invariants."""

import json
from dataclasses import replace
from importlib import resources
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.deit import VisionTransformerDistilled
from timm.models.metaformer import Attention, LayerNorm2dNoBias, LayerNormNoBias, MetaFormer, SepConv
from timm.models.vision_transformer import VisionTransformer

from tests.parity import parity
from vitalk.deploy.onnx_export import export_onnx
from vitalk.deploy.preprocess import Preprocess
from vitalk.errors import UserError
from vitalk.systems.diffrate import Schedule, diffrate, geometry, published, uniform
from vitalk.systems.diffrate.method import absorb, compress, nearest
from vitalk.systems.diffrate.schedule import Step, constant, gmacs
from vitalk.vision.cost import count
from vitalk.vision.tokens import Tokens

PARITY = Path(__file__).parents[1] / "parity"
SMALL = {"img_size": 32, "patch_size": 4, "embed_dim": 24, "depth": 4, "num_heads": 2, "num_classes": 5}
FOUND = Schedule((65, 60, 30, 12), (65, 50, 20, 5))


def small(**kwargs):
    torch.manual_seed(0)
    return VisionTransformer(**{**SMALL, **kwargs}).eval()


def caformer(depths=(1, 1, 3, 2), dims=(32, 64, 96, 128), classes=100, size=224):
    torch.manual_seed(0)
    mixers, norms = [SepConv] * 2 + [Attention] * 2, [LayerNorm2dNoBias] * 2 + [LayerNormNoBias] * 2
    model = MetaFormer(depths=depths, dims=dims, token_mixers=mixers, norm_layers=norms, num_classes=classes).eval()
    model.pretrained_cfg = {"input_size": (3, size, size)}
    return model


def fixture(name):
    found = parity.load(PARITY / f"diffrate.{name}.json")
    inputs = {key: torch.from_numpy(parity.tensor(key, **spec)) for key, spec in found["inputs"].items()}
    state = {key: torch.from_numpy(value) for key, value in parity.filled_state(found).items()}
    return found, inputs, state, found["outputs"]


def near(output, expected):
    return parity.distance(output.detach().numpy(), expected) < 1e-4


# The official model


@torch.inference_mode()
def test_agrees_with_the_official_deit_under_its_published_schedule():
    found, inputs, state, expected = fixture("deit_small_2.9g")
    run = timm.create_model("diffrate_deit_small").eval()
    run.load_state_dict(run.checkpoint_filter_fn({"model": state}, run))
    assert [(k, list(v.shape)) for k, v in run.state_dict().items()] == [(k, s) for k, s, _ in found["state"]]
    assert sum(p.numel() for p in run.parameters()) == found["params"]
    run.trace = True
    tokens = list(run.walk(inputs["image"]))
    for block in (1, 5, 11):
        assert near(tokens[block + 1].features, expected[f"block_{block}"])
    assert [t.features.shape[1] for t in tokens[1:]] == expected["token_count"]["value"]
    assert near(tokens[-1].size[..., None], expected["size_last"])
    class_row = torch.eye(3)[:, :1].expand(2, 3, 1)  # the release traces the class token as well
    assert near(torch.cat([class_row, (tokens[-1].source > 0).float()], 2), expected["source_last"])
    assert near(run(inputs["image"]), expected["logits"])
    assert run.schedule.macs(run.shape) / 1e9 == pytest.approx(expected["macs"]["value"][0], rel=1e-6)


@torch.inference_mode()
def test_agrees_with_the_official_caformer():
    found, inputs, state, expected = fixture("caformer_reduced")
    run = diffrate(caformer(), Schedule(None, (196, 150, 120, 49, 49)))
    run.load_state_dict(run.checkpoint_filter_fn({"module." + key: value for key, value in state.items()}, run))
    assert sum(p.numel() for p in run.parameters()) == found["params"]
    tokens = list(run.walk(inputs["image_e"]))
    assert [t.features.shape[1] for t in tokens] == expected["token_count"]["value"][2:]
    for block in range(3):
        assert near(tokens[block].features, expected[f"block_2_{block}"])
    assert near(run(inputs["image_e"]), expected["logits"])
    # The release counts 8 C x classes for the head; ours counts its two layers.
    assert run.schedule.macs(run.shape) / 1e9 == pytest.approx(expected["macs"]["value"][0], rel=1e-4)


def test_merges_as_the_official_functions_do():
    _, inputs, _, expected = fixture("proxy_and_merge")
    metric, x = inputs["metric"], inputs["x"]
    into, cosine = nearest(metric[:, 20:], metric[:, :20], 1)
    assert near(cosine, expected["best_similarity"])
    kept = x[:, :20].clone()
    absorb(kept, x[:, 20:], into)
    assert near(kept, expected["merge_mean"])
    into, _ = nearest(metric[:, 7:], metric[:, :7], 0)
    kept = x[:, :7].clone()
    absorb(kept, x[:, 7:], into)
    assert near(kept, expected["merge7_nocls_mean"])


# The method's invariants


@torch.inference_mode()
def test_a_schedule_that_removes_nothing_is_the_plain_model():
    model, image = small(), torch.randn(2, 3, 32, 32)
    assert torch.equal(diffrate(model, Schedule((65,) * 4, (65,) * 4))(image), model(image))
    assert not torch.allclose(diffrate(model, FOUND)(image), model(image))
    hierarchical, image = caformer((1, 1, 2, 1), (8, 16, 32, 64), 5, 64), torch.randn(2, 3, 64, 64)
    plain = diffrate(hierarchical, Schedule(None, (16, 16, 4)))(image)
    torch.testing.assert_close(plain, hierarchical(image))


@settings(deadline=None, max_examples=40)
@given(patches=st.integers(4, 30), prefix=st.integers(0, 3), data=st.data())
def test_tokens_account_for_every_patch_that_was_not_dropped(patches, prefix, data):
    entering, least = prefix + patches, max(prefix, 1) + 1
    pruned = data.draw(st.integers(least, entering))
    step = Step(entering, pruned, data.draw(st.integers(least, pruned)))
    source = torch.cat([torch.zeros(prefix, patches), torch.eye(patches)]).expand(2, -1, -1)
    tokens = Tokens(torch.randn(2, entering, 6), torch.rand(2, entering) + 1, source)
    score = torch.rand(2, entering)
    out, merge = compress(tokens, score, step, prefix)
    assert out.features.shape == (2, step.merged, 6) and out.size.shape == (2, step.merged)
    assert torch.equal(out.features[:, :prefix], tokens.features[:, :prefix])  # never ranked, and takes nothing in
    assert torch.equal(out.size[:, :prefix], tokens.size[:, :prefix])
    torch.testing.assert_close(out.source.sum(2)[:, prefix:], torch.ones(2, step.merged - prefix))  # plain means
    torch.testing.assert_close(out.source @ tokens.features[:, prefix:] + _prefix(tokens, out, prefix), out.features)
    best = prefix + score[:, prefix:].topk(pruned - prefix).indices
    assert torch.equal(out.source.sum(1) > 0, torch.zeros(2, patches).scatter(1, best - prefix, 1.0) > 0)
    assert torch.equal(merge.kept[:, prefix:], best[:, : step.merged - prefix])
    if not prefix:
        torch.testing.assert_close(out.size.sum(1), tokens.size.gather(1, best).sum(1))  # plain sums


def _prefix(tokens, out, prefix):
    alone = torch.zeros_like(out.features)
    alone[:, :prefix] = tokens.features[:, :prefix]
    return alone


def test_sizes_stay_positive_where_cosines_are_negative():
    features = torch.tensor([[[1.0, 0.0], [1.0, 0.1], [-1.0, 0.2]]])
    tokens = Tokens(features, torch.tensor([[1.0, 1.0, 9.0]]))
    out, _ = compress(tokens, torch.tensor([[0.5, 0.3, 0.2]]), Step(3, 3, 2), prefix=1)
    assert out.size[0, 0] == 1 and 0 < out.size[0, 1] < 1e-3 and out.size.log().isfinite().all()


@torch.inference_mode()
def test_mean_pooling_weighs_tokens_by_size():
    model, image = small(global_pool="avg"), torch.randn(2, 3, 32, 32)
    run = diffrate(model, Schedule((65, 60, 30, 12), (65, 50, 20, 12)))
    last = run.forward_tokens(image)
    weight = last.size[:, 1:, None]
    pooled = (last.features[:, 1:] * weight).sum(1) / weight.sum(1)
    torch.testing.assert_close(run(image), model.head(model.fc_norm(pooled)))


@torch.inference_mode()
def test_distillation_tokens_stay():
    torch.manual_seed(0)
    model = VisionTransformerDistilled(**SMALL).eval()
    run = diffrate(model, Schedule((66, 60, 30, 12), (66, 50, 20, 5)))
    entering = []
    run.reducers[1].register_forward_hook(lambda _, x, out: entering.append((x[0].features, out.features)))
    run(torch.randn(2, 3, 32, 32))
    assert torch.equal(entering[0][0][:, :2], entering[0][1][:, :2]) and entering[0][1].shape[1] == 50


@torch.inference_mode()
@pytest.mark.parametrize("make, size", [(lambda: diffrate(small(), FOUND), 32), (lambda: tiny_caformer(), 64)])
def test_nan_comes_out_as_nan(make, size):
    image = torch.randn(2, 3, size, size)
    image[0, 0, 3, 3] = float("nan")
    logits = make()(image)
    assert logits[0].isnan().all() and logits[1].isfinite().all()


def tiny_caformer():
    return diffrate(caformer((1, 1, 2, 1), (8, 16, 32, 64), 5, 64), Schedule(None, (16, 7, 4)))


@pytest.mark.parametrize("make, size", [(lambda: diffrate(small(), FOUND), 32), (tiny_caformer, 64)])
def test_trains_under_a_schedule_in_bfloat16(make, size):
    run = make().train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = run(torch.randn(2, 3, size, size)).float().square().mean()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in run.parameters())


@pytest.mark.parametrize(
    "make, size", [(lambda: diffrate(small(depth=2), Schedule((65, 40), (60, 9))), 32), (tiny_caformer, 64)]
)
def test_exports_to_onnx_with_any_batch(tmp_path, make, size):
    import onnxruntime

    run = make().eval()
    path = export_onnx(run, tmp_path / "net.onnx", Preprocess((size, size)), list("abcde"))
    session, images = onnxruntime.InferenceSession(path), torch.randn(3, 3, size, size)
    for batch in (1, 3):
        got = session.run(None, {"image": images[:batch].numpy()})[0]
        with torch.inference_mode():
            np.testing.assert_allclose(got, run(images[:batch]).numpy(), atol=1e-4)


# MACs and schedules


def test_macs_follow_the_papers_formula_and_the_counted_ones():
    model = timm.create_model("deit_small_patch16_224").eval()
    shape, image = geometry(model), torch.zeros(1, 3, 224, 224)
    assert shape.full / 1e9 == pytest.approx(4.60, abs=0.01)
    for schedule in (published("deit_small", 2.9).settled(shape), uniform(shape, 0.6, "merge")):
        assert count(diffrate(model, schedule), image).macs == pytest.approx(schedule.macs(shape), rel=0.01)
    embedded = timm.create_model("vitalk_eye").eval()  # a stem of convolutions
    assert count(embedded, torch.zeros(1, 3, 32, 32)).macs == pytest.approx(geometry(embedded).full, rel=0.01)
    hierarchical = caformer()
    assert count(hierarchical, image).macs == pytest.approx(geometry(hierarchical).full, rel=1e-3)


@pytest.mark.parametrize(
    "name, target, printed",
    [
        ("deit_small", 2.9, 2.905),
        ("deit_base", 11.5, 11.517),
        ("vit_base_mae", 11.5, 11.517),
        ("vit_large_mae", 42.3, 42.290),
        ("vit_huge_mae", 103.4, 103.337),
        ("caformer_s36", 5.6, 5.604),
    ],
)
def test_published_schedules_cost_what_the_release_prints(name, target, printed):
    with torch.device("meta"):
        run = timm.create_model(f"diffrate_{name}", schedule=target)
    assert run.schedule.macs(run.shape) / 1e9 == pytest.approx(printed, abs=0.0015)


def test_every_published_schedule_fits():
    known = json.loads(resources.files("vitalk.systems.diffrate").joinpath("published.json").read_text())
    assert sum(len(of) for of in known.values()) == 31
    for name, of in known.items():
        with torch.device("meta"):
            shape = timm.create_model(f"diffrate_{name}").shape
        steps = [published(name, target).settled(shape).steps(shape) for target in of]
        assert all(a.merged >= b.merged for run in steps for a, b in pairwise(run) if b.entering == a.merged)
        assert all(published(name, target).settled(shape).macs(shape) < 0.85 * shape.full for target in of)


@settings(deadline=None, max_examples=30)
@given(
    prune=st.lists(st.integers(2, 80), min_size=4, max_size=4),
    merge=st.lists(st.integers(2, 80), min_size=4, max_size=4),
)
def test_settling_changes_no_macs_and_never_grows(prune, merge):
    shape = geometry(small())
    raw = Schedule(tuple(prune), tuple(merge))
    settled = raw.settled(shape)
    assert settled.macs(shape) == raw.macs(shape) and settled.settled(shape) == settled
    assert all(s.entering >= s.pruned >= s.merged for s in settled.steps(shape))


@settings(deadline=None, max_examples=20)
@given(share=st.floats(0.45, 1.0), kind=st.sampled_from(["both", "prune", "merge"]))
def test_uniform_schedules_meet_their_target(share, kind):
    shape = geometry(small(img_size=64, embed_dim=48))
    found = uniform(shape, share, kind)
    assert found.macs(shape) == pytest.approx(share * shape.full, rel=0.01)
    steps = found.steps(shape)
    assert (
        steps[0].merged == 257
        and (found.merge is None) == (kind == "prune")
        and (found.prune is None) == (kind == "merge")
    )
    assert constant(shape, 1.0, kind).macs(shape) == shape.full


def test_a_schedule_comes_back_from_its_file(tmp_path):
    kept = replace(FOUND, model="some_vit", target=0.0123, tokens=65)
    path = kept.save(tmp_path / "schedule.json")
    assert Schedule.load(path) == kept and set(json.loads(path.read_text())) >= {"prune", "merge", "model", "target"}
    run = diffrate(small(), str(path))
    assert [step.merged for step in run.schedule.steps(run.shape)] == [65, 50, 20, 5]


def test_timm_makes_it_by_name(tmp_path):
    run = timm.create_model("diffrate_deit_tiny", schedule="0.8", num_classes=7)
    assert run.schedule == published("deit_tiny", 0.8) and run.num_classes == 7
    path = FOUND.save(tmp_path / "schedule.json")
    own = {key: value for key, value in SMALL.items() if key != "img_size"}
    given_file = timm.create_model("diffrate_timm", base="vit_tiny_patch16_224", img_size=32, schedule=str(path), **own)
    assert given_file.schedule == FOUND
    with torch.device("meta"):
        mae, hierarchical = timm.create_model("diffrate_vit_base_mae"), timm.create_model("diffrate_caformer_s36")
    assert mae.vit.global_pool == "avg" and "mae_finetuned_vit_base" in mae.pretrained_cfg["url"]
    assert mae.pretrained_cfg["mean"] == (0.485, 0.456, 0.406) and "fc_norm.weight" in mae.state_dict()
    assert sum(p.numel() for p in hierarchical.parameters()) == sum(
        p.numel() for p in timm.create_model("caformer_s36").parameters()
    )
    assert all(timm.is_model(f"diffrate_{name}") for name in ("deit_base", "vit_large_mae", "vit_huge_mae"))


def test_every_preset_names_what_exists():
    presets = yaml.safe_load(resources.files("vitalk.systems.diffrate").joinpath("recipe.yaml").read_text())["presets"]
    assert {"tiny", "cpu", "paper", "finetune"} == set(presets)
    for preset in presets.values():
        options = preset["model"]["init_args"]
        model = timm.create_model(options["model"], **{**options.get("model_args", {}), "pretrained": False})
        if "target" in options:
            assert gmacs(geometry(model), options["target"]) > 0


# Refusals


@pytest.mark.parametrize("target", [0, -0.5, 1.01, 2.9, float("nan"), "0G"])
def test_refuses_targets_that_mean_nothing(target):
    with pytest.raises(UserError, match=r"in \(0, 1\]|cannot be reached"):
        gmacs(geometry(small()), target)


def test_refuses_targets_that_cannot_be_reached():
    shape = geometry(small())
    for target in (0.01, "9G"):
        with pytest.raises(UserError, match="cannot be reached: the model has"):
            uniform(shape, target)
    with pytest.raises(UserError, match="'much' is no target"):
        gmacs(shape, "much")


def test_refuses_schedules_that_do_not_fit(tmp_path):
    model = small()
    for prune, merge, message in [
        ((65, 30, 31, 20), None, "block 2 is to keep 31 of 30 tokens; a schedule never grows"),
        ((65, 30, 20, 20), (65, 30, 25, 20), "merging in block 2 is to keep 25 of 20"),
        ((65, 30, 20, 1), None, "block 3 would be left with 1 tokens; keep 2"),
        ((65, 30, 20), None, "for 3 blocks, the model has 4"),
    ]:
        with pytest.raises(UserError, match=message):
            diffrate(model, Schedule(prune, merge))
    with pytest.raises(UserError, match="found for 197 tokens, the model has 65"):
        diffrate(model, replace(FOUND, tokens=197))
    for fields in (
        {},
        {"prune": []},
        {"merge": [3, 0]},
        {"merge": [3.5]},
        {"prune": [3], "merge": [2, 1]},
        {"rate": 1},
        {"prune": 5},
    ):
        with pytest.raises(UserError, match=r"schedule|whole numbers"):
            Schedule.of(fields)
    broken = tmp_path / "broken.json"
    broken.write_text("[1, 2")
    for path, message in ((broken, "is not a schedule"), (tmp_path / "none.json", "there is no schedule")):
        with pytest.raises(UserError, match=message):
            diffrate(model, str(path))
    with pytest.raises(UserError, match=r"there are 2.3, 2.5"):
        timm.create_model("diffrate_deit_small", schedule=1.2)
    with pytest.raises(UserError, match="needs a schedule"):
        timm.create_model("diffrate_timm")
    with pytest.raises(UserError, match="merged only"):
        diffrate(caformer(), Schedule((196,) * 3 + (49,) * 2, None))


def test_refuses_models_that_it_cannot_rank():
    with pytest.raises(UserError, match=r"this model has none; tome .* and mctf"):
        diffrate(small(class_token=False, global_pool="avg"), FOUND)
    with pytest.raises(UserError, match="global_pool 'token' or 'avg', this model has 'max'"):
        diffrate(small(global_pool="max"), FOUND)
    with pytest.raises(UserError, match="ResNet is no timm VisionTransformer"):
        geometry(timm.create_model("resnet10t"))
    with pytest.raises(UserError, match="this MetaFormer has none"):
        geometry(MetaFormer(depths=(1, 1), dims=(8, 16)))
    with pytest.raises(UserError, match="no feature maps"):
        timm.create_model("diffrate_deit_tiny", features_only=True)


def test_refuses_pictures_of_another_size():
    with pytest.raises(UserError, match="145 tokens enter a block whose schedule was made for 65"):
        diffrate(small(dynamic_img_size=True), FOUND)(torch.randn(1, 3, 48, 48))
