"""EViT against its official implementation and against the paper's own invariants."""

import math
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
from lightning import LightningModule, Trainer
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch.utils.data import DataLoader

from tests.parity import parity
from vitalk.errors import UserError
from vitalk.nn.attention import SiteAttention
from vitalk.systems.evit import KeepAttentive, evit, keep_rate_at, reproduce, set_keep_rate
from vitalk.systems.evit.method import attentive
from vitalk.systems.evit.schedule import KeepRateSchedule
from vitalk.vision.cost import count
from vitalk.vision.tokens import Attended, Tokens, Trunk, survivors

FIXTURE = parity.load(Path(__file__).parents[1] / "parity" / "evit.deit_tiny_keep07_fuse.json")
SMALL = {"img_size": 32, "patch_size": 4, "embed_dim": 24, "depth": 4, "num_heads": 2, "num_classes": 5}


def deit_tiny(**kwargs):
    return timm.create_model("deit_tiny_patch16_224", **kwargs).eval()


def small(**kwargs):
    torch.manual_seed(0)
    return VisionTransformer(**{**SMALL, **kwargs}).eval()


def token_counts(trunk, image):
    """Patch tokens that enter the MLP of each block, the fused token among them."""
    counts = []
    hooks = [b.mlp.register_forward_hook(lambda _, x, out: counts.append(out.shape[1])) for b in trunk.vit.blocks]
    with torch.inference_mode():
        trunk(image)
    for hook in hooks:
        hook.remove()
    return [n - trunk.num_prefix_tokens for n in counts]


def seen(patches, prefix=1):
    return Attended(class_attention=torch.rand(2, prefix + patches).softmax(1))


def traced(patches, dim=4, prefix=1):
    source = torch.cat([torch.zeros(prefix, patches), torch.eye(patches)]).expand(2, -1, -1)
    return Tokens(torch.randn(2, prefix + patches, dim), source=source)


# The official model


@pytest.fixture(scope="module")
def official():
    """The model with the fixture's weights, and what left each block."""
    model = deit_tiny()
    state = {k: torch.from_numpy(v) for k, v in parity.filled_state(FIXTURE).items()}
    run = evit(model, keep_rate=0.7)
    run.load_state_dict(run.checkpoint_filter_fn({"model": state}, run))
    run.trace, entering = True, []
    for block in model.blocks:
        block.norm1.register_forward_pre_hook(lambda _, inputs: entering.append(inputs[0]))
    with torch.inference_mode():
        tokens = run.forward_tokens(torch.from_numpy(parity.tensor("image", **FIXTURE["inputs"]["image"])))
        return run, tokens, run.forward_head(tokens.features), entering


def test_agrees_with_the_official_model(official):
    run, _, logits, entering = official
    assert parity.distance(logits.numpy(), FIXTURE["outputs"]["logits"]) < 1e-4
    for block in (3, 6, 9):
        assert parity.distance(entering[block + 1].numpy(), FIXTURE["outputs"][f"block_{block}"]) < 1e-4
    assert sum(p.numel() for p in run.parameters()) == FIXTURE["params"]


def test_has_the_official_state_dict(official):
    assert [(k, list(v.shape)) for k, v in official[0].state_dict().items()] == [(k, s) for k, s, _ in FIXTURE["state"]]


@torch.inference_mode()
def test_keeps_the_patches_that_the_official_model_keeps():
    run = evit(deit_tiny(), keep_rate=0.7, blocks=(3,))
    state = {k: torch.from_numpy(v) for k, v in parity.filled_state(FIXTURE).items()}
    run.load_state_dict(state)
    run.trace = True
    image = torch.from_numpy(parity.tensor("image", **FIXTURE["inputs"]["image"]))
    kept = run.forward_tokens(image).source[:, 1:139].argmax(2)
    assert parity.distance(kept.numpy(), FIXTURE["outputs"]["kept_index_0"]) == 0


# The paper's invariants


@torch.inference_mode()
def test_keep_rate_one_is_the_plain_model():
    model, image = deit_tiny(), torch.randn(2, 3, 224, 224)
    assert torch.equal(evit(model, keep_rate=1.0)(image), model(image))
    lowered = evit(model, keep_rate=0.7)
    assert not torch.equal(lowered(image), model(image))
    set_keep_rate(lowered, 1.0)
    assert torch.equal(lowered(image), model(image))


@pytest.mark.parametrize("fuse, after", [(True, (139, 99, 71)), (False, (138, 97, 68))])
def test_token_counts_of_the_paper(fuse, after):
    run = evit(deit_tiny(embed_dim=24), keep_rate=0.7, fuse=fuse)
    assert token_counts(run, torch.randn(1, 3, 224, 224)) == [196] * 3 + [n for n in after for _ in range(3)]


@settings(deadline=None, max_examples=40)
@given(rate=st.floats(0.05, 1.0), patches=st.integers(1, 60), fuse=st.booleans(), prefix=st.integers(1, 3))
def test_kept_and_fused_tokens_account_for_every_patch(rate, patches, fuse, prefix):
    tokens, attended = traced(patches, prefix=prefix), seen(patches, prefix)
    score = attended.class_attention[:, prefix:]
    out = KeepAttentive(rate, fuse, prefix)(tokens, attended)
    keep = math.ceil(rate * patches)
    if keep == patches:
        assert out is tokens
        return
    assert out.features.shape == (2, prefix + keep + fuse, 4)
    assert torch.equal(out.features[:, :prefix], tokens.features[:, :prefix])
    kept = out.source[:, prefix : prefix + keep]
    order = kept.argmax(2)
    assert torch.equal(kept, torch.eye(patches)[order])  # whole patches, none twice:
    assert all(len(set(row.tolist())) == keep for row in order)
    assert torch.equal(score.gather(1, order), score.topk(keep).values)  # the best, in descending order
    assert torch.equal(
        out.features[:, prefix : prefix + keep], tokens.features[:, prefix:][torch.arange(2)[:, None], order]
    )
    gone = kept.sum(1) == 0
    assert torch.equal(survivors(out.source), ~gone)
    if fuse:
        torch.testing.assert_close(out.source[:, -1], score * gone)
        fused = sum((score * gone)[:, j, None] * tokens.features[:, prefix + j] for j in range(patches))
        torch.testing.assert_close(out.features[:, -1], fused)


class Shuffled(KeepAttentive):
    def forward(self, tokens, seen):
        x = super().forward(tokens, seen).features
        order = torch.cat([torch.zeros(1, dtype=torch.long), 1 + torch.randperm(x.shape[1] - 1)])
        return replace(tokens, features=x[:, order])


@torch.inference_mode()
def test_the_order_of_kept_patches_does_not_matter_later():
    plain, image = evit(small(), 0.6, blocks=(1, 2)), torch.randn(2, 3, 32, 32)
    shuffled = Trunk(plain.vit, [Shuffled(0.6) if isinstance(r, KeepAttentive) else r for r in plain.reducers])
    torch.testing.assert_close(shuffled(image), plain(image), rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_open_and_fused_kernels_agree():
    vit, image = small(), torch.randn(2, 3, 32, 32)
    opened = small(attn_layer=SiteAttention)
    torch.testing.assert_close(evit(opened, 0.5, (1, 2))(image), evit(vit, 0.5, (1, 2))(image))


def test_macs_follow_the_papers_formula():
    """4 n_in C^2 + 2 n_in^2 C + 8 n_out C^2 a block; ranking and fusing add a row and a sum."""
    for fuse, after in ((True, (139, 99, 71)), (False, (138, 97, 68))):
        cost, c = count(evit(deit_tiny(), 0.7, fuse=fuse), torch.randn(1, 3, 224, 224)), 192
        entering, leaving = 197, 197
        for block in range(12):
            if block in (3, 6, 9):
                leaving = 1 + after[block // 3 - 1]
            own = sum(macs for name, macs in cost.layers.items() if f"blocks.{block}." in f"{name}.")
            ranking = entering * c if block in (3, 6, 9) else 0
            assert own == 4 * entering * c**2 + 2 * entering**2 * c + 8 * leaving * c**2 + ranking
            assert cost.layers.get(f"reducers.{block}", 0) == (c * (entering - 1) if fuse and ranking else 0)
            entering = leaving


@pytest.mark.parametrize("rate, published", [(0.9, 4.0), (0.8, 3.5), (0.7, 3.0), (0.6, 2.6), (0.5, 2.3)])
def test_macs_of_the_paper(rate, published):
    cost = count(timm.create_model("evit_deit_small", keep_rate=rate), torch.randn(1, 3, 224, 224))
    assert cost.macs / 1e9 == pytest.approx(published, abs=0.06)
    assert round(cost.params / 1e6, 1) == 22.1


# Rates and counts


@torch.inference_mode()
def test_a_rate_at_run_time_moves_designated_blocks_only():
    run, image = evit(small(), 0.7, blocks=(1, 2), fuse=False), torch.randn(1, 3, 32, 32)
    set_keep_rate(run, 0.5)
    assert token_counts(run, image) == [64, 32, 16, 16]
    plain = evit(small(), 1.0, blocks=(1, 2))
    set_keep_rate(plain, 0.5)  # built to keep everything: the second half of the double guard
    assert token_counts(plain, image) == [64] * 4
    fixed = evit(small(), 0.7, blocks=(1, 2), fuse=False, tokens=(40, 20))
    set_keep_rate(fixed, 0.5)
    assert token_counts(fixed, image) == [64, 40, 20, 20]


@torch.inference_mode()
def test_absolute_counts_override_the_rate():
    image = torch.randn(1, 3, 32, 32)
    assert token_counts(evit(small(), 1.0, (1, 2), tokens=30), image) == [64, 31, 31, 31]  # 30 kept, 1 fused
    vit = small()
    assert torch.equal(evit(vit, 0.5, (1,), tokens=64)(image), vit(image))
    with pytest.raises(UserError, match="65 tokens are to be kept where only 64 come in"):
        evit(small(), 0.7, (1,), tokens=65)(image)


@torch.inference_mode()
def test_other_picture_sizes_keep_the_share():
    run = evit(small(dynamic_img_size=True), 0.5, (1,), fuse=False)
    assert token_counts(run, torch.randn(1, 3, 48, 48)) == [144, 72, 72, 72]


@torch.inference_mode()
def test_distillation_and_register_tokens_always_stay():
    torch.manual_seed(0)
    distilled = VisionTransformerDistilled(**SMALL).eval()
    marks = {}
    run, image = evit(distilled, 0.1, (1, 2)), torch.randn(2, 3, 32, 32)
    run.reducers[1].register_forward_hook(
        lambda _, inputs, out: marks.update(before=inputs[0].features, after=out.features)
    )
    run(image)
    assert torch.equal(marks["before"][:, :2], marks["after"][:, :2]) and run.reducers[1].prefix == 2
    assert token_counts(evit(small(reg_tokens=4), 0.5, (1,), fuse=False), image) == [64, 32, 32, 32]


def test_keep_rate_falls_from_one_to_its_final_value():
    rates = [keep_rate_at(step, final=0.7, warm=10, length=100) for step in range(130)]
    assert rates[0] == rates[10] == 1.0 and rates[-1] == 0.7
    assert all(a >= b for a, b in pairwise(rates))
    assert rates[60] == pytest.approx(0.85)
    assert keep_rate_at(0, final=0.7, warm=0, length=0) == 0.7  # fine-tuning


def test_gradients_reach_the_weights_through_the_fused_token():
    run = evit(small().train(), 0.3, (1, 2))
    run(torch.randn(2, 3, 32, 32)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in run.parameters())


# Training


class Training(LightningModule):
    """Records the keep rate of every step."""

    def __init__(self, model):
        super().__init__()
        self.model, self.rates, self.validated = model, [], []

    def training_step(self, batch, _):
        self.rates.append([r.rate for r in attentive(self.model)])
        return self.model(batch).square().mean()

    def validation_step(self, batch, _):
        self.validated.append(attentive(self.model)[0].rate)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1e-3)


def train(module, tmp_path, **kwargs):
    pictures = DataLoader(torch.randn(8, 3, 32, 32), batch_size=2)
    resume = kwargs.pop("resume", None)
    options = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False}
    options |= {"enable_model_summary": False, "enable_checkpointing": False, "num_sanity_val_steps": 0}
    trainer = Trainer(default_root_dir=tmp_path, callbacks=[KeepRateSchedule(1, 2)], **options, **kwargs)
    trainer.fit(module, pictures, pictures, ckpt_path=resume, weights_only=False)
    return trainer


@pytest.mark.filterwarnings("ignore")
def test_the_schedule_moves_with_every_iteration_and_survives_resuming(tmp_path):
    module = Training(evit(small(), 0.5, (1, 2)))
    train(module, tmp_path, max_epochs=4)
    expected = [keep_rate_at(step, 0.5, 4, 8) for step in range(16)]
    assert module.rates == [[rate, rate] for rate in expected]
    assert module.validated[::4] == [expected[3], expected[7], expected[11], 0.5]
    first = Training(evit(small(), 0.5, (1, 2)))
    train(first, tmp_path, max_epochs=2).save_checkpoint(tmp_path / "half.ckpt")
    second = Training(evit(small(), 0.5, (1, 2)))
    train(second, tmp_path, max_epochs=4, resume=tmp_path / "half.ckpt")
    assert first.rates + second.rates == module.rates


@pytest.mark.filterwarnings("ignore")
def test_the_schedule_refuses_models_without_evit(tmp_path):
    with pytest.raises(UserError, match="no EViT blocks"):
        train(Training(small()), tmp_path, max_epochs=1)
    with pytest.raises(UserError, match="must not be negative"):
        KeepRateSchedule(-1, 3)


def test_every_preset_of_the_recipe_names_a_model_that_exists():
    text = resources.files("vitalk.systems.evit").joinpath("recipe.yaml").read_text()
    presets = yaml.safe_load(text)["presets"]
    assert {"tiny", "cpu", "paper", "finetune"} == set(presets)
    for preset in presets.values():
        options = preset["model"]["init_args"]
        run = timm.create_model(options["model"], num_classes=10, **{**options["model_args"], "pretrained": False})
        assert attentive(run)[0].keep_rate == 0.7
        size = preset["data"]["init_args"]["size"]
        assert run.vit.patch_embed.img_size == (size, size)


# Names and checkpoints


def test_timm_makes_it_by_name():
    run = timm.create_model("evit_deit_small", keep_rate=0.6, drop_loc=[2, 5], fuse=False, num_classes=7, depth=6)
    assert [r.keep_rate for r in attentive(run)] == [0.6, 0.6] and run.num_classes == 7
    assert [i for i, r in enumerate(run.reducers) if isinstance(r, KeepAttentive)] == [2, 5]
    assert timm.data.resolve_model_data_config(run)["input_size"] == (3, 224, 224)
    assert timm.is_model("evit_deit_tiny") and timm.is_model("evit_deit_base")


def test_official_checkpoints_load_at_other_resolutions():
    small_state = {k: torch.from_numpy(v) for k, v in parity.filled_state(FIXTURE).items()}
    run = timm.create_model("evit_deit_tiny", img_size=288)
    run.load_state_dict(run.checkpoint_filter_fn({"model": small_state, "epoch": 3}, run))
    table = small_state["pos_embed"][:, 1:].reshape(1, 14, 14, 192).permute(0, 3, 1, 2)
    wide = torch.nn.functional.interpolate(table, size=(18, 18), mode="bicubic").flatten(2).transpose(1, 2)
    torch.testing.assert_close(run.vit.pos_embed[:, 1:], wide)


@pytest.mark.filterwarnings("ignore")
def test_exports_to_onnx_with_any_batch_size(tmp_path):
    import onnxruntime

    run, path = evit(small(depth=2), 0.7, (0, 1)), tmp_path / "evit.onnx"
    images = torch.randn(3, 3, 32, 32)
    shapes = ({0: torch.export.Dim("batch")},)
    torch.onnx.export(run, (images[:2],), path, dynamo=True, dynamic_shapes=shapes, opset_version=20, verbose=False)
    session = onnxruntime.InferenceSession(path)
    for batch in (1, 3):
        got = session.run(None, {session.get_inputs()[0].name: images[:batch].numpy()})[0]
        with torch.inference_mode():
            np.testing.assert_allclose(got, run(images[:batch]).numpy(), atol=1e-5)


# Refusals


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.5, float("nan")])
def test_refuses_keep_rates_that_mean_nothing(rate):
    with pytest.raises(ValueError, match="keep_rate"):
        KeepAttentive(rate)
    with pytest.raises(UserError, match="keep_rate"):
        evit(small(), rate, blocks=())
    with pytest.raises(UserError, match="keep_rate"):
        set_keep_rate(evit(small(), 0.7, (1,)), rate)


def test_refuses_models_without_a_class_token():
    with pytest.raises(ValueError, match="class token"):
        evit(timm.create_model("vit_small_patch16_224", class_token=False, global_pool="avg"))


@pytest.mark.parametrize("pool", ["avg", "max", "map"])
def test_refuses_models_that_pool_patches(pool):
    with pytest.raises(UserError, match=f"pools with '{pool}'"):
        evit(small(global_pool=pool))


def test_refuses_other_mistakes():
    with pytest.raises(UserError, match=r"blocks \[9\] do not exist: the model has 4"):
        evit(small(), 0.7, (1, 9))
    with pytest.raises(UserError, match="2 token counts were given for 1 blocks"):
        evit(small(), 0.7, (1,), tokens=(3, 4))
    with pytest.raises(UserError, match="at least 1, got 0"):
        evit(small(), 0.7, (1,), tokens=0)
    with pytest.raises(UserError, match="ResNet is no timm VisionTransformer"):
        evit(timm.create_model("resnet10t"))
    with pytest.raises(UserError, match="no feature maps"):
        timm.create_model("evit_deit_tiny", features_only=True)


# The measurement


def test_ablations_rank_otherwise():
    attended, tokens = seen(20), traced(20)
    kept = {}
    for name, kind in reproduce.RANKINGS.items():
        source = kind(0.4, fuse=True)(tokens, attended).source
        kept[name] = {tuple(row.tolist()) for row in survivors(source)}
        rest = attended.class_attention[:, 1:] * ~survivors(source)
        torch.testing.assert_close(source[:, -1], rest)
    score = attended.class_attention[0, 1:]
    lowest = tuple((torch.zeros(20).scatter(0, score.topk(8, largest=False).indices, 1) > 0).tolist())
    assert lowest in kept["inverse"] and lowest not in kept["attention"]


@pytest.mark.parametrize(
    "speed, top1, verdict",
    [
        ((4.6, 3.0, 1.5), (80.0, 79.5, 70.0, 60.0), "reproduced"),
        ((4.6, 3.0, 1.3), (80.0, 79.5, 70.0, 60.0), "direction only"),
        ((4.6, 3.2, 1.5), (80.0, 79.5, 70.0, 60.0), "direction only"),
        ((4.6, 3.0, 1.5), (80.0, 78.5, 70.0, 60.0), "direction only"),
        ((4.6, 3.0, 1.5), (80.0, 79.5, 74.9, 60.0), "direction only"),
        ((4.6, 3.0, 1.5), (80.0, 79.5, 70.0, 71.0), "direction only"),
        ((4.6, 3.0, 1.5), (80.0, 78.5, 70.0, 71.0), "not reproduced"),
        ((4.6, 3.0, 1.5), (80.0, 79.5, 70.0, 74.9), "not reproduced"),
    ],
)
def test_the_verdict_follows_from_the_figures(speed, top1, verdict):
    figures = reproduce.Efficiency(speed[:2], (10.0, 10.0 * speed[2]), 64)
    shelf = dict(zip(["attention", "random", "inverse"], (75.0, *top1[2:]), strict=True))
    found = {f"shelf {name} fused": value for name, value in shelf.items()}
    found |= {"tuned dense": top1[0], "tuned attention fused": top1[1], "shelf dense": 79.0}
    assert reproduce.judge(figures, found) == verdict
    tuned = {name: found.pop(name) for name in ("tuned dense", "tuned attention fused")}
    written = reproduce.report(figures, found, [tuned] * 2, 9, 100)
    assert written.verdict == verdict and f"{100 * (speed[2] - 1):+.0f}%" in written.measured


def test_efficiency_compares_the_same_pictures():
    found = reproduce.efficiency(0.0, batch=1, name="deit_tiny_patch16_224")
    assert [round(m, 2) for m in found.macs] == [1.25, 0.82] and min(found.throughput) > 0


@pytest.mark.filterwarnings("ignore")
def test_all_rankings_are_tried_on_one_network():
    vit, ticks = small(depth=4, num_classes=10), []
    labels = torch.arange(20) % 10
    test = reproduce.Pictures(torch.randint(0, 256, (20, 3, 32, 32), dtype=torch.uint8), labels)
    train = reproduce.Pictures(test.pixels.repeat(10, 1, 1, 1), labels.repeat(10), padding=1)
    weights = {name: value.clone() for name, value in vit.state_dict().items()}
    shelf = reproduce.off_the_shelf(vit, test, lambda *_: None)
    tuned = reproduce.fine_tuned(vit, train, test, 2, 0, lambda *text: ticks.append(text))
    assert len(shelf) == 7 and len(tuned) == 5 and ticks.count(()) == 10
    assert all(0 <= value <= 100 for value in (shelf | tuned).values())
    assert all(torch.equal(value, weights[name]) for name, value in vit.state_dict().items())  # copies are tuned
