"""SiT's training: the losses, who teaches whom, the rates, and what is left of it in the model's file."""

import json
import os
import subprocess
import sys

import pytest
import timm
import torch
import torch.nn.functional as F
from lightning import Callback, Trainer
from safetensors.torch import load_file
from torch.utils.data import DataLoader, TensorDataset

from vitalk.deploy.load import load_model
from vitalk.errors import UserError
from vitalk.files import write_tensors
from vitalk.systems.sit import ReverseSlimming
from vitalk.systems.sit.training import SlimmingClassifier, falling, logit_loss, token_loss
from vitalk.training import run

SMALL = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 4, "num_heads": 2}
STAGES = {"stage_blocks": [2, 1, 1]}
PREPROCESS = {"input_size": (3, 16, 16), "crop_pct": 1.0, "interpolation": "bicubic"} | {
    "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5),
}  # fmt: skip


def saved(path, name="lvvit_tiny", classes=3, **changes):
    """A file as ``vitalk train`` writes it, with random weights."""
    torch.manual_seed(0)
    args = {**SMALL, **changes}
    model = timm.create_model(name, num_classes=classes, **args)
    labels = [str(i) for i in range(classes)]
    meta = {"model": name, "model_args": args, "preprocess": PREPROCESS, "labels": labels}
    write_tensors(path, model.state_dict(), {k: v if k == "model" else json.dumps(v) for k, v in meta.items()})
    return str(path)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("teacher") / "model.safetensors")


def student(teacher, model_args=None, **options):
    torch.manual_seed(1)
    args = {"vit": "lvvit_tiny", **SMALL, **STAGES, **(model_args or {})}
    return SlimmingClassifier("sit_vit", teacher, args, **{"num_classes": 3, "lr": 1e-3, **options})


def fit(model, pictures=8, **options):
    data = TensorDataset(torch.randn(pictures, 3, 16, 16), torch.arange(pictures) % 3)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(accelerator="cpu", devices=1, enable_model_summary=False, **quiet, **options)
    trainer.fit(model, DataLoader(data, batch_size=4))
    return trainer


# Losses


def test_the_student_starts_as_its_teacher(teacher):
    """Without slimming the two are one network: nothing is left to distil."""
    model = student(teacher, {"keep": 1.0}).eval()
    images = torch.randn(2, 3, 16, 16)
    found = model.losses(images, torch.eye(3)[:2])
    assert found["tokens"].item() == 0 and abs(found["logits"].item()) < 1e-6
    with torch.inference_mode():
        expected = load_model(teacher).model(images)
        torch.testing.assert_close(model(images), expected)
    torch.testing.assert_close(found["labels"], F.cross_entropy(expected, torch.tensor([0, 1])), rtol=1e-4, atol=1e-5)


def test_the_losses_are_the_papers(teacher):
    model = student(teacher, token_weight=2.0, logit_weight=3.0, tau=2.0).eval()
    images, target = torch.randn(2, 3, 16, 16), torch.eye(3)[:2]
    found = model.losses(images, target)
    logits, patches = model.model.observe(images)
    judged, originals = model.teacher[0].observe(images)
    assert [x.shape[1] for x in patches] == [16, 8, 4, 4] and all(x.shape[1] == 16 for x in originals)
    errors = [((r(x) - y) ** 2).mean() for r, x, y in zip(model.rtsm, patches, originals, strict=True)]
    torch.testing.assert_close(found["tokens"], 2 * sum(errors) / 4)
    p, q = (judged / 2).softmax(1), (logits / 2).softmax(1)
    torch.testing.assert_close(found["logits"], 3 * 4 * (p * (p / q).log()).sum() / 2)
    assert found.keys() == {"labels", "tokens", "logits"}


def test_no_loss_where_student_and_teacher_agree():
    x = torch.randn(4, 7, 5)
    assert token_loss([x, x], [x, x]) == 0 and token_loss([x, x + 1], [x, x]) == pytest.approx(0.5)
    assert logit_loss(x[:, 0], x[:, 0], 1.5) == pytest.approx(0, abs=1e-6)


def test_reverse_modules_from_the_first_slimmed_block_on(teacher):
    model = student(teacher)
    kinds = [isinstance(module, ReverseSlimming) for module in model.rtsm]
    assert kinds == [False, True, True, True]
    assert [module.mlp1.fc1.in_features for module in model.rtsm[1:]] == [8, 4, 4]
    assert len(student(teacher, token_weight=0.0).rtsm) == 0


def test_everything_that_learns_is_reached(teacher):
    model = student(teacher)
    sum(model.losses(torch.randn(4, 3, 16, 16), torch.eye(3)[[0, 1, 2, 0]]).values()).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert not any(p.requires_grad for p in model.teacher[0].parameters()) and not model.teacher[0].training
    assert not any("teacher" in key for key in model.state_dict())


# A second teacher


@pytest.fixture(scope="module")
def cnn(tmp_path_factory):
    path = tmp_path_factory.mktemp("cnn") / "model.safetensors"
    torch.manual_seed(0)
    model = timm.create_model("resnet10t", num_classes=3)
    meta = {"model": "resnet10t", "model_args": {}, "preprocess": PREPROCESS, "labels": ["0", "1", "2"]}
    write_tensors(path, model.state_dict(), {k: v if k == "model" else json.dumps(v) for k, v in meta.items()})
    return str(path)


def test_a_distillation_token_learns_the_second_teachers_decisions(teacher, cnn):
    model = student(teacher, {"distilled": True}, cnn_teacher=cnn, cnn_weight=0.5)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    images = torch.randn(2, 3, 16, 16)
    found = model.losses(images, torch.eye(3)[:2])
    (logits, distilled), patches = model.model.observe(images)
    decided = load_model(cnn).model(images).argmax(1)
    torch.testing.assert_close(found["cnn"], 0.5 * F.cross_entropy(distilled, decided))
    assert [x.shape[1] for x in patches] == [16, 8, 4, 4]
    sum(found.values()).backward()
    assert model.model.vit.head_dist.weight.grad.abs().max() > 0
    model.eval()
    torch.testing.assert_close(model(images), (logits + distilled) / 2)


def test_the_token_is_new_and_the_rest_the_teachers(teacher, cnn):
    vit, plain = student(teacher, {"distilled": True}, cnn_teacher=cnn).model.vit, load_model(teacher).model
    assert torch.equal(vit.pos_embed[:, :1], plain.pos_embed[:, :1])
    assert torch.equal(vit.pos_embed[:, 2:], plain.pos_embed[:, 1:])
    assert vit.pos_embed[:, 1].abs().max() > 0 and torch.equal(vit.head.weight, plain.head.weight)


# Rates


def test_rates_fall_once_an_epoch_to_the_least_and_stay(teacher):
    model, seen = student(teacher, min_lr=1e-4, cooldown_epochs=2), []

    class Watch(Callback):
        def on_train_batch_start(self, trainer, *_):
            seen.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    fit(model, max_epochs=6, callbacks=[Watch()])
    assert seen[::2] == seen[1::2]  # two steps an epoch
    plain, reverse = [rates[0] for rates in seen[::2]], [rates[-1] for rates in seen[::2]]
    for rates, top in ((plain, 1e-3), (reverse, 5e-3)):
        middle = 1e-4 + (top - 1e-4) / 2
        assert rates[0] == pytest.approx(top) and rates[2] == pytest.approx(middle)
        assert rates[4:] == pytest.approx([1e-4] * 2)


def test_refuses_a_cooldown_that_is_all_there_is(teacher):
    with pytest.raises(UserError, match="cooldown_epochs 2 leave none of 2 for the cosine"):
        fit(student(teacher, cooldown_epochs=2), max_epochs=2)


def test_runs_in_steps_follow_the_same_curve(teacher):
    model = student(teacher)
    trainer = fit(model, max_epochs=-1, max_steps=3)
    assert trainer.lr_scheduler_configs[0].interval == "step"
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-5)
    assert [falling(1.0, 0.0, 4)(t) for t in (0, 2, 4, 9)] == pytest.approx([1, 0.5, 0, 0])


def test_what_decays(teacher):
    model = student(teacher, weight_decay=0.05)
    fit(model, max_epochs=1)
    names = {id(p): name for name, p in model.named_parameters()}
    kept, decayed, reverse = (
        {names[id(p)] for p in group["params"]} for group in model.trainer.optimizers[0].param_groups
    )
    assert [g["weight_decay"] for g in model.trainer.optimizers[0].param_groups] == [0, 0.05, 0.05]
    assert {"model.vit.cls_token", "model.vit.pos_embed", "model.vit.blocks.0.norm1.weight"} <= kept
    assert {"model.reducers.1.scale", "model.reducers.1.weight.1.weight"} <= decayed
    assert reverse == {name for name in names.values() if name.startswith("rtsm.")}


# What is left


def test_the_command_line_trains_and_the_file_needs_no_teacher(picture_folder, tmp_path):
    eye = {key: SMALL[key] for key in ("img_size", "embed_dim", "num_heads")}
    teacher = saved(tmp_path / "teacher.safetensors", "vitalk_eye", **eye)
    options = [f"--model.init_args.teacher={teacher}", "--trainer.max_steps=2", "--data.init_args.batch_size=8"]
    options += ["--data.init_args.size=16", "--trainer.enable_progress_bar=false", "--model.init_args.model_args"]
    options += [json.dumps({"vit": "vitalk_eye", "stage_blocks": [1, 1, 1, 1], **eye, "patch_size": 4})]
    weights = run("sit", "tiny", str(picture_folder), tmp_path / "run", options)
    assert not any("rtsm" in key or "teacher" in key for key in load_file(weights))
    (tmp_path / "teacher.safetensors").unlink()
    loaded = load_model(str(weights)).model
    assert loaded.patch_counts() == [8, 4, 2, 2] and loaded(torch.randn(1, 3, 16, 16)).shape == (1, 3)
    resumed = load_model(str(tmp_path / "run" / "last.ckpt")).model
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(resumed(images), loaded(images))


def test_the_loader_may_be_imported_first():
    """It registers the models halfway through its own import; training, which needs it, must not come along."""
    code = "from vitalk.deploy.load import load_model; print(load_model('sit_vit', pretrained=False).name)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "sit_vit", done.stderr[-500:]


def test_reverse_modules_change_nothing_in_eval(teacher):
    model, images = student(teacher).eval(), torch.randn(2, 3, 16, 16)
    with torch.inference_mode():
        before = model(images)
        for p in model.rtsm.parameters():
            p.fill_(float("nan"))
        assert torch.equal(model(images), before)


def test_half_precision_trains(teacher):
    model = student(teacher)
    with torch.autocast("cpu", torch.bfloat16):
        loss = sum(model.losses(torch.randn(2, 3, 16, 16), torch.eye(3)[:2]).values())
    loss.backward()
    assert loss.dtype == torch.float32 and all(p.grad.isfinite().all() for p in model.parameters())


def test_training_brings_the_student_closer(teacher):
    torch.manual_seed(0)
    model = student(teacher, lr=3e-3, min_lr=3e-3)
    images, target = torch.randn(8, 3, 16, 16), torch.eye(3)[torch.arange(8) % 3]
    first = {k: v.item() for k, v in model.losses(images, target).items()}
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(15):
        optimizer.zero_grad()
        sum(model.losses(images, target).values()).backward()
        optimizer.step()
    last = {k: v.item() for k, v in model.losses(images, target).items()}
    assert last["tokens"] < first["tokens"] and sum(last.values()) < 0.9 * sum(first.values())


# Official teachers


def test_a_named_teacher_takes_an_official_checkpoint(tmp_path):
    torch.manual_seed(0)
    plain = timm.create_model("lvvit_tiny", num_classes=3)
    state = {k.replace("patch_embed.proj.", "patch_embed."): v for k, v in plain.state_dict().items()}
    torch.save({"model": {**state, "aux_head.bias": torch.zeros(3)}}, tmp_path / "lvvit.pth")
    args = {"stage_blocks": [1, 1, 1, 11]}
    options = {"num_classes": 3, "token_weight": 0.0}
    model = SlimmingClassifier("sit_tiny", "lvvit_tiny", args, teacher_init=str(tmp_path / "lvvit.pth"), **options)
    assert all(torch.equal(v, plain.state_dict()[k]) for k, v in model.model.vit.state_dict().items())
    torch.save({"model": state | {"head.bias": torch.zeros(4)}}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"head.bias is \[4\], the model has \[3\]"):
        SlimmingClassifier("sit_tiny", "lvvit_tiny", args, teacher_init=str(tmp_path / "other.pth"), **options)
    (tmp_path / "broken.pth").write_bytes(b"nonsense")
    for name in ("broken.pth", "nowhere.pth"):
        with pytest.raises(UserError, match=f"{name} is not a readable checkpoint"):
            SlimmingClassifier("sit_tiny", "lvvit_tiny", args, teacher_init=str(tmp_path / name), **options)


# Refusals


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("lvvit_tiny", {"depth": 3}, r"blocks\.3\.norm1\.weight \[32\] is missing"),
        ("lvvit_tiny", {"embed_dim": 64}, "does not fit"),
        ("lvvit_tiny", {"img_size": 32}, r"pos_embed is \[1, 65, 32\], the model has \[1, 17, 32\]"),
        ("lvvit_tiny", {"classes": 4}, r"head.weight is \[4, 32\], the model has \[3, 32\]"),
        ("lvvit_tiny", {"num_heads": 4}, "another network than the student"),
        ("lvvit_tiny", {"skip_lam": 1.0}, r"divisor=1.*against.*divisor=2"),
        ("vit_tiny_patch16_224", {}, "does not fit LVViT"),
        ("sit_vit", {"vit": "lvvit_tiny", **STAGES}, "is a SiT; it must be the plain ViT"),
    ],
)
def test_refuses_teachers_of_another_architecture(tmp_path, name, changes, said):
    with pytest.raises(UserError, match=said):
        student(saved(tmp_path / "other.safetensors", name, **changes))


def test_refuses_pictures_of_another_size(teacher, tmp_path):
    batch = torch.randn(2, 3, 32, 32), torch.tensor([0, 1])
    with pytest.raises(UserError, match="32 x 32 pixels, but the reverse modules restore the patches of 16 x 16"):
        student(teacher).training_step(batch, 0)
    eye = saved(tmp_path / "eye.safetensors", "vitalk_eye")  # reads pictures of any size, its reverse modules do not
    with pytest.raises(UserError, match="32 x 32 pixels, but"):
        student(eye, {"vit": "vitalk_eye"}).training_step(batch, 0)


def test_refuses_other_mistakes(teacher, cnn):
    with pytest.raises(UserError, match="batch of one cannot train; raise batch_size"):
        student(teacher).training_step((torch.randn(1, 3, 16, 16), torch.tensor([0])), 0)
    with pytest.raises(UserError, match="the loss became nan"):
        bad = student(teacher)
        torch.nn.init.constant_(bad.model.vit.head.bias, float("nan"))
        bad.training_step((torch.randn(2, 3, 16, 16), torch.tensor([0, 1])), 0)
    with pytest.raises(UserError, match="lvvit_tiny is not slimmed; train a sit_"):
        SlimmingClassifier("lvvit_tiny", teacher, SMALL, num_classes=3)
    with pytest.raises(UserError, match="has no distillation token for"):
        student(teacher, cnn_teacher=cnn)
    with pytest.raises(UserError, match="nobody teaches the distillation token"):
        student(teacher, {"distilled": True})
    with pytest.raises(UserError, match="leave out patch_drop_rate"):
        student(teacher, {"patch_drop_rate": 0.5})
    with pytest.raises(UserError, match=r"there is no checkpoint at nowhere\.safetensors"):
        student("nowhere.safetensors")
    with pytest.raises(UserError, match="no model lvvit_tny"):
        student("lvvit_tny")
