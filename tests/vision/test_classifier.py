"""Losses, optimisers and the hooks of the classifier."""

import pytest
import torch
from lightning import Trainer

from vitalk.errors import UserError
from vitalk.vision.classifier import Classifier, create, load_teacher, load_weights, soft_labels
from vitalk.vision.data import Images

SMALL = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}


def small(**kwargs):
    return Classifier("vit_tiny_patch16_224", SMALL, num_classes=3, **kwargs)


def fit(model, folder, **kwargs):
    data = Images(str(folder), size=16, batch_size=16, workers=0, augment=False, crop_pct=1.0)
    options = {"max_epochs": 1, "accelerator": "cpu", "logger": False, "enable_checkpointing": False} | kwargs
    trainer = Trainer(enable_progress_bar=False, enable_model_summary=False, **options)
    trainer.fit(model, data)
    return trainer


def test_smoothed_labels_are_distributions():
    soft = soft_labels(torch.tensor([0, 2]), 4, 0.1)
    torch.testing.assert_close(soft.sum(1), torch.ones(2))
    torch.testing.assert_close(soft[0], torch.tensor([0.925, 0.025, 0.025, 0.025]))


@pytest.mark.parametrize(
    "options",
    [
        {"lr": 3e-3},
        {"lr": 3e-3, "mixup": 0.8, "cutmix": 1.0},
        {"lr": 3e-3, "layer_decay": 0.8, "warmup_steps": 3},
        {"lr": 3e-3, "optimizer": "muon", "sizes": [[0, 8], [4, 16]]},
    ],
)
def test_learns_colours(picture_folder, options):
    torch.manual_seed(0)
    model = small(smoothing=0.0, **options)
    if options.get("sizes"):
        model = Classifier("vit_tiny_patch16_224", {**SMALL, "dynamic_img_size": True}, num_classes=3, **options)
    trainer = fit(model, picture_folder, max_epochs=12)
    assert trainer.callback_metrics["val/top1"] > 0.9


def test_layer_decay_and_schedule(picture_folder):
    model = small(lr=1e-3, layer_decay=0.5, warmup_steps=2, min_lr=1e-5)
    trainer = fit(model, picture_folder, max_epochs=2)
    rates = {group["lr"] for group in trainer.optimizers[0].param_groups}
    assert max(rates) == pytest.approx(1e-5, rel=1e-3), "the cosine ends at min_lr"
    assert max(rates) / min(rates) == pytest.approx(8, rel=1e-3), (
        "embedding, two blocks and head are three factors apart"
    )


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_distillation_pulls_towards_the_teacher(kind, picture_folder):
    torch.manual_seed(0)
    model = small(lr=3e-3, alpha=1.0, distillation=kind, tau=1.0)

    class Red(torch.nn.Module):
        def forward(self, x):
            return torch.tensor([9.0, 0.0, 0.0]).expand(len(x), 3)

    model.teacher.append(Red())
    fit(model, picture_folder, max_epochs=8)
    assert (model.eval()(torch.randn(8, 3, 16, 16)).argmax(1) == 0).all()


def test_unknown_models_get_a_suggestion():
    with pytest.raises(UserError, match="deit_small_patch16_224"):
        create("deit_smal_patch16_224", 10, {})


def test_a_loss_that_is_not_finite_stops_with_a_sentence(picture_folder):
    model = small()
    with torch.no_grad():
        model.model.head.bias.fill_(float("nan"))
    with pytest.raises(UserError, match="loss"):
        fit(model, picture_folder)


def test_weights_of_another_head_are_left_out(tmp_path):
    from safetensors.torch import save_file

    torch.manual_seed(0)
    source = small().model
    save_file({k: v.contiguous() for k, v in source.state_dict().items()}, tmp_path / "w.safetensors")
    other = Classifier("vit_tiny_patch16_224", SMALL, num_classes=5).model
    head = other.head.weight.clone()
    load_weights(other, str(tmp_path / "w.safetensors"))
    assert torch.equal(other.blocks[0].mlp.fc1.weight, source.blocks[0].mlp.fc1.weight)
    assert torch.equal(other.head.weight, head)
    with pytest.raises(UserError, match="checkpoint"):
        load_weights(other, str(tmp_path / "none.safetensors"))


def test_batch_norm_cannot_train_on_one_picture():
    model = Classifier("resnet10t", num_classes=3)
    with pytest.raises(UserError, match="batch of one cannot train; raise batch_size"):
        model.training_step((torch.randn(1, 3, 32, 32), torch.tensor([0])), 0)


def test_teachers_are_names_or_model_files(tmp_path):
    class Data:
        classes = ["a", "b", "c"]

        def preprocess_cfg(self):
            return {"input_size": [3, 16, 16]}

    torch.manual_seed(0)
    taught = small()
    taught.save_weights(tmp_path / "m.safetensors", Data())
    student = small(teacher=str(tmp_path / "m.safetensors"))
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(student.teacher[0](x), taught.eval()(x)) and not student.teacher[0].training
    with pytest.raises(UserError, match="knows 3 classes, not 5"):
        load_teacher(str(tmp_path / "m.safetensors"), 5)
    with pytest.raises(UserError, match="no checkpoint"):
        small(teacher="nowhere.safetensors")


def test_the_embedded_model_brings_its_weights():
    from vitalk.deploy.load import load_model

    x = torch.randn(2, 3, 32, 32)
    whole = load_model("vitalk_eye").model
    with torch.inference_mode():
        assert torch.equal(load_teacher("vitalk_eye", 10)(x), whole(x))
        other = create("vitalk_eye", 7, {"pretrained": True}).eval()
        assert torch.equal(other.forward_features(x), whole.forward_features(x)) and other(x).shape == (2, 7)
