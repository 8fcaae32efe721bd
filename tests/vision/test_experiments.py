"""Short training runs: pictures in memory, equal budgets, verdicts that know their noise."""

import math
from functools import partial

import pytest
import torch
from torch import nn

from vitalk.experiments import budget
from vitalk.vision.classifier import Classifier
from vitalk.vision.experiments import Comparison, Pictures, compare, compare_calibrated, fit, top1, with_model

SMALL = {"img_size": 8, "patch_size": 4, "embed_dim": 12, "depth": 1, "num_heads": 2}


def colours(count=96, padding=None):
    """Two classes that a linear model tells apart: dark and bright pictures of 8 x 8 pixels."""
    labels = torch.arange(count) % 2
    noise = torch.randint(0, 60, (count, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    return Pictures((noise + 150 * labels[:, None, None, None]).to(torch.uint8), labels, padding)


def classifier(steps=1):
    return Classifier("deit_tiny_patch16_224", SMALL, num_classes=2, lr=3e-3, smoothing=0.0)


def test_pictures_are_normalised_and_in_order_outside_training():
    pictures = colours()
    images, labels = next(iter(pictures.batches(32)))
    assert torch.equal(labels, pictures.labels[:32])
    back = images * pictures.std + pictures.mean
    torch.testing.assert_close(back * 255, pictures.pixels[:32].float(), atol=1e-3, rtol=0)


def test_training_pictures_are_windows_of_the_reflected_picture():
    torch.manual_seed(0)
    ramp = torch.arange(64, dtype=torch.uint8).reshape(1, 1, 8, 8).repeat(40, 3, 1, 1)
    pictures = Pictures(ramp, torch.zeros(40, dtype=torch.long), padding=2, mean=(0, 0, 0), std=(1, 1, 1))
    images = pictures[list(range(40))][0] * 255
    wide = torch.nn.functional.pad(ramp[:1].float(), (2, 2, 2, 2), mode="reflect")
    windows = wide.unfold(2, 8, 1).unfold(3, 8, 1)[0, 0].reshape(-1, 8, 8)
    wide_flipped = torch.nn.functional.pad(ramp[:1].float().flip(3), (2, 2, 2, 2), mode="reflect")
    windows = torch.cat([windows, wide_flipped.unfold(2, 8, 1).unfold(3, 8, 1)[0, 0].reshape(-1, 8, 8)])
    for image in images[:, 0]:
        assert ((windows - image).abs().amax((1, 2)) < 1e-3).any()
    assert len({tuple(i.flatten().round().tolist()) for i in images[:, 0]}) > 10  # each by itself


def test_a_short_run_learns_and_counts_its_steps():
    torch.manual_seed(0)
    model, ticks = classifier(), []
    before = top1(model, colours())
    with budget("test", 1):
        pace = fit(model, colours(padding=0), 30, 32, lambda: ticks.append(1))
    assert len(ticks) == model.trainer.global_step == 30 and 0 < pace < 1
    assert top1(model, colours()) == 100.0 >= before


def test_all_models_get_the_same_steps_and_seeds():
    asked = []

    def make(steps):
        asked.append(steps)
        return classifier()

    with budget("test", 0.02) as time:
        found = compare({"a": make, "b": make}, colours(padding=0), colours(), time, seeds=2, batch=32)
    assert len(set(asked[2:])) == 1 and asked[2] == found.steps >= 8
    assert len(found.top1["a"]) == len(found.top1["b"]) in (1, 2)
    assert found.top1["a"] == found.top1["b"]  # same seeds, same batches: the same model
    assert top1(found.models["a"][-1], colours()) == found.top1["a"][-1]


def test_gains_are_paired_by_seed():
    found = Comparison({"ours": [50.0, 60.0, 70.0], "base": [49.0, 58.0, 69.0]}, 10, 32)
    mean, error = found.gain("ours", "base")
    assert mean == pytest.approx(4 / 3) and error == pytest.approx(1 / 3)
    assert found.ahead("ours", "base") and not found.ahead("base", "ours")
    single = Comparison({"ours": [50.0], "base": [40.0]}, 10, 32)
    assert math.isinf(single.gain("ours", "base")[1]) and not single.ahead("ours", "base")


def test_a_comparison_tells_of_its_data_and_costs():
    found = Comparison({"ours": [50.123, 60.0]}, 30, 32)
    assert found.told(colours(960), colours()) == "CIFAR-10, 960 pictures, 1.0 epochs each, 96 for testing"
    made = Classifier("deit_tiny_patch16_224", {**SMALL, "img_size": 32}, num_classes=2)
    details = found.details({"ours": made}.get)
    assert details["top1"] == {"ours": [50.12, 60.0]} and details["macs"]["ours"] > 0
    assert details["params"] == {"ours": sum(p.numel() for p in made.model.parameters())}


def test_a_network_that_is_there_is_what_trains():
    network = classifier().model
    before = {name: value.clone() for name, value in network.state_dict().items()}
    module = with_model(classifier(), network)
    fit(module, colours(padding=0), 3, 32)
    assert any(not torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert not network.blocks[0].attn.fused_attn


def test_quantized_variants_get_the_same_draws_and_pictures():
    pixels = torch.randint(0, 256, (600, 3, 16, 16), dtype=torch.uint8)
    pictures = Pictures(pixels, torch.arange(600) % 5)
    seen = {"a": [], "b": []}

    def variant(name, model, images):
        seen[name].append(images)
        return model

    model = nn.Sequential(nn.Flatten(), nn.Linear(768, 5)).eval()
    ways = {name: partial(variant, name) for name in seen}
    with budget("test", 0.05) as time:
        found = compare_calibrated(model, ways, pictures, pictures, time, draws=3, calibration=4)
    assert len(seen["a"]) == len(seen["b"]) == 3
    assert all(torch.equal(a, b) and len(a) == 4 for a, b in zip(*seen.values(), strict=True))
    assert not torch.equal(seen["a"][0], seen["a"][1])
    assert found.top1["a"] == found.top1["b"] == [found.float_top1] * 3
    assert 250 <= found.pictures <= 600 and found.gain("a", "b") == (0, 0)
    assert found.details()["spread"] == {"a": 0, "b": 0}


def test_spaced_pictures_are_spread_over_all():
    pictures = Pictures(torch.zeros(10, 3, 2, 2, dtype=torch.uint8), torch.arange(10), mean=(0.5, 0.5, 0.5))
    assert pictures.spaced(4).labels.tolist() == [0, 3, 6, 9] and len(pictures.spaced(99)) == 10
    assert torch.equal(pictures.spaced(1)[[0]][0], pictures[[0]][0])
