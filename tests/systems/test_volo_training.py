"""VOLO's training: token labels from everywhere, label maps that follow their pictures, and the module that trains."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning import Trainer
from PIL import Image
from safetensors import safe_open
from timm.data.auto_augment import AugmentOp

from vitalk.errors import UserError
from vitalk.systems.volo import (
    DenseLogits,
    TokenLabelClassifier,
    TokenLabelImages,
    TokenTargets,
    corrected,
    open_label_maps,
    targets_from_labels,
    targets_from_logits,
    targets_from_maps,
    teacher_maps,
    token_label_loss,
    write_label_maps,
)
from vitalk.systems.volo.data import MOVES, JointTransform, Noted, moved
from vitalk.training import run
from vitalk.vision.data import Images, ImageSet, open_splits

SMALL = {"layers": (1, 1), "embed_dims": (32, 64), "num_heads": (1, 2), "stem_hidden_dim": 8, "img_size": 16}


def classifier(**kwargs):
    torch.manual_seed(0)
    options = {"num_classes": 3, "smoothing": 0.0, "lr": 3e-3, **kwargs}
    return TokenLabelClassifier("volo_mini_32", options.pop("model_args", SMALL), **options)


def fit(model, data, **kwargs):
    options = {"max_epochs": 1, "accelerator": "cpu", "logger": False, "enable_checkpointing": False} | kwargs
    trainer = Trainer(enable_progress_bar=False, enable_model_summary=False, **options)
    trainer.fit(model, data)
    return trainer


def colours(folder, **kwargs):
    return Images(str(folder), size=16, batch_size=16, workers=0, augment=False, crop_pct=1.0, **kwargs)


class Oracle(torch.nn.Module):
    """A teacher that sees which colour, blue, green or red as in the folder, is the strongest at 4 x 4 places."""

    num_features = 3

    def forward_features(self, x):
        return torch.nn.functional.adaptive_avg_pool2d(x, 4)

    def forward_head(self, x):
        return 20 * (x - x.mean(1, keepdim=True)).flatten(1).flip(1)


# Targets


def test_plain_labels_are_the_same_for_every_token():
    image, tokens = targets_from_labels(torch.tensor([0, 2]), 4, 0.1)
    assert tokens.shape == (2, 1, 4) and torch.equal(tokens[:, 0], image)
    torch.testing.assert_close(image[1], torch.tensor([0.025, 0.025, 0.925, 0.025]))


@settings(deadline=None, max_examples=25)
@given(
    rows=st.integers(1, 6), columns=st.integers(1, 6), smoothing=st.floats(0, 0.5),
    corner=st.tuples(st.floats(0, 0.8), st.floats(0, 0.8)), side=st.floats(0.1, 0.2),
)  # fmt: skip
def test_targets_are_distributions(rows, columns, smoothing, corner, side):
    maps = 3 * torch.randn(2, 7, rows, columns)
    best = maps.topk(3, dim=1)
    box = torch.tensor([[*corner, corner[0] + side, corner[1] + side]] * 2)
    for targets in (
        targets_from_logits(maps, (4, 3), smoothing),
        targets_from_maps(best.values, best.indices, box, (4, 3), 7, smoothing),
    ):
        assert targets.image.shape == (2, 7) and targets.tokens.shape == (2, 12, 7)
        for x in targets:
            torch.testing.assert_close(x.sum(-1), torch.ones(x.shape[:-1]))
            assert x.min() >= smoothing / 7 - 1e-6


def test_a_map_of_the_grids_size_is_its_own_target():
    maps = torch.randn(2, 5, 4, 6)
    targets = targets_from_logits(maps, (4, 6))
    torch.testing.assert_close(targets.tokens, maps.flatten(2).transpose(1, 2).softmax(-1))
    torch.testing.assert_close(targets.image, maps.mean((2, 3)).softmax(-1))


def test_a_crop_takes_its_part_of_the_map():
    """Classes 0 to 3 are the quarters; the crop's box is left, top, right, bottom."""
    quarters = torch.tensor([[0, 1], [2, 3]]).repeat_interleave(8, 0).repeat_interleave(8, 1)
    scores, classes = torch.full((4, 1, 16, 16), 9.0), quarters.expand(4, 1, 16, 16)
    boxes = torch.tensor([[0, 0, 1, 1], [0.5, 0, 1, 0.5], [0, 0.5, 0.5, 1], [0, 0, 1, 0.5]])
    image, tokens = targets_from_maps(scores, classes, boxes, (2, 2), 4)
    assert tokens.argmax(-1).tolist() == [[0, 1, 2, 3], [1] * 4, [2] * 4, [0, 1, 0, 1]]
    assert image[1:3].argmax(-1).tolist() == [1, 2]


def test_classes_outside_the_best_count_as_zero():
    scores, classes = torch.tensor([3.0, 1.0]).view(1, 2, 1, 1), torch.tensor([4, 1]).view(1, 2, 1, 1)
    tokens = targets_from_maps(scores, classes, torch.tensor([[0.0, 0, 1, 1]]), (1, 1), 5).tokens
    torch.testing.assert_close(tokens[0, 0], torch.tensor([0.0, 1, 0, 0, 3]).softmax(0))


def test_labels_correct_a_target_more_where_it_is_wrong():
    """The authors' rule: the label weighs 0.5 where the target agrees with it and 0.1 where it does not."""
    soft = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.2, 0.7]])
    truth = torch.eye(3)[[0, 0]]
    image = corrected(TokenTargets(soft, soft[:, None]), truth).image
    torch.testing.assert_close(image[0], 0.5 * soft[0] + 0.5 * truth[0])
    torch.testing.assert_close(image[1], 0.9 * soft[1] + 0.1 * truth[1])


@settings(deadline=None, max_examples=15)
@given(box=st.sampled_from([None, (0, 0, 0, 0), (1, 0, 2, 3), (0, 0, 2, 3)]), weight=st.floats(0, 1))
def test_the_loss_is_that_of_both_heads(box, weight):
    logits = DenseLogits(torch.randn(4, 5), torch.randn(4, 6, 5))
    targets = TokenTargets(torch.rand(4, 5).softmax(1), torch.rand(4, 6, 5).softmax(2))
    own = 1.0 if box is None else 1 - (box[2] - box[0]) * (box[3] - box[1]) / 6
    image = own * targets.image + (1 - own) * targets.image.flip(0)
    wanted = -(image * logits.image.log_softmax(1)).sum(1).mean()
    wanted = wanted - weight * (targets.tokens * logits.tokens.log_softmax(2)).sum(2).mean()
    torch.testing.assert_close(token_label_loss(logits, targets, box, weight), wanted)


@torch.inference_mode()
@pytest.mark.parametrize("name", ["resnet10t", "swin_tiny_patch4_window7_224", "mobilenetv3_small_050"])
def test_a_teachers_head_goes_over_every_place(name):
    size = {"img_size": 64} if "swin" in name else {}
    teacher, x = timm.create_model(name, num_classes=5, **size).eval(), torch.randn(2, 3, 64, 64)
    maps = teacher_maps(teacher, x)
    assert maps.shape == (2, 5, 2, 2)
    if name != "mobilenetv3_small_050":  # whose head is not linear
        torch.testing.assert_close(maps.mean((2, 3)), teacher(x), atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_other_teachers():
    volo = classifier().model.eval()
    assert teacher_maps(volo, torch.randn(2, 3, 16, 16)).shape == (2, 3, 4, 4)
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1)
    with pytest.raises(UserError, match="VisionTransformer has no map of features"):
        teacher_maps(vit, torch.randn(1, 3, 32, 32))


# Label maps that follow the picture


def blocks(width, height):
    """A map of classes in blocks, and the picture that shows them as grey values."""
    classes = np.arange(12).reshape(3, 4).repeat(height // 3, 0).repeat(width // 4, 1)
    grey = Image.fromarray((20 * classes + 10).astype(np.uint8)).convert("RGB")
    return grey, torch.stack([torch.full((1, height, width), 7.0), torch.from_numpy(classes)[None].float()])


@pytest.mark.parametrize("name", MOVES)
def test_maps_move_as_pictures_do(name):
    random.seed(0)
    picture, label_map = blocks(80, 48)
    moves, hparams = [], {"translate_const": 20, "img_mean": (0, 0, 0), "interpolation": Image.Resampling.NEAREST}
    for op in (AugmentOp(name, 1.0, 9, hparams), AugmentOp("Rotate", 1.0, 5, hparams)):
        op.aug_fn = Noted(op.aug_fn, MOVES[op.name], moves)
        picture = op(picture)
    scores, classes = moved(label_map, moves, picture.size)
    shown = torch.from_numpy(np.asarray(picture)[..., 0].copy()).float()
    seen = torch.where(scores[0] > 0, 20 * classes[0] + 10, 0.0)
    assert (shown != 10).float().mean() > 0.5 and (seen == shown).float().mean() > 0.99


@pytest.mark.parametrize("options", [{}, {"padding": 6}, {"auto_augment": "rand-m9-mstd0.5-inc1"}])
def test_a_picture_and_its_map_stay_together(options):
    """Where the transform leaves the colours alone, a token's target is the class that the picture shows there."""
    defaults = {"size": 48, "padding": None, "scale": (0.2, 1.0), "color_jitter": 0.0, "auto_augment": None}
    defaults |= {"interpolation": "bilinear", "reprob": 0.0, "mean": (0.0,) * 3, "std": (1.0,) * 3}
    transform, noted, compared = JointTransform(SimpleNamespace(**{**defaults, **options})), 0, 0
    random.seed(1)
    torch.manual_seed(1)
    for _ in range(12):
        picture, label_map = blocks(96, 72)
        image, (scores, classes), box = transform(picture, label_map)
        assert image.shape == (3, 48, 48) and box.shape == (4,)
        noted += bool(transform.moves)
        if "auto_augment" in options:
            continue
        tokens = targets_from_maps(scores[None], classes[None], box[None], (8, 8), 12).tokens[0]
        patches = image[0].unfold(0, 6, 6).unfold(1, 6, 6).flatten(2).reshape(64, 36) * 255
        pure = (patches.amax(1) - patches.amin(1) < 2) & (tokens.amax(1) > 0.98)
        shown = ((patches.mean(1) - 10) / 20).round()
        compared += int(pure.sum())
        assert torch.equal(tokens.argmax(1)[pure].float(), shown[pure])
    assert (noted > 0, compared > 100) == (("auto_augment" in options), ("auto_augment" not in options))


# Stored maps


def test_written_maps_are_read_again(picture_folder, tmp_path):
    images = open_splits(picture_folder)[0]
    teacher = timm.create_model("resnet10t", num_classes=3).eval()
    path = write_label_maps(teacher, images, tmp_path / "maps.safetensors", top=2, size=64, batch_size=20)
    maps = open_label_maps(path, images)
    scores, classes = maps(47)
    assert scores.shape == classes.shape == (2, 2, 2) and (scores[0] >= scores[1]).all()
    picture = images[47][0].resize((64, 64), Image.Resampling.BICUBIC)
    mean, std = (torch.tensor(teacher.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
    x = (torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1) / 255 - mean) / std
    with torch.inference_mode():
        best = teacher_maps(teacher, x[None]).topk(2, dim=1)
    torch.testing.assert_close(scores, best.values[0], atol=2e-2, rtol=1e-2)
    with pytest.raises(UserError, match="has maps of 48 pictures, the data has 49"):
        open_label_maps(path, images.select(np.arange(49) % 48))


def test_official_maps_are_found_beside_their_picture(picture_folder, tmp_path):
    images = open_splits(picture_folder)[0]
    stored = torch.stack([torch.rand(5, 18, 18), torch.randint(3, (5, 18, 18)).float()]).half()
    where = tmp_path / images.read(0).parent.name / (images.read(0).stem + ".pt")
    where.parent.mkdir()
    torch.save(stored, where)
    maps = open_label_maps(tmp_path, images)
    scores, classes = maps(0)
    assert torch.equal(scores, stored[0].float()) and torch.equal(classes, stored[1].long())
    with pytest.raises(UserError, match="has no label map at"):
        maps(1)
    torch.save(stored[0], where)
    with pytest.raises(UserError, match="is no label map"):
        maps(0)
    with pytest.raises(UserError, match="one folder a class"):
        open_label_maps(tmp_path, ImageSet(np.zeros(1, int), ["a", "b"], lambda i: None))(0)


def test_bad_maps_are_refused(picture_folder, tmp_path):
    with pytest.raises(UserError, match="there are no label maps at"):
        TokenLabelImages(str(tmp_path / "none"), str(picture_folder))
    (tmp_path / "other.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="holds no label maps"):
        TokenLabelImages(str(tmp_path / "other.safetensors"), str(picture_folder))
    with pytest.raises(UserError, match="cannot follow the policy augmix"):
        TokenLabelImages(str(tmp_path), str(picture_folder), auto_augment="augmix-m3")
    for i, folder in enumerate(("red", "green", "blue")):
        (tmp_path / folder).mkdir()
        for picture in (picture_folder / "train" / folder).iterdir():
            torch.save(torch.full((2, 1, 4, 4), 2.0 + i), tmp_path / folder / f"{picture.stem}.pt")
    data = TokenLabelImages(str(tmp_path), str(picture_folder), size=16, batch_size=48, workers=0)
    with pytest.raises(UserError, match="names class 4, the data has 3"):
        fit(classifier(), data)


# The module


@pytest.mark.parametrize(
    "options", [{"mix_token": False}, {"mix_token": True}, {"fused_attn": False, "warmup_steps": 3}]
)
def test_learns_colours(picture_folder, options):
    trainer = fit(classifier(**options), colours(picture_folder), max_epochs=10)
    assert trainer.callback_metrics["val/top1"] > 0.9


def test_learns_from_a_teacher_against_the_labels(picture_folder):
    """The teacher takes blue for green and green for blue, and nobody asks for the labels."""

    class Confused(Oracle):
        def forward_head(self, x):
            return super().forward_head(x)[:, [1, 0, 2]]

    model = classifier()
    model.teacher.append(Confused())
    trainer = fit(model, colours(picture_folder), max_epochs=10)
    assert 0.3 < trainer.callback_metrics["val/top1"] < 0.4  # red alone is right
    assert not any("teacher" in key for key in model.state_dict())


def test_learns_from_label_maps(picture_folder, tmp_path):
    images = open_splits(picture_folder)[0]
    oracle = Oracle()
    oracle.register_parameter("device", torch.nn.Parameter(torch.zeros(1)))
    path = write_label_maps(oracle, images, tmp_path / "maps.safetensors", top=2, size=16)
    data = TokenLabelImages(
        str(path), str(picture_folder), size=16, batch_size=16, workers=0, crop_pct=1.0, scale=(0.5, 1.0)
    )
    trainer = fit(classifier(ground_truth=True), data, max_epochs=12)
    assert trainer.callback_metrics["val/top1"] > 0.9


def test_ground_truth_corrects_the_pictures_target():
    model = classifier(ground_truth=True)
    model.teacher.append(Oracle())
    x, labels = torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 0])
    image, tokens = model.targets(x, labels)
    soft = targets_from_logits(teacher_maps(Oracle(), x), (4, 4))
    torch.testing.assert_close(image, corrected(soft, torch.eye(3)[labels]).image)
    torch.testing.assert_close(tokens, soft.tokens)


def test_starts_from_weights_for_smaller_pictures(tmp_path):
    path, source = tmp_path / "w.pth", classifier().model
    torch.save({"state_dict": {f"module.{k}": v for k, v in source.state_dict().items()}}, path)
    model = classifier(model_args={**SMALL, "img_size": 32}, num_classes=5, init=str(path))
    assert torch.equal(model.model.network[0][0].attn.v.weight, source.network[0][0].attn.v.weight)
    assert model.model.pos_embed.shape == (1, 8, 8, 64) and model.model.head.out_features == 5
    torch.testing.assert_close(model.model.pos_embed.mean(), source.pos_embed.mean(), atol=2e-3, rtol=0)
    assert model.hparams.init == str(path)
    with pytest.raises(UserError, match="there is no checkpoint"):
        classifier(init=str(tmp_path / "none"))


def test_blocks_learn_at_rates_that_fall_with_their_depth(picture_folder):
    trainer = fit(classifier(lr=1e-3, layer_decay=0.5), colours(picture_folder), max_steps=1, limit_val_batches=0)
    assert len({group["lr_scale"] for group in trainer.optimizers[0].param_groups}) > 3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"model": "vit_tiny_patch16_224", "model_args": {"depth": 1}}, "this VisionTransformer has not"),
        ({"model": "volo_mini_32", "model_args": {"use_aux_head": False}}, "need a VOLO with class token"),
        ({"model": "volo_mini_32", "model_args": {"global_pool": "avg"}}, "need a VOLO with class token"),
        ({"model": "volo_mni_32"}, "Did you mean volo_mini_32"),
    ],
)
def test_refuses_models_without_both_heads(options, said):
    with pytest.raises(UserError, match=said):
        TokenLabelClassifier(**options)


def test_refuses_bad_batches():
    model = classifier()
    with pytest.raises(UserError, match="batch of one cannot train; raise batch_size"):
        model.training_step((torch.randn(1, 3, 16, 16), torch.tensor([0])), 0)
    for size, said in ((18, "multiples of 4"), (32, "reads pictures of 16 x 16")):
        batch = torch.randn(2, 3, size, size), torch.tensor([0, 1])
        with pytest.raises(UserError, match=said):
            model.training_step(batch, 0)
        with pytest.raises(UserError, match=said):
            model(batch[0])
    torch.nn.init.constant_(model.model.head.bias, float("nan"))
    with pytest.raises(UserError, match="the loss became nan"):
        model.training_step((torch.randn(2, 3, 16, 16), torch.tensor([0, 1])), 0)


def test_the_command_line_trains_the_tiny_preset(picture_folder, tmp_path):
    steps = ["--trainer.max_steps=2", "--data.init_args.batch_size=4", "--data.init_args.workers=0"]
    weights = run("volo", "tiny", str(picture_folder), tmp_path / "run", steps)
    with safe_open(weights, "pt") as file:
        assert file.metadata()["model"] == "volo_mini_32" and "aux_head.weight" in file.keys()  # noqa: SIM118
