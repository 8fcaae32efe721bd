"""MCTF's training with consistency, its recipe, and its measurement."""

from importlib import resources
from pathlib import Path

import pytest
import timm
import torch
import yaml

from tests.parity import parity
from vitalk.systems.mctf import ConsistentClassifier, FuseTokens, reproduce, with_r
from vitalk.systems.mctf.training import accepted, consistency_loss, draw_r, finish
from vitalk.vision.classifier import soft_labels
from vitalk.vision.experiments import Pictures, fit

FIXTURE = parity.load(Path(__file__).parents[1] / "parity" / "mctf.deit_tiny_r16.json")
TINY = {"img_size": 32, "patch_size": 4, "embed_dim": 24, "depth": 4, "num_heads": 2, "r": 9}


def classifier(**kwargs):
    torch.manual_seed(0)
    options = {"num_classes": 5, "teacher_r": 4, **kwargs}
    module = ConsistentClassifier("mctf_deit_tiny", {**TINY, **options.pop("model_args", {})}, **options)
    module.log = lambda *_, **__: None
    return module


def pictures(count=20, classes=5):
    return Pictures(torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8), torch.arange(count) % classes, 1)


@torch.inference_mode()
def test_both_passes_agree_with_the_official_training():
    run = timm.create_model("mctf_deit_tiny").eval()
    run.load_state_dict({key: torch.from_numpy(value) for key, value in parity.filled_state(FIXTURE).items()})
    embedded = run.embed(torch.from_numpy(parity.tensor("image_e", **FIXTURE["inputs"]["image_e"])))
    (student, features), (teacher, taught) = finish(run, embedded), finish(with_r(run, 0), embedded)
    expected = FIXTURE["outputs"]
    assert parity.distance(student.numpy(), expected["train_student_logits"]) < 1e-4
    assert parity.distance(teacher.numpy(), expected["train_teacher_logits"]) < 1e-4
    apart = [consistency_loss(features, taught, torch.eye(2, dtype=torch.bool)[i]).item() for i in range(2)]
    assert parity.distance(torch.tensor(apart).numpy(), expected["train_consistency"]) < 1e-4


def test_only_sure_pictures_teach_consistency():
    logits = torch.tensor([[9.0, 0, 0], [0, 9, 0], [4.0, 4, 0]], requires_grad=True)
    target = soft_labels(torch.tensor([0, 0, 0]), 3, 0.1)
    assert accepted(logits, target, 0.1, 0.4).tolist() == [True, False, True]
    mixed = 0.3 * target + 0.7 * target.flip(1)  # both labels count together, and one that is both counts once
    assert accepted(logits, mixed, 0.1, 0.6).tolist() == [True, False, False]
    assert accepted(logits, target, 0.1, 0.6).tolist() == [True, False, False]
    features, taught = torch.ones(3, 4, requires_grad=True), torch.zeros(3, 4, requires_grad=True)
    assert consistency_loss(features, taught, torch.zeros(3, dtype=torch.bool)) == 0
    loss = consistency_loss(features * torch.tensor([[1.0], [5], [3]]), taught, torch.tensor([True, False, True]))
    loss.backward()
    assert loss == (1 + 9) / 2 and taught.grad is None and features.grad[1].abs().sum() == 0


def test_the_teacher_draws_every_strength_below_its_own():
    torch.manual_seed(0)
    assert {draw_r(8) for _ in range(200)} == set(range(8))
    assert {draw_r(0.15) for _ in range(400)} == {percent / 100 for percent in range(15)}
    assert draw_r(0) == draw_r(0.004) == draw_r(1) == 0


@pytest.mark.parametrize("args", [{}, {"class_token": False, "global_pool": "avg"}])
def test_the_loss_is_the_sum_of_its_parts(args):
    images, target = torch.randn(4, 3, 32, 32), soft_labels(torch.arange(4), 5, 0.1)
    losses = {}
    for name, weights in {"all": (1, 1, 3), "student": (1, 0, 0), "teacher": (0, 1, 0), "apart": (0, 0, 3)}.items():
        module = classifier(
            model_args=args, threshold=-1.0, teacher_r=1,
            **dict(zip(("student_weight", "teacher_weight", "consistency"), weights, strict=True)),
        )  # fmt: skip
        losses[name] = module.objective(images, target).item()
    assert losses["all"] == pytest.approx(losses["student"] + losses["teacher"] + losses["apart"], rel=1e-5)
    assert losses["apart"] > 0 and losses["student"] != losses["teacher"]
    assert classifier(threshold=1.0, student_weight=0, teacher_weight=0).objective(images, target) == 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", [{}, {"mixup": 0.8, "cutmix": 1.0, "fused_attn": False}, {"teacher_r": 0.15}])
def test_trains(options):
    module = classifier(lr=1e-2, **options)
    before = module.model.vit.blocks[2].attn.qkv.weight.clone()
    fit(module, pictures(), 2, 10)
    assert module.trainer.global_step == 2 and not torch.equal(before, module.model.vit.blocks[2].attn.qkv.weight)


def test_bad_training_is_refused():
    with pytest.raises(ValueError, match="fuses no tokens; choose an mctf_"):
        ConsistentClassifier("deit_tiny_patch16_224", num_classes=5)
    with pytest.raises(ValueError, match="no blocks that fuse"):
        classifier(model_args={"blocks": ()})
    with pytest.raises(ValueError, match="r must be a share"):
        classifier(teacher_r=-1)
    with pytest.raises(ValueError, match="the loss became nan"):
        classifier().training_step((torch.full((2, 3, 32, 32), float("nan")), torch.tensor([0, 1])), 0)


def test_every_preset_of_the_recipe_names_a_model_that_exists():
    presets = yaml.safe_load(resources.files("vitalk.systems.mctf").joinpath("recipe.yaml").read_text())["presets"]
    assert {"tiny", "cpu", "paper", "finetune"} == set(presets)
    for preset in presets.values():
        options = preset["model"]["init_args"]
        options["model_args"].pop("pretrained", None)
        module = ConsistentClassifier(num_classes=10, **options)
        size = preset["data"]["init_args"]["size"]
        assert module.model.vit.patch_embed.img_size == (size, size)
        assert module.hparams.teacher_r < next(r.r for r in module.model.reducers if isinstance(r, FuseTokens))


# The measurement


def efficiency(macs=2.6, speed=1.5):
    seconds = {"plain": 1.0, "MCTF": 1 / speed, "MCTF-Fast": 1 / speed}
    return reproduce.Efficiency({"plain": 4.6, "MCTF": macs, "MCTF-Fast": 2.8}, {1: seconds, 16: seconds})


@pytest.mark.parametrize(
    ("speed", "over_tome", "over_random", "criteria", "helped", "kept", "verdict"),
    [
        (1.5, 1.0, 2.0, (0.1, 0.1), (0.1, 0.2), 0.1, "reproduced"),
        (1.2, 1.0, 2.0, (0.1, 0.1), (0.1, 0.2), 0.1, "direction only"),
        (1.5, 0.3, 2.0, (0.1, 0.1), (0.1, 0.2), 0.1, "direction only"),
        (1.5, 1.0, 2.0, (0.1, -0.1), (0.1, 0.2), 0.1, "direction only"),
        (1.5, 1.0, 2.0, (0.1, 0.1), (-0.1, 0.2), 0.1, "direction only"),
        (1.5, 1.0, 2.0, (0.1, 0.1), (0.1, 0.2), -0.1, "direction only"),
        (1.5, -0.1, 2.0, (0.1, 0.1), (0.1, 0.2), 0.1, "not reproduced"),
        (1.5, 1.0, 0.3, (0.1, 0.1), (0.1, 0.2), 0.1, "not reproduced"),
        (1.5, 1.0, 2.0, (0.1, 0.1), (-0.3, 0.2), 0.1, "not reproduced"),
    ],
)
def test_the_verdict_follows_from_the_figures(speed, over_tome, over_random, criteria, helped, kept, verdict):
    shelf = {"MCTF over ToMe": over_tome, "MCTF over random": over_random, "ToMe over random": 1.0}
    shelf = {name: (points, 0.2) for name, points in shelf.items()}
    assert reproduce.judge(efficiency(speed=speed), shelf, criteria, helped, kept) == verdict
    assert reproduce.judge(efficiency(macs=2.9), shelf, criteria, helped, kept) == "not reproduced"


@pytest.mark.filterwarnings("ignore")
def test_the_measurement_compares_everything_on_one_network():
    torch.manual_seed(0)
    vit = timm.create_model("deit_tiny_patch16_224", **{k: v for k, v in TINY.items() if k != "r"}, num_classes=10)
    weights, test = {name: value.clone() for name, value in vit.state_dict().items()}, pictures(20, 10)
    train = Pictures(test.pixels.repeat(14, 1, 1, 1), test.labels.repeat(14), 1)
    test = Pictures(test.pixels, test.labels)
    shelf = reproduce.off_the_shelf(vit, test, lambda *_: None)
    assert len(shelf) == 9 and all(known.shape == (20,) for known in shelf.values())
    tuned = {name: reproduce.tune(vit, name, train, 2, 0, lambda: None)[0] for name in reproduce.TRAININGS}
    assert all(torch.equal(value, weights[name]) for name, value in vit.state_dict().items())  # copies are tuned
    found = [{name: 100 * float(reproduce.right(model, test).mean()) for name, model in tuned.items()}] * 2
    written = reproduce.report(efficiency(), shelf, found, {"MCTF, three criteria": 0.4}, 2)
    assert "x1.50 at batch 1" in written.measured and "40% of their MACs saved" in written.data


def test_as_many_tokens_go_by_every_reduction_of_the_embedded_classifier():
    vit = timm.create_model("vitalk_eye").eval()
    images = torch.randn(1, 3, 32, 32)
    counts = {
        name: [tokens.features.shape[1] for tokens in model.walk(images)]
        for name, model in reproduce.reductions(vit).items()
    }
    assert set(map(tuple, counts.values())) == {(65, 53, 41, 29, 17)}
    costs = {name: reproduce.block_macs(model, images) for name, model in reproduce.reductions(vit).items()}
    assert 1 - costs["MCTF, three criteria"] / reproduce.block_macs(vit, images) == pytest.approx(0.42, abs=0.005)


def test_efficiency_compares_the_same_pictures():
    found = reproduce.efficiency(0.0, "deit_tiny_patch16_224", (1,))
    assert [round(m, 2) for m in found.macs.values()] == [1.25, 0.71, 0.75] and found.speedup("MCTF", 1) > 0
