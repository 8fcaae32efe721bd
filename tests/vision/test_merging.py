"""Merging against the official functions and model, and what must hold of any merge."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.vision_transformer import VisionTransformer

from tests.parity import parity
from vitalk.deploy.onnx_export import export_onnx
from vitalk.deploy.preprocess import Preprocess
from vitalk.errors import UserError
from vitalk.vision.merging import Merge, MergeAlike, apply_merge, bipartite, cosines, mergeable, protect, schedule, tome
from vitalk.vision.tokens import Tokens

FIXTURES = Path(__file__).parents[1] / "parity"
MATCHING = parity.load(FIXTURES / "tome.matching.json")
MODEL = parity.load(FIXTURES / "tome.deit_tiny_r13.json")
SMALL = {"img_size": 32, "patch_size": 4, "embed_dim": 24, "depth": 4, "num_heads": 2, "num_classes": 5}


def given_input(name):
    return torch.from_numpy(parity.tensor(name, **MATCHING["inputs"][name]))


def small(**kwargs):
    torch.manual_seed(0)
    return VisionTransformer(**{**SMALL, **kwargs}).eval()


@pytest.mark.parametrize(("name", "prefix", "count"), [("cls", 1, 10), ("plain", 0, 10), ("cls_dist", 2, 10)])
def test_matching_agrees_with_the_official_functions(name, prefix, count):
    x, size, expected = given_input("x"), given_input("size").squeeze(2).float(), MATCHING["outputs"]
    merge = bipartite(protect(cosines(given_input("metric")), prefix), count, prefix)
    found = {
        "merge_mean": merge.mean(x, torch.ones(x.shape[:2])),
        "merge_weighted": merge.mean(x, size),
        "merge_size": merge.sums(size)[..., None],
    }
    if prefix < 2:  # the fixture has these two without a distillation token
        found["unmerge"] = merge.unmerge(given_input("merged"))
        found["source"] = (merge.mean(torch.eye(37).expand(2, -1, -1), torch.ones(2, 37)) > 0).float()
    for output, value in found.items():
        assert parity.distance(value.numpy(), expected[f"{name}_{output}"]) < 1e-5, output


def test_no_more_than_half_of_the_tokens_merge():
    count = mergeable(37, 1, 30)
    assert count == 18
    x, size = given_input("x"), given_input("size").squeeze(2).float()
    merge = bipartite(protect(cosines(given_input("metric")), 1), count, 1)
    assert parity.distance(merge.mean(x, size).numpy(), MATCHING["outputs"]["capped_merge_weighted"]) < 1e-5
    assert mergeable(1, 1, 5) == 0 and mergeable(4, 2, 0) == 0


@pytest.mark.parametrize(
    ("name", "depth", "r", "inflect"),
    [("constant", 12, 13, 0), ("decreasing", 12, 13, -1), ("increasing", 24, 8, 1), ("half", 12, 13, 0.5),
     ("list", 12, [5, 4, 3], 0)],
)  # fmt: skip
def test_schedules_are_the_official_ones(name, depth, r, inflect):
    assert schedule(depth, r, inflect) == MATCHING["outputs"][f"schedule_{name}"]["value"]


def test_tome_agrees_with_the_official_model():
    model = tome(timm.create_model("deit_tiny_patch16_224").eval(), 13)
    model.load_state_dict({k: torch.from_numpy(v) for k, v in parity.filled_state(MODEL).items()})
    model.trace = True
    with torch.inference_mode():
        _, *leaving = model.walk(torch.from_numpy(parity.tensor("image", **MODEL["inputs"]["image"])))
        logits = model(torch.from_numpy(parity.tensor("image", **MODEL["inputs"]["image"])))
    expected = MODEL["outputs"]
    assert [t.features.shape[1] for t in leaving] == expected["token_count"]["value"]
    for block in (0, 5, 11):
        assert parity.distance(leaving[block].features.numpy(), expected[f"block_{block}"]) < 1e-4
    assert parity.distance(leaving[-1].size[..., None].numpy(), expected["size_last"]) < 1e-6
    # Ours has no column for the class token, and weights instead of ones.
    source = np.pad((leaving[-1].source > 0).numpy().astype(np.float32), ((0, 0), (0, 0), (1, 0)))
    source[:, 0, 0] = 1
    assert parity.distance(source, expected["source_last"]) < 1e-6
    assert parity.distance(logits.numpy(), expected["logits"]) < 1e-4


@settings(deadline=None, max_examples=30)
@given(tokens=st.integers(4, 20), prefix=st.integers(0, 4), wanted=st.integers(1, 20), seed=st.integers(0, 99))
def test_a_merge_keeps_what_there_is(tokens, prefix, wanted, seed):
    prefix = min(prefix, tokens - 2)
    count = mergeable(tokens, prefix, wanted)
    x = torch.randn(2, tokens, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    merge = bipartite(protect(cosines(x), prefix), count, prefix)
    source = torch.eye(tokens, dtype=x.dtype).expand(2, -1, -1)
    after = apply_merge(Tokens(x, source=source), merge)
    assert after.features.shape[1] == tokens - count
    assert torch.equal(after.size.sum(1), torch.full((2,), tokens, dtype=x.dtype))
    assert torch.equal(after.features[:, :prefix], x[:, :prefix])  # the prefix stays, in front
    torch.testing.assert_close((after.features * after.size[..., None]).sum(1), x.sum(1))
    torch.testing.assert_close(after.source @ x, after.features)  # the source map says what each token is made of
    assert torch.equal((after.source > 0).sum(1), torch.ones(2, tokens, dtype=torch.long))


def test_unmerging_like_tokens_gives_them_back():
    x = torch.randn(2, 1 + 4, 6).repeat_interleave(2, 1)[:, 1:]  # a class token, then each token twice, side by side
    merge = bipartite(protect(cosines(x), 1), 4, 1)
    merged = merge.mean(x, torch.ones(2, 9))
    torch.testing.assert_close(merge.unmerge(merged), x)


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_merging_like_patches_loses_nothing(pool):
    model = small(class_token=pool == "token", global_pool=pool, pos_embed="none")
    twins, even = torch.randn(2, 3, 32, 4).repeat_interleave(8, 3), torch.randn(2, 3, 1, 1).expand(-1, -1, 32, 32)
    with torch.inference_mode():  # of twins, side by side, a first merge of up to 32 pairs is free
        torch.testing.assert_close(tome(model, [20])(twins), model(twins), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(tome(model, 10)(even), model(even), rtol=1e-4, atol=1e-5)


def test_nothing_to_merge_is_the_plain_model():
    model, images = small(), torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(tome(model, 0)(images), model(images))
    assert not MergeAlike(0).needs


def test_the_mean_over_patches_is_weighted_by_size():
    model, images = small(class_token=False, global_pool="avg"), torch.randn(2, 3, 32, 32)
    merged = tome(model, [0, 0, 0, 9])
    with torch.inference_mode():
        tokens = merged.forward_tokens(images)
        mean = (tokens.features * tokens.size[..., None]).sum(1) / 64
        torch.testing.assert_close(merged(images), model.head(model.fc_norm(mean)))


@pytest.mark.parametrize("options", [{}, {"class_token": False, "global_pool": "avg"}])
def test_merging_exports(options, tmp_path):
    model = tome(small(**options), 6)
    preprocess = Preprocess((32, 32), 1.0, "bicubic", (0.5,) * 3, (0.5,) * 3)
    path = export_onnx(model, tmp_path / "m.onnx", preprocess, list("abcde"))  # compares with torch, batches 2 and 1
    assert path.is_file()


def test_gradients_reach_all_tokens():
    x = torch.randn(2, 9, 4, requires_grad=True)
    merge = bipartite(protect(cosines(x.detach()), 1), 3, 1)
    merge.mean(x, torch.ones(2, 9)).square().sum().backward()
    assert (x.grad.abs().sum(2) > 0).all()


def test_dropped_tokens_go_nowhere():
    merge = Merge(torch.tensor([[0, 2]]), torch.tensor([[3]]), torch.tensor([[1]]))
    assert merge.sums(torch.tensor([[1.0, 10.0, 100.0, 1000.0]])).tolist() == [[1.0, 1100.0]]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: schedule(4, [1] * 5), "up to 4 numbers"),
        (lambda: schedule(4, [-1]), "none negative"),
        (lambda: schedule(4, -1), "must not be negative"),
        (lambda: schedule(4, 3, 1.5), "inflect"),
        (lambda: MergeAlike(-2), "must not be negative"),
        (lambda: tome(timm.create_model("resnet18"), 3), "VisionTransformer"),
    ],
)
def test_bad_input_is_refused(call, said):
    with pytest.raises(UserError, match=said):
        call()
