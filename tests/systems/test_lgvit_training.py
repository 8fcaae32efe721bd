"""LGViT's two stages of training, its threshold sweep and its measurement."""

import json
from importlib import resources

import pytest
import timm
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning import Trainer
from torch.utils.data import DataLoader, TensorDataset

from tests.systems.test_lgvit import pictures, small
from vitalk.errors import UserError
from vitalk.systems.lgvit import LGViT, Rule, plot, record, reproduce, rules, save, sweep
from vitalk.systems.lgvit.losses import groups, heterogeneous_loss, homogeneous_loss
from vitalk.systems.lgvit.sweep import Costs, Point, Recorded, cheapest, costs
from vitalk.systems.lgvit.training import DistilledClassifier, JointClassifier
from vitalk.vision.classifier import soft_labels

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2}


def classifier(kind, **options):
    torch.manual_seed(0)
    return kind("lgvit_cifar", {**SMALL, "drop_path_rate": 0.2}, num_classes=5, lr=1e-2, **options)


def train(module, tmp_path, steps=4):
    torch.manual_seed(1)
    loader = DataLoader(TensorDataset(pictures(16), torch.arange(16) % 5), batch_size=8)
    options = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False}
    options |= {"enable_model_summary": False, "enable_checkpointing": False, "num_sanity_val_steps": 0}
    trainer = Trainer(default_root_dir=tmp_path, max_steps=steps, max_epochs=9, **options)
    trainer.fit(module, loader, loader)
    return trainer


# Stage 1


@pytest.mark.filterwarnings("ignore")
def test_stage_one_takes_turns(tmp_path):
    module, touched = classifier(JointClassifier), []

    def note(*_):
        touched.append([any(p.grad is not None and p.grad.any() for p in part.parameters())
                        for part in (module.model.exits, module.model.trunk)])  # fmt: skip

    module.on_before_optimizer_step = note
    train(module, tmp_path)
    assert touched == [[False, True], [True, True], [False, True], [True, True]]


@pytest.mark.filterwarnings("ignore")
def test_validation_tells_early_exit_from_the_final_classifier(tmp_path):
    module = classifier(JointClassifier)
    module.model.rule = Rule("confidence", 0.0)
    told = train(module, tmp_path, steps=2).callback_metrics
    assert told["val/layer"] == 1.0 and set(told) > {"val/top1", "val/top1_final", "val/top1_exits", "val/loss"}
    recorded = record(module.model, [(pictures(16), torch.arange(16) % 5)])
    *exits, final = recorded.top1()
    assert told["val/top1"] == pytest.approx(exits[0] / 100)
    assert told["val/top1_final"] == pytest.approx(final / 100)
    assert told["val/top1_exits"] == pytest.approx(sum(exits) / len(exits) / 100)


def test_training_refuses_what_cannot_be_trained():
    with pytest.raises(UserError, match="has no exits to train"):
        JointClassifier("vitalk_eye", num_classes=10)
    with pytest.raises(UserError, match="a batch of one cannot train"):
        classifier(JointClassifier).training_step((pictures(1), torch.zeros(1, dtype=torch.long)), 0)
    module = classifier(JointClassifier)
    with pytest.raises(UserError, match="the loss became nan"):
        module.training_step((pictures(4) * float("nan"), torch.zeros(4, dtype=torch.long)), 0)


# Stage 2


@pytest.mark.filterwarnings("ignore")
def test_stage_two_moves_the_heads_alone(tmp_path):
    module = classifier(DistilledClassifier)
    before = {name: value.clone() for name, value in module.model.state_dict().items()}
    modes = []
    module.on_before_optimizer_step = lambda *_: modes.append(
        (module.model.trunk.training, module.model.exits.training)
    )
    train(module, tmp_path)
    assert modes == [(False, True)] * 4 and not module.model.vit.blocks[1].drop_path1.training
    after = module.model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before if not name.startswith("exits."))
    assert all(not torch.equal(after[name], before[name]) for name in before if name.startswith("exits."))


def test_stage_two_learns_from_the_labels_and_from_the_end():
    module = classifier(DistilledClassifier, heterogeneous=0.0, homogeneous=0.0)
    target, images = soft_labels(torch.arange(9) % 5, 5, 0.0), pictures()
    passed = module.model.forward_exits(images, frozen=True)
    labels = sum(-(target * e.logits.log_softmax(1)).sum(1).mean() for e in passed.exits)
    module.hparams.alpha = 0.0
    torch.testing.assert_close(module.objective(images, target), labels)
    module.hparams.alpha = 1.0
    same = [(e.logits / 2).log_softmax(1) for e in passed.exits]
    end = (passed.logits / 2).log_softmax(1)
    wanted = sum(4 * (end.exp() * (end - x)).sum() / x.numel() for x in same)
    torch.testing.assert_close(module.objective(images, target), wanted)


def test_the_last_head_of_a_kind_is_held_still_unless_asked():
    model = small(layers=(1, 2, 3), heads=("lph3", "lph1", "gah1")).train()
    for detach in (True, False):
        model.zero_grad()
        homogeneous_loss(model.forward_exits(pictures()), model.kinds, detach).backward()
        moved = [any(p.grad is not None and p.grad.any() for p in head.body.parameters()) for head in model.exits]
        assert moved == [True, not detach, False]


def test_features_of_other_widths_are_left_out():
    from timm.models.swin_transformer import SwinTransformer

    model = small(SwinTransformer)
    kinds = model.kinds
    assert groups(kinds)[0] == [i for i, kind in enumerate(kinds) if kind.startswith("lph")]
    passed = model.forward_exits(pictures())
    widths = {e.tokens.shape[-1] for e in passed.exits}
    assert len(widths) > 1 and homogeneous_loss(passed, kinds).isfinite() and heterogeneous_loss(passed, kinds) >= 0


@pytest.mark.filterwarnings("ignore")
def test_stage_two_starts_from_the_file_of_stage_one(tmp_path):
    from vitalk.deploy.load import load_model

    class Data:
        classes = list("abcde")

        def preprocess_cfg(self):
            return {"input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.5,) * 3}

    first = classifier(JointClassifier)
    first.save_weights(tmp_path / "model.safetensors", Data())
    second = classifier(DistilledClassifier, init=str(tmp_path / "model.safetensors"))
    assert all(torch.equal(v, first.model.state_dict()[k]) for k, v in second.model.state_dict().items())
    assert all(p.requires_grad == name.startswith("exits.") for name, p in second.model.named_parameters())
    loaded = load_model(str(tmp_path / "model.safetensors"))
    assert isinstance(loaded.model, LGViT) and loaded.labels == list("abcde")


def test_every_preset_of_the_recipe_names_a_model_that_exists():
    text = resources.files("vitalk.systems.lgvit").joinpath("recipe.yaml").read_text()
    presets = yaml.safe_load(text)["presets"]
    stages = ("tiny", "cpu", "paper")
    assert set(presets) == {*stages, *(f"{name}-distill" for name in stages)}
    for stage in stages:
        first, second = (presets[name]["model"]["init_args"] for name in (stage, f"{stage}-distill"))
        assert second["init"] == f"runs/lgvit-{stage}/model.safetensors" and first["model"] == second["model"]
        kwargs = {**first.get("model_args", {}), "pretrained": False}
        assert "deit_base" in first["model"] or len(timm.create_model(first["model"], **kwargs).exits) in (4, 8)
        later = {**second.get("model_args", {}), "pretrained": False}
        assert {k: v for k, v in kwargs.items() if k != "drop_path_rate"} == later


# The sweep


def recorded(exits=3, count=50, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(exits + 1, count, 5, generator=generator) * torch.arange(1, exits + 2)[:, None, None]
    price = Costs(400, tuple(120 * (i + 1) for i in range(exits + 1)))
    return Recorded(logits, torch.randint(5, (count,), generator=generator), (*range(1, exits + 1), exits + 1), price)


@settings(deadline=None, max_examples=20)
@given(exits=st.integers(1, 5), seed=st.integers(0, 50), kind=st.sampled_from(["confidence", "entropy", "patience"]))
def test_stricter_thresholds_go_deeper_and_cost_more(exits, seed, kind):
    found = sweep(recorded(exits, seed=seed), rules(kind, exits, 5))
    layers = [point.layer for point in found]
    assert layers == sorted(layers) and all(sum(p.shares) == pytest.approx(1) for p in found)
    assert found[-1].layer == exits + 1 and found[-1].speedup == 1
    assert found[-1].macs == 400 and found[-1].macs_speedup == 1  # no head is asked where none can fire
    going = [p.macs for p in found if not Rule(p.rule, p.threshold, p.patience).never(exits)]
    assert going == sorted(going)


def test_a_point_is_the_mean_over_pictures():
    said, rule = recorded(), Rule("confidence", 0.0)
    point = sweep(said, [rule])[0]
    assert point.layer == 1 and point.speedup == 4 and point.macs == 120 and point.shares == (1, 0, 0, 0)
    assert point.top1 == pytest.approx(said.top1()[0])
    half = sweep(said, [Rule("confidence", 0.6)])[0]
    share = said.logits[:-1].softmax(-1).amax(-1)
    layers = [next((i + 1 for i in range(3) if share[i, b] > 0.6), 4) for b in range(50)]
    assert half.layer == pytest.approx(sum(layers) / 50) and half.macs == pytest.approx(120 * sum(layers) / 50)


def test_one_pass_records_what_inference_does():
    model, labels = small(), torch.arange(12) % 5
    said = record(model, [(pictures(12)[:7], labels[:7]), (pictures(12)[7:], labels[7:])])
    assert said.logits.shape == (4, 12, 5) and said.layers == (1, 2, 3, 4) and not model.training
    for rule in (Rule("confidence", 0.7), Rule("patience", patience=2)):
        model.rule = rule
        with torch.inference_mode():
            left = model.infer(pictures(12))
        point = sweep(said, [rule])[0]
        assert point.layer == pytest.approx(left.layer.double().mean().item())
        assert point.top1 == pytest.approx(100 * (left.logits.argmax(1) == labels).double().mean().item())


def test_costs_count_the_heads():
    model = small()
    found = costs(model, pictures(1))
    assert list(found.until) == sorted(found.until) and found.until[0] < found.plain < found.until[-1]
    # 16 patches of width 32: two convolutions of 1 x 1 and one of 3 x 3 depthwise, and the classifier
    plain_block = 17 * 12 * 32**2 + 2 * 17**2 * 32
    embedding = 16 * 32 * 3 * 64
    lph3 = 16 * (2 * 32**2 + 9 * 32) + 32 * 5
    assert found.until[0] == embedding + plain_block + lph3
    assert found.heads == pytest.approx(found.until[-1] / found.plain - 1)


def test_sweeps_refuse_nothing_and_nan(tmp_path):
    with pytest.raises(UserError, match="no pictures to sweep"):
        record(small(), [])
    with pytest.raises(UserError, match="classifier after layer 1 gives NaN"):
        record(small(), [(pictures(2) * float("nan"), torch.zeros(2, dtype=torch.long))])


def test_sweeps_are_kept_and_drawn(tmp_path):
    points = sweep(recorded(), rules("confidence", 3, 5, steps=10))
    kept = json.loads(save(points, tmp_path / "sweep.json").read_text())
    assert len(kept) == 11 and Point(**{**kept[3], "shares": tuple(kept[3]["shares"])}) == points[3]
    drawn = plot({"exits": points}, tmp_path / "sweep.png")
    assert drawn.read_bytes().startswith(b"\x89PNG")
    full = points[-1].top1
    assert cheapest(points, full, 100).speedup == max(p.speedup for p in points) and cheapest(points, 200, 1) is None


# The measurement


@pytest.mark.parametrize(
    "loss, layers, clock, shallow, stage, verdict",
    [
        (0.5, 1.9, 1.3, [1.0, 2.0], [0.2, 0.1], "reproduced"),
        (0.5, 1.7, 1.3, [1.0, 2.0], [0.2, 0.1], "direction only"),
        (0.5, 1.9, 1.3, [1.0, 2.0], [0.2, -0.1], "direction only"),
        (0.5, 1.9, 1.3, [1.0, -2.0], [0.2, 0.1], "direction only"),
        (0.5, 1.9, 1.3, [1.0, -2.0], [0.2, -0.1], "not reproduced"),
        (1.5, 1.9, 1.3, [1.0, 2.0], [0.2, 0.1], "not reproduced"),
        (0.5, 1.9, 0.9, [1.0, 2.0], [0.2, 0.1], "not reproduced"),
        (0.5, 1.1, 1.1, [1.0, 2.0], [0.2, 0.1], "not reproduced"),
    ],
)
def test_the_verdict_follows_from_the_figures(loss, layers, clock, shallow, stage, verdict):
    speed = reproduce.Efficiency(layers, 1.4, {1: clock, 16: 1.2})
    assert reproduce.judge(loss, speed, shallow, stage) == verdict
    point = Point("confidence", 0.9, 1, 89.0 - loss, 2.0, layers, 1.0, 1.4, (0.5, 0.5))
    seeds = []
    for a, b in zip(shallow, stage, strict=True):
        names = {name: [70.0, 80.0, 85.0, 89.0] for name in ("linear", "LGViT, longer stage 1", "all local")}
        names |= {"LGViT": [70.0 + a, 80.0, 85.0, 89.0], "LGViT, stage 2": [70.0 + 3 * b, 80.0, 85.0, 89.0]}
        seeds.append(reproduce.Seed(names, point, 89.0, {"LGViT": [point]}))
    written = reproduce.report(seeds, speed, reproduce.Efficiency(1.71, 1.6, {1: 1.5, 16: 1.5}), 9, 100)
    assert written.verdict == verdict and f"{layers:.2f}x fewer layers" in written.measured
    assert written.details["shallow_gains"] == shallow
    assert written.details["stage_2_gains"] == pytest.approx(stage)


@pytest.mark.filterwarnings("ignore")
def test_a_seed_trains_everything_once_from_the_embedded_weights(monkeypatch):
    monkeypatch.setattr(reproduce, "HEADS", {"LGViT": "lgvit", "linear": "linear"})
    monkeypatch.setattr(reproduce, "BATCH", 8)
    labels = torch.arange(16) % 10
    test = reproduce.Pictures(torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8), labels)
    train_set = reproduce.Pictures(test.pixels.repeat(2, 1, 1, 1), labels.repeat(2), padding=1)
    doing = []
    found, model, rule = reproduce.one_seed(train_set, test, 2, 0, lambda *text: doing.append(text))
    assert set(found.top1) == {"LGViT", "linear", "LGViT, stage 2", "LGViT, longer stage 1"}
    assert found.top1["LGViT, stage 2"][-1] == found.top1["LGViT"][-1]  # the network did not move in stage 2
    assert all(len(values) == 4 for values in found.top1.values()) and doing.count(()) == 8
    assert rule.kind == "confidence" and 1 <= found.point.layer <= 4 and found.full >= 0
    ratios = reproduce.clock(model.vit, model, pictures(4), (1, 4), 0.0)
    assert set(ratios) == {1, 4} and min(ratios.values()) > 0


def test_the_papers_size_is_counted_and_timed(monkeypatch):
    model = timm.create_model("lgvit_cifar", embed_dim=24, num_heads=2)
    monkeypatch.setattr(reproduce.timm, "create_model", lambda name: model)
    found = reproduce.paper_size(0.0, sizes=(1, 2))
    assert found.layers == 12 / 7 and 1 < found.macs < found.layers and set(found.clock) == {1, 2}
