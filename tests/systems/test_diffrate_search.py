"""The search for DiffRate's schedules: proxies, masks, and what training does to them."""

from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from tests.systems.test_diffrate import caformer, fixture, near, small
from vitalk.deploy.load import load_model
from vitalk.errors import UserError
from vitalk.experiments import budget
from vitalk.systems.diffrate import (
    Proxy,
    RateSearch,
    attention,
    expected_macs,
    geometry,
    learned,
    method,
    reproduce,
    search,
    searchable,
)
from vitalk.training import run as train
from vitalk.vision.cost import count
from vitalk.vision.experiments import Pictures


def scattered(model, scale=1.0):
    """Random logits in all proxies."""
    torch.manual_seed(1)
    for proxy in model.modules():
        if isinstance(proxy, Proxy):
            torch.nn.init.normal_(proxy.logits, std=scale)
    return model


# The official proxies and search


def test_proxies_agree_with_the_official_ones():
    _, inputs, _, expected = fixture("proxy_and_merge")
    proxy = Proxy(50, 4)
    proxy.load_state_dict({"logits": inputs["logits"]})
    assert near(proxy.candidates, expected["candidates"]) and near(proxy.survival(), expected["survival"])
    assert near(proxy.mask(45), expected["mask_from_45"]) and near(proxy.mask(51), expected["mask_full"])
    assert near(proxy.count()[None], expected["expected_count"])
    proxy.count().backward()
    assert near(proxy.logits.grad, expected["expected_count_grad"])
    proxy.logits.grad = None
    (proxy.mask(51) * torch.linspace(-1, 1, 51)).sum().backward()
    assert near(proxy.logits.grad, expected["mask_grad"])


def test_a_step_of_the_search_agrees_with_the_official_one():
    _, inputs, state, expected = fixture("search_deit_tiny")
    for kind in ("prune", "merge"):
        rows = [torch.zeros(1), *inputs[f"{kind}_logits"]]
        state |= {f"blocks.{block}.{kind}_ddp.selected_probability": row for block, row in enumerate(rows)}
        state |= {f"blocks.{block}.{kind}_ddp.kept_token_candidate": row for block, row in enumerate(rows)}
    run = searchable(timm.create_model("deit_tiny_patch16_224"), granularity=4).train()
    run.load_state_dict(run.checkpoint_filter_fn({"model": state}, run))
    counts = {kind: [getattr(r, kind).kept() for r in run.reducers] for kind in ("prune", "merge")}
    assert all(counts[kind] == expected[f"expected_{kind}"]["value"] for kind in counts)
    live = [tokens.alive for tokens in list(run.walk(inputs["image"]))[1:]]
    assert live == expected["live_after_block"]["value"][:12]
    assert list(learned(run).merge) == live
    logits, macs = run(inputs["image"]), expected_macs(run)
    assert near(logits, expected["logits"]) and near(macs[None], expected["macs"])
    loss = F.cross_entropy(logits, inputs["label"])
    assert near(loss[None], expected["cross_entropy"]) and near((macs - 0.8).square()[None], expected["loss_macs"])
    for of, name in ((loss, "ce"), ((macs - 0.8).square(), "macs")):
        run.zero_grad()
        of.backward()
        for kind in ("prune", "merge"):
            grads = [getattr(r, kind).logits.grad for r in run.reducers[1:]]
            grads = torch.stack([torch.zeros(49) if grad is None else grad for grad in grads])
            assert near(grads, expected[f"grad_{name}_{kind}"])


def test_official_search_checkpoints_of_caformer_load():
    run = searchable(caformer((1, 1, 3, 1), (8, 16, 32, 64), 5, 64), granularity=2)
    state = {f"stages.{s}.{b}.merge_ddp.selected_probability": torch.randn(n) for s, b, n in
             ((2, 0, 1), (2, 1, 8), (2, 2, 1), (3, 0, 1))}  # fmt: skip
    converted = run.checkpoint_filter_fn(state, run)
    for index, value in enumerate(state.values()):
        assert torch.equal(converted[f"reducers.{index}.merge.logits"], value)
        assert run.reducers[index].merge.logits.shape == value.shape and run.reducers[index].prune is None


# Their invariants


@settings(deadline=None, max_examples=40)
@given(patches=st.integers(2, 60), granularity=st.integers(1, 70), prefix=st.integers(0, 2), seed=st.integers(0, 99))
def test_proxies_keep_the_papers_identities(patches, granularity, prefix, seed):
    proxy = Proxy(patches, granularity, prefix)
    torch.manual_seed(seed)
    torch.nn.init.normal_(proxy.logits)
    soft, survival = proxy.soft_count(), proxy.survival().detach()
    p = proxy.logits.softmax(0).detach()
    by_loop = torch.stack([p[proxy.candidates + prefix > j].sum() for j in range(patches + prefix)])
    torch.testing.assert_close(survival, by_loop)
    assert survival[0] == pytest.approx(1, abs=1e-5) and (survival.diff() <= 0).all()
    proxy.count().backward()
    soft = soft.detach()
    torch.testing.assert_close(survival.sum(), soft + prefix)
    torch.testing.assert_close(proxy.logits.grad, p * (proxy.candidates - soft), atol=1e-5, rtol=1e-4)
    assert soft + prefix - 1e-3 <= proxy.kept() < soft + prefix + 1 + 1e-3
    mask = proxy.mask(patches + prefix)
    assert torch.equal(mask.detach(), (torch.arange(patches + prefix) < proxy.kept()).float())


def test_the_first_guess_keeps_about_half():
    run = searchable(small())
    assert [r.prune.kept() for r in run.reducers] == [65, 35, 35, 35]  # the mean of 64, 60, ..., 4, and the class token


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_masking_answers_like_removing(monkeypatch, pool):
    """Without the softmax's constant, and with the search's clamp in both modes."""
    monkeypatch.setattr(attention, "EPS", 0.0)
    monkeypatch.setattr(method, "shrunk", lambda size, cosine: (size * cosine).clamp(min=1))
    run, image = scattered(searchable(small(global_pool=pool), 1), 3.0), torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        removed, masked = run.eval()(image), run.train()(image)
        counts = [tokens.features.shape[1] for tokens in run.eval().walk(image)][1:]
    assert counts == list(learned(run).merge) and counts[-1] < 50
    assert any(a > b for a, b in zip(learned(run).prune, learned(run).merge, strict=True))
    torch.testing.assert_close(masked, removed, rtol=1e-3, atol=1e-4)


def test_masking_a_caformer_answers_like_merging(monkeypatch):
    """With one block that merges: the ranking of a later one listens to dead tokens, in the search, as released."""
    monkeypatch.setattr(attention, "EPS", 0.0)
    run = scattered(searchable(caformer((1, 1, 3, 1), (8, 16, 32, 64), 5, 64), 1), 3.0)
    image = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(run.train()(image), run.eval()(image), rtol=1e-3, atol=1e-4)
    assert learned(run).prune is None and learned(run).merge[1] < 16
    run.train()(image).square().sum().backward()
    assert run.reducers[1].merge.logits.grad.abs().sum() > 0


def test_gradients_reach_every_proxy_and_no_weight():
    run = searchable(small(), 1).train()
    (run(torch.randn(2, 3, 32, 32)).square().sum() + expected_macs(run)).backward()
    frozen = [name for name, p in run.named_parameters() if not p.requires_grad]
    assert all(p.grad is None for p in run.parameters() if not p.requires_grad) and len(frozen) == len(
        list(small().parameters())
    )
    for reducer in run.reducers[1:]:
        assert reducer.prune.logits.grad.isfinite().all() and reducer.prune.logits.grad.abs().sum() > 0
        assert reducer.merge.logits.grad.isfinite().all() and reducer.merge.logits.grad.abs().sum() > 0


def test_the_search_runs_in_bfloat16_and_with_checkpointing():
    run, image = scattered(searchable(small(), 1)).train(), torch.randn(2, 3, 32, 32)
    plain = run(image)
    run.set_grad_checkpointing()
    torch.testing.assert_close(run(image), plain)
    with torch.autocast("cpu", torch.bfloat16):
        run(image).float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in run.reducers.parameters() if p.grad is not None)


def test_a_nan_in_the_search_comes_out_as_nan():
    image = torch.randn(2, 3, 32, 32)
    image[0, 0, 3, 3] = float("nan")
    logits = scattered(searchable(small(), 1)).train()(image)
    assert logits[0].isnan().all() and logits[1].isfinite().all()


# Training


def pictures(batches, size=32):
    torch.manual_seed(2)
    return DataLoader([(torch.randn(3, size, size), i % 5) for i in range(8 * batches)], batch_size=8)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kinds", [("prune", "merge"), ("prune",), ("merge",)])
def test_a_search_meets_its_target_and_leaves_the_model_alone(kinds):
    model = small(embed_dim=32)
    model.cls_token.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = search(model, pictures(4), 0.7, steps=80, lr=0.2, granularity=1, kinds=kinds, name="small")
    run = searchable(model)
    assert found.macs(run.shape) / 1e9 == pytest.approx(found.target, rel=0.02)
    assert found.target == pytest.approx(0.7 * run.shape.full / 1e9) and found.model == "small"
    assert (found.prune is not None, found.merge is not None) == ("prune" in kinds, "merge" in kinds)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.training


@pytest.mark.filterwarnings("ignore")
def test_a_search_gives_back_what_was_trainable():
    model = caformer((1, 1, 3, 1), (8, 16, 32, 64), 5, 64)
    model.stem.requires_grad_(False)
    found = search(model, pictures(1, 64), 0.98, steps=2)
    assert found.prune is None and len(found.merge) == 4
    assert not model.stem.conv.weight.requires_grad and model.head.fc.fc2.weight.requires_grad


@pytest.mark.filterwarnings("ignore")
def test_the_recipe_runs_and_its_model_comes_back(tmp_path):
    data = tmp_path / "pictures"
    for label in "ab":
        for split in ("train", "test"):
            (data / split / label).mkdir(parents=True)
            for n in range(4):
                _picture(data / split / label / f"{n}.png", n)
    fast = ["--trainer.max_steps=2", "--data.init_args.batch_size=4", "--trainer.enable_progress_bar=false"]
    written = train("diffrate", "tiny", str(data), tmp_path / "run", fast)
    assert (tmp_path / "run" / "schedule.json").is_file()
    back = load_model(str(written))
    assert back.model.schedule.prune[0] == 65 and back.labels == ["a", "b"]
    eye = load_model("vitalk_eye").model.state_dict()
    assert all(torch.equal(v, eye[k]) for k, v in back.model.state_dict().items() if not k.startswith("head"))
    with torch.inference_mode():
        assert back.model(torch.randn(1, 3, 32, 32)).shape == (1, 2)


def _picture(path: Path, seed: int):
    import numpy as np
    from PIL import Image

    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)


def test_the_weight_of_the_macs_follows_the_models_size():
    module = RateSearch("test_vit", 1.0, {"pretrained": False}, 5)
    full = module.model.shape.full / 1e9
    assert module.lam * full**2 == pytest.approx(5 * 4.6**2) and module.target == pytest.approx(full)
    assert RateSearch("test_vit", f"{full}G", {"pretrained": False}, 5, lam=5.0).lam == 5.0


def test_refuses_searches_that_mean_nothing():
    with pytest.raises(UserError, match=r"must be in \(0, 1\], got 1.5"):
        search(small(), pictures(1), 1.5)
    with pytest.raises(UserError, match="cannot be reached"):
        search(small(), pictures(1), 0.01)
    with pytest.raises(UserError, match="granularity is a number of tokens"):
        searchable(small(), 0)
    with pytest.raises(UserError, match="needs a step"):
        search(small(), [], 0.7)


# The measurement


@pytest.mark.filterwarnings("ignore")
def test_the_measurement_compares_schedules_of_equal_macs():
    vit, labels = small(num_classes=10), torch.arange(20) % 10
    test = Pictures(torch.randint(0, 256, (20, 3, 32, 32), dtype=torch.uint8), labels)
    data = (Pictures(test.pixels.repeat(7, 1, 1, 1), labels.repeat(7), padding=1), test)
    shape = geometry(vit)
    hand = reproduce.by_hand(vit, shape, test, 0.6)
    assert set(hand) == {"uniform both", "uniform prune", "uniform merge", "tome"}
    target = reproduce.target_of(shape, 0.6)
    tome = count(reproduce.merged_to(vit, shape, target), torch.zeros(1, 3, 32, 32)).macs
    assert tome / 1e9 == pytest.approx(float(target[:-1]), rel=0.03)
    with budget("DiffRate", 1.0) as time:
        top1, macs, schedules = reproduce.by_search(vit, shape, data, 0.6, 2, 0, time)
        plain = reproduce.plain_vit(data[0], 0.0, time)
    assert set(top1) == set(macs) == {"learned both", "learned prune", "learned merge"}
    assert all(0 < value < 2 for value in macs.values()) and schedules["learned prune"][1] is None
    assert all(0 <= value <= 100 for value in (hand | top1).values())
    assert geometry(plain).entering == [65] * 6 and not plain.training


def test_speed_compares_the_same_pictures():
    found = reproduce.speed(0.0, "deit_tiny", 0.8, batches=(1,))
    assert [round(value, 2) for value in found.macs] == [1.25, 0.81] and found.worth > 0


@pytest.mark.parametrize(
    "macs, learned, others, worth, verdict",
    [
        (1.01, 90.0, (89.0, 89.9), 0.95, "reproduced"),
        (1.03, 90.0, (89.0, 89.9), 0.95, "not reproduced"),
        (1.01, 90.0, (89.0, 90.5), 0.95, "direction only"),
        (1.01, 90.0, (90.1, 89.9), 0.95, "direction only"),
        (1.01, 90.0, (89.0, 89.9), 0.85, "direction only"),
        (1.01, 90.0, (90.5, 89.9), 0.95, "not reproduced"),
    ],
)
def test_the_verdict_follows_from_the_figures(macs, learned, others, worth, verdict):
    hand, alone = others
    found = {
        "uniform both": hand,
        "tome": hand - 1,
        "learned both": learned,
        "learned prune": alone,
        "learned merge": 80.0,
    }
    figures = reproduce.Speed((4.0, 2.0), {1: (2 * worth, 1.0), 16: (2.0, 1.0)})
    top1 = {"eye at 65%": found, "plain at 50%": found}
    assert reproduce.judge([1.0, macs], top1, figures) == verdict
    run = ({}, {"learned both": 1.0, "learned prune": macs}, {})
    written = reproduce.report(figures, {"eye": 91.0}, top1, {"eye at 65%": [run] * 2}, 9, 100)
    assert written.verdict == verdict and f"learned {learned:.1f}" in written.measured
