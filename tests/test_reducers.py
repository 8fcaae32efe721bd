"""Strengths are found by bisection, and reducers leave the model that they are given as it is."""

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from vitalk.deploy.load import Loaded
from vitalk.deploy.onnx_export import export_onnx
from vitalk.deploy.preprocess import Preprocess
from vitalk.deploy.runtime import open_engine
from vitalk.errors import UserError
from vitalk.reducers import REDUCERS, Reducer, file_latency, macs_share, meet, tokens_by_block
from vitalk.systems.repq_vit import repq_vit

SMALL = {"img_size": 32, "patch_size": 4, "embed_dim": 24, "depth": 4, "num_heads": 2, "num_classes": 5}


class Priced(nn.Module):
    """Costs what it is said to."""

    def __init__(self, cost):
        super().__init__()
        self.cost = cost


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=40), st.integers(0, 1000))
def test_the_weakest_that_is_cheap_enough(costs, target):
    costs = sorted(costs, reverse=True)
    reducer = Reducer(lambda _, i, __: Priced(costs[int(i)]), lambda _: range(len(costs)), 0)

    def found():
        return meet(reducer, nn.Identity(), None, lambda model: model.cost, target)

    if costs[-1] > target:
        with pytest.raises(UserError, match="out of reach"):
            found()
    else:
        place = found()
        assert costs[place] <= target and (place == 0 or costs[place - 1] > target)


@pytest.mark.parametrize("name", REDUCERS)
def test_reducers_share_nothing_and_grow_stronger(name):
    torch.manual_seed(0)
    reducer, image = REDUCERS[name], torch.randn(1, 3, 32, 32)
    model = timm.create_model("vit_tiny_patch16_224", **SMALL).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    share = macs_share(model, image)
    strengths = reducer.strengths(model)
    chosen = [strengths[i] for i in (0, len(strengths) // 2, -1)]
    made = [reducer.make(model, strength, None) for strength in chosen]
    shares = [share(reduced) for reduced in made]
    assert 1.01 > shares[0] > shares[1] > shares[2] > 0  # EViT at its weakest drops one patch and adds the fused token
    counts = [tokens_by_block(reduced, image) for reduced in made]
    assert all(a >= b for a, b in zip(counts[0], counts[-1], strict=True)) and counts[-1][-1] >= 1
    made[0].vit.head.weight.data.zero_()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert torch.isnan(made[1](torch.full((1, 3, 32, 32), float("nan")))).all()  # no plausible answer to garbage


def test_the_latency_is_that_of_the_finished_file(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", **SMALL).eval()
    finished = []
    loaded = Loaded(model, Preprocess((32, 32)), None, "small")
    cost = file_latency(loaded, lambda reduced: finished.append(reduced) or reduced, tmp_path)
    reduced = REDUCERS["tome"].make(model, 4, None)
    assert 0 < cost(reduced) < 1000 and finished == [reduced] and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", REDUCERS)
def test_reduced_and_quantized_to_int8_the_file_still_agrees(name, tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", **SMALL).eval()
    reducer = REDUCERS[name]
    strengths = reducer.strengths(model)
    reduced = reducer.make(model, strengths[len(strengths) // 3], None)
    pictures = torch.randn(8, 3, 32, 32)
    labels = [str(i) for i in range(5)]
    for kind, built in {"float": reduced, "int8": repq_vit(reduced, pictures, 8, 8, attention="float")}.items():
        # The export compares with torch on batches of two and of one.
        file = export_onnx(built, tmp_path / f"{kind}.onnx", Preprocess((32, 32)), labels)
        run, _ = open_engine(file)
        with torch.inference_mode():
            ours, theirs = built(pictures).numpy(), run(pictures.numpy())
        assert theirs.shape == (8, 5) and (ours.argmax(1) == theirs.argmax(1)).mean() >= 7 / 8
