"""MCTF against its official implementation and against the paper's own invariants."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer

from tests.parity import parity
from vitalk.deploy.onnx_export import export_onnx
from vitalk.deploy.preprocess import Preprocess
from vitalk.deploy.runtime import open_engine
from vitalk.errors import UserError
from vitalk.nn.attention import SiteAttention
from vitalk.systems.mctf import FuseTokens, mctf, with_r
from vitalk.systems.mctf.attention import attend_ahead, attention_map, fused_map, largest
from vitalk.systems.mctf.matching import LEAST, attraction, informativeness, to_fuse, two_way
from vitalk.systems.repq_vit import repq_vit
from vitalk.vision.cost import count
from vitalk.vision.merging import bipartite, cosines, mergeable, protect
from vitalk.vision.tokens import Tokens, Trunk

FIXTURES = Path(__file__).parents[1] / "parity"
MODEL, AFTER, FUSION = (
    parity.load(FIXTURES / f"mctf.{name}.json") for name in ("deit_tiny_r16", "deit_tiny_block_mode0_r96", "fusion")
)
SMALL = {"img_size": 32, "patch_size": 4, "embed_dim": 24, "depth": 4, "num_heads": 2, "num_classes": 5}
POOLINGS, MODES = ("size", "informative", "max", "mean"), ("ahead", "precise", "after")


def small(kind=VisionTransformer, **kwargs):
    torch.manual_seed(0)
    model = kind(**{**SMALL, **kwargs}).eval()
    for p in model.parameters():  # attention that differs from token to token, unlike timm's start
        if p.dim() == 2:
            torch.nn.init.normal_(p, std=p.shape[1] ** -0.5)
    return model


def filled(fixture):
    return {key: torch.from_numpy(value) for key, value in parity.filled_state(fixture).items()}


def given_input(fixture, name):
    return torch.from_numpy(parity.tensor(name, **fixture["inputs"][name]))


def with_class_token(source):
    """The adjacency that the release keeps: a column for the class token, and ones."""
    found = np.pad((source > 0).numpy().astype(np.float32), ((0, 0), (0, 0), (1, 0)))
    found[:, 0, 0] = 1
    return found


# The official model


@torch.inference_mode()
def test_agrees_with_the_official_model():
    run, image, expected = timm.create_model("mctf_deit_tiny"), given_input(MODEL, "image_e"), MODEL["outputs"]
    run.eval().load_state_dict(run.checkpoint_filter_fn({"model": filled(MODEL), "epoch": 3}, run))
    run.trace = True
    _, *leaving = run.walk(image)
    assert [t.features.shape[1] for t in leaving] == expected["token_count"]["value"]
    for block in (1, 6, 11):
        assert parity.distance(leaving[block].features.numpy(), expected[f"block_{block}"]) < 1e-4
    assert parity.distance(leaving[-1].size[..., None].numpy(), expected["size_last"]) == 0
    assert parity.distance(with_class_token(leaving[-1].source), expected["source_last"]) == 0
    assert parity.distance(run(image).numpy(), expected["logits"]) < 1e-4
    assert [(k, list(v.shape)) for k, v in run.state_dict().items()] == [(k, s) for k, s, _ in MODEL["state"]]
    assert sum(p.numel() for p in run.parameters()) == MODEL["params"]


@torch.inference_mode()
def test_agrees_with_the_official_model_that_fuses_after_the_mlp():
    blocks = [2, *range(4, 12)]
    vit = timm.create_model("deit_tiny_patch16_224", img_size=96, num_classes=10).eval()
    run = mctf(vit, 4, blocks, bidirectional=False, pooling="mean", mode="after", proportional=False)
    run.load_state_dict(filled(AFTER))
    image, expected = given_input(AFTER, "image"), AFTER["outputs"]
    _, *leaving = run.walk(image)
    assert [t.features.shape[1] for t in leaving] == expected["token_count"]["value"]  # never fewer than ten
    for block in (2, 8, 11):
        assert parity.distance(leaving[block].features.numpy(), expected[f"block_{block}"]) < 1e-4
    assert parity.distance(leaving[-1].size[..., None].numpy(), expected["size_last"]) == 0
    assert parity.distance(run(image).numpy(), expected["logits"]) < 1e-4


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("full", {}),
        ("full_pool0", {"pooling": "size"}),
        ("full_pool2", {"pooling": "max"}),
        ("full_pool3", {"pooling": "mean"}),
        ("onedir", {"bidirectional": False}),
        ("simonly", {"temperatures": (1, 0, 0)}),
        ("sharp", {"temperatures": (2, 1, 3)}),
        ("nosize", {}),
    ],
)
def test_fusing_agrees_with_the_official_functions(name, options):
    x, attention = given_input(FUSION, "tokens"), given_input(FUSION, "attn_logits").softmax(-1)
    size = None if name == "nosize" else given_input(FUSION, "size").float().squeeze(2)
    reducer, tokens = FuseTokens(9, **options), Tokens(x, size, torch.eye(37).expand(2, -1, -1))
    merge, weight = reducer.match(tokens, attention, 9)
    out = reducer.fuse(tokens, merge, weight)
    found = {
        "tokens": out.features,
        "size": out.size[..., None],
        "source": (out.source > 0).float(),
        "attn": fused_map(attention, merge, weight),
    }
    expected = {key: FUSION["outputs"].get(f"{name}_{key}") for key in found}
    assert expected["tokens"] and expected["attn"]
    for key, value in expected.items():
        assert value is None or parity.distance(found[key].numpy(), value) < 1e-5, key


# The paper's invariants


@pytest.mark.parametrize("mode", MODES)
@torch.inference_mode()
def test_fusing_nothing_is_the_plain_model(mode):
    vit, images = small(), torch.randn(2, 3, 32, 32)
    run = mctf(vit, 9, mode=mode)
    assert torch.equal(mctf(vit, 0, mode=mode)(images), vit(images))
    assert torch.equal(with_r(run, 0)(images), vit(images)) and not torch.equal(run(images), vit(images))


@settings(deadline=None, max_examples=40)
@given(
    tokens=st.integers(2, 24), prefix=st.integers(0, 4), wanted=st.integers(1, 20), seed=st.integers(0, 99),
    both=st.booleans(), pooling=st.sampled_from(["size", "informative", "mean"]), sized=st.booleans(),
)  # fmt: skip
def test_a_fusion_keeps_what_there_is(tokens, prefix, wanted, seed, both, pooling, sized):
    prefix = min(prefix, tokens)
    count_ = mergeable(tokens, prefix, wanted)
    if not count_:
        return
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, tokens, 5, generator=generator, dtype=torch.float64)
    size = torch.randint(1, 5, (2, tokens), generator=generator).double() if sized else None
    attention = torch.randn(2, 3, tokens, tokens, generator=generator, dtype=torch.float64).softmax(-1)
    reducer = FuseTokens(9, prefix, bidirectional=both, pooling=pooling)
    before = Tokens(x, size, torch.eye(tokens, dtype=x.dtype).expand(2, -1, -1))
    merge, weight = reducer.match(before, attention, count_)
    after = reducer.fuse(before, merge, weight)
    assert after.features.shape[1] == tokens - count_
    assert torch.equal(after.size.sum(1), (torch.ones_like(x[..., 0]) if size is None else size).sum(1))
    assert torch.equal(after.features[:, :prefix], x[:, :prefix])  # the prefix stays, in front
    torch.testing.assert_close(after.source @ x, after.features)  # the source map says what each token is made of
    assert torch.equal((after.source > 0).sum(1), torch.ones(2, tokens, dtype=torch.long))
    summed = fused_map(attention, merge, weight).sum(-1)
    torch.testing.assert_close(summed, torch.ones_like(summed))


@pytest.mark.parametrize("pooling", POOLINGS)
@torch.inference_mode()
def test_values_of_groups_are_as_good_as_a_fused_map(pooling):
    attn, x, reducer = small().blocks[1].attn, torch.randn(2, 33, 24), FuseTokens(9, pooling=pooling)
    size = torch.randint(1, 4, (2, 33)).float()
    attention = attention_map(attn, x, size)
    merge, weight = reducer.match(Tokens(x, size), attention, 9)
    fused = reducer.fuse(Tokens(x, size), merge, weight).features
    values = attn.qkv(fused)[..., 48:].unflatten(-1, (2, 12)).transpose(1, 2)
    expected = attn.proj((fused_map(attention, merge, weight) @ values).transpose(1, 2).flatten(2))
    torch.testing.assert_close(attend_ahead(attn, fused, attention, merge, weight), expected)


def test_similarity_alone_one_way_is_tomes_matching():
    x, attention = torch.randn(2, 21, 8), torch.rand(2, 2, 21, 21).softmax(-1)
    reducer = FuseTokens(5, temperatures=(1, 0, 0), bidirectional=False, pooling="size")
    merge, weight = reducer.match(Tokens(x), attention, 5)
    expected = bipartite(protect(cosines(x), 1), 5, 1)
    for name in ("kept", "moved", "into"):
        assert torch.equal(getattr(merge, name), getattr(expected, name))
    assert torch.equal(weight, torch.ones(2, 21))


@pytest.mark.parametrize("temperature", [1, 2, 20])
def test_attraction_is_the_product_of_its_criteria(temperature):
    x, informed, size = torch.randn(2, 9, 4), torch.rand(2, 9) + 0.01, torch.randint(1, 5, (2, 9)).float()

    def rarity(value):
        value = (1 / value) / (1 / value).amax(1, keepdim=True)
        return value[:, ::2, None] * value[:, None, 1::2]

    expected = ((cosines(x) + 1) / 2) ** (1 / temperature) * rarity(informed) ** (1 / 20) * rarity(size) ** (1 / 40)
    found = attraction(x, informed, size, (temperature, 20, 40))
    ratio = found / expected
    torch.testing.assert_close(ratio / ratio[:, :1, :1], torch.ones_like(ratio), rtol=1e-4, atol=1e-4)


def test_an_odd_token_takes_along_what_went_into_it():
    #                      odd 1  3
    scores = torch.tensor([[[9.0, 1.0], [2.0, 3.0], [8.0, 0.5]]])  # even 0, 2, 4
    merge = two_way(scores, 2)
    assert merge.moved.tolist() == [[0, 1]] and merge.into.tolist() == [[0, 0]]  # 0 into 1, and both into 4
    assert merge.kept.tolist() == [[4, 2, 3]]
    assert merge.sums(torch.tensor([[1.0, 10.0, 100.0, 1000.0, 10000.0]])).tolist() == [[10011.0, 100.0, 1000.0]]


@pytest.mark.parametrize("bidirectional", [True, False])
@torch.inference_mode()
def test_fusing_like_patches_loses_nothing(bidirectional):
    model, twins = small(pos_embed="none"), torch.randn(2, 3, 32, 4).repeat_interleave(8, 3)
    run = mctf(model, 20, (1,), (1, 0, 0), bidirectional, mode="precise")
    torch.testing.assert_close(run(twins), model(twins), rtol=1e-4, atol=1e-5)


def test_never_attended_tokens_do_no_harm():
    attention = torch.zeros(1, 2, 9, 9)
    attention[..., 0] = 1
    informed = informativeness(attention)
    assert informed[0].tolist() == [1.0] + [pytest.approx(LEAST)] * 8
    reducer, tokens = FuseTokens(3), Tokens(torch.randn(1, 9, 4))
    assert reducer.fuse(tokens, *reducer.match(tokens, attention, 3)).features.isfinite().all()
    opposite = torch.tensor([[[1.0, 0], [-1, 0], [1, 0], [-1, 1e-9]]])
    assert attraction(opposite, torch.ones(1, 4), None, (3, 20, 40)).isfinite().all()


@pytest.mark.parametrize(
    ("r", "tokens", "prefix", "fused"),
    [(16, 197, 1, 16), (0.35, 197, 1, 68), (0.35, 129, 1, 44), (16, 20, 1, 9), (4, 12, 1, 2), (0.35, 12, 1, 2),
     (150, 197, 1, 98), (16, 9, 1, 0), (0, 197, 1, 0), (0.5, 64, 0, 32), (1, 64, 0, 1), (30, 50, 5, 22)],
)  # fmt: skip
def test_counts_and_their_limits(r, tokens, prefix, fused):
    assert to_fuse(r, tokens, prefix) == fused


@pytest.mark.parametrize(
    ("name", "after"), [("mctf_deit_tiny", [197 - 16 * i for i in range(12)]),
                        ("mctf_fast_deit_tiny", [197] * 3 + [129] * 3 + [85] * 3 + [56] * 3)],
)  # fmt: skip
@torch.inference_mode()
def test_token_counts_of_the_paper(name, after):
    run = timm.create_model(name, embed_dim=24).eval()
    assert [t.features.shape[1] for t in run.walk(torch.randn(1, 3, 224, 224))][1:] == after


@pytest.mark.parametrize(
    ("name", "published"),
    [("deit_tiny", 0.71), ("fast_deit_tiny", 0.75), ("deit_small", 2.60), ("fast_deit_small", 2.76)],
)  # fmt: skip
def test_macs_of_the_paper(name, published):
    assert count(timm.create_model(f"mctf_{name}"), torch.randn(1, 3, 224, 224)).macs / 1e9 == pytest.approx(
        published, abs=0.011
    )


def test_macs_follow_the_tokens():
    """12 C^2 a token, of which queries and keys see those before fusing; maps and matching on those before too."""
    cost, c, entering = count(timm.create_model("mctf_deit_tiny"), torch.randn(1, 3, 224, 224)), 192, 197
    own = {b: sum(n for key, n in cost.layers.items() if f"blocks.{b}." in f"{key}.") for b in range(12)}
    assert own[0] == 12 * entering * c**2 + 2 * entering**2 * c
    for block in range(1, 12):
        leaving = entering - 16
        matching = -(-entering // 2) * (entering // 2) * (c + 1)
        assert own[block] == 2 * entering * c**2 + 10 * leaving * c**2 + 2 * entering**2 * c + matching
        entering = leaving


# Any ViT


@pytest.mark.parametrize("mode", MODES)
@torch.inference_mode()
def test_runs_on_models_of_all_forms(mode):
    images = torch.randn(2, 3, 32, 32)
    forms = [
        (VisionTransformer, {"class_token": False, "global_pool": "avg"}),
        (VisionTransformer, {"reg_tokens": 4}),
        (VisionTransformer, {"qkv_bias": False, "qk_norm": True, "scale_attn_norm": True, "init_values": 0.1}),
        (VisionTransformerDistilled, {}),
        (VisionTransformer, {"global_pool": "avg"}),
    ]
    for kind, options in forms:
        vit = small(kind, **options)
        run = mctf(vit, 9, mode=mode)
        entering, *_, leaving = run.walk(images)
        assert leaving.features.shape[1] == entering.features.shape[1] - 27 and run(images).isfinite().all()
        patches = entering.features.shape[1] - vit.num_prefix_tokens
        assert torch.equal(leaving.size[:, : vit.num_prefix_tokens], torch.ones(2, vit.num_prefix_tokens))
        assert torch.equal(leaving.size.sum(1), torch.full((2,), float(patches + vit.num_prefix_tokens)))


@torch.inference_mode()
def test_gates_stay():
    attn = timm.layers.Attention(24, 2, gated=True).eval()
    x = torch.randn(2, 12, 24)
    merge = bipartite(cosines(x), 0)
    back = merge.kept.argsort(1)[..., None].expand(-1, -1, 24)
    out = attend_ahead(attn, merge.sums(x), attention_map(attn, x, None), merge, torch.ones(2, 12))
    torch.testing.assert_close(out.gather(1, back), attn(x))


@torch.inference_mode()
def test_runs_on_t2t_vit():
    vit = timm.create_model("t2t_vit_7", img_size=32, splits=[(3, 2, 1), (3, 2, 1)], num_classes=5).eval()
    run, images = mctf(vit, 0.2, (2, 4)), torch.randn(2, 3, 32, 32)
    assert [t.features.shape[1] for t in run.walk(images)][-1] == 65 - 12 - 10
    assert torch.equal(with_r(run, 0)(images), vit(images)) and run(images).isfinite().all()
    run.load_state_dict(vit.state_dict())


@pytest.mark.parametrize("mode", MODES)
@torch.inference_mode()
def test_open_and_fused_kernels_agree(mode):
    images = torch.randn(2, 3, 32, 32)
    opened, vit = small(attn_layer=SiteAttention), small()
    torch.testing.assert_close(
        mctf(opened, 9, mode=mode)(images), mctf(vit, 9, mode=mode)(images), rtol=1e-4, atol=1e-5
    )


@torch.inference_mode()
def test_one_network_runs_at_two_strengths():
    run, images = mctf(small(), 9), torch.randn(2, 3, 32, 32)
    other = with_r(run, 0.1)
    walks = [zip(run.walk(images), other.walk(images), strict=True)]
    counts = [(a.features.shape[1], b.features.shape[1]) for walk in walks for a, b in walk]
    assert counts == [(65, 65), (65, 65), (56, 59), (47, 54), (38, 49)]
    assert other.vit is run.vit and [r.r for r in run.reducers if isinstance(r, FuseTokens)] == [9] * 3


@pytest.mark.parametrize("mode", MODES)
def test_pictures_that_are_not_numbers_stay_so(mode):
    images = torch.randn(2, 3, 32, 32)
    images[0, 0, 3, 3] = float("nan")
    out = mctf(small(), 9, range(4), mode=mode)(images)
    assert out[0].isnan().all() and out[1].isfinite().all()


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("mode", MODES)
def test_gradients_in_mixed_precision(mode, pooling):
    run = mctf(small().train(), 9, mode=mode, pooling=pooling)
    with torch.autocast("cpu", torch.bfloat16):
        loss = run(torch.randn(2, 3, 32, 32)).float().square().mean()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in run.parameters())


def test_gradient_checkpointing_changes_no_gradient():
    vit, images, gradients = small(), torch.randn(2, 3, 32, 32), []
    for enable in (False, True):
        vit.zero_grad()
        run = mctf(vit, 9)
        run.set_grad_checkpointing(enable)
        (run(images).square().sum() + with_r(run, 3)(images).square().sum()).backward()
        gradients.append(vit.blocks[0].attn.qkv.weight.grad.clone())
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    ("options", "form"),
    [
        ({}, {}),
        ({"pooling": "max", "mode": "after", "bidirectional": False}, {}),
        ({"temperatures": (2, 1, 0), "mode": "precise"}, {"reg_tokens": 2}),
    ],
)
def test_exports_to_onnx_with_any_batch_size(options, form, tmp_path):
    preprocess = Preprocess((32, 32), 1.0, "bicubic", (0.5,) * 3, (0.5,) * 3)
    run = mctf(small(depth=2, **form), 0.3, (0, 1), **options)
    path = export_onnx(run, tmp_path / "m.onnx", preprocess, list("abcde"))  # compares with torch, batches 2 and 1
    images = torch.randn(3, 3, 32, 32)
    with torch.inference_mode():
        np.testing.assert_allclose(open_engine(path)[0](images.numpy()), run(images).numpy(), rtol=1e-3, atol=1e-4)


def test_quantizes():
    run, images = mctf(small(), 5), torch.randn(4, 3, 32, 32)
    quantized = repq_vit(run, images, attention="float")
    assert isinstance(quantized, Trunk)
    with torch.inference_mode():
        apart = (quantized(images) - run(images)).norm() / run(images).norm()
    assert 0 < apart < 0.5


def test_largest_takes_maxima():
    x = torch.randn(2, 9, 3, 2)
    merge = bipartite(protect(cosines(x.flatten(2)), 1), 3, 1)
    found = largest(x, merge)
    groups = merge.sums(torch.eye(9).expand(2, -1, -1)) > 0
    for b, token in ((b, t) for b in range(2) for t in range(6)):
        torch.testing.assert_close(found[b, token], x[b, groups[b, token]].amax(0))


# Names and refusals


def test_timm_makes_it_by_name():
    run = timm.create_model("mctf_fast_deit_small", r=0.2, num_classes=7, depth=6, blocks=[1, 4], img_size=64)
    assert [i for i, r in enumerate(run.reducers) if isinstance(r, FuseTokens)] == [1, 4] and run.num_classes == 7
    assert run.reducers[1].r == 0.2 and "r=0.2" in repr(run.reducers[1])
    assert timm.data.resolve_model_data_config(run)["input_size"] == (3, 224, 224)
    for size in ("tiny", "small", "base"):
        assert timm.is_model(f"mctf_deit_{size}") and timm.is_model(f"mctf_fast_deit_{size}")


@pytest.mark.parametrize("r", [-1, -0.1, 1.5, float("nan"), float("inf")])
def test_refuses_numbers_that_mean_nothing(r):
    with pytest.raises(UserError, match="r must be a share"):
        mctf(small(), r, blocks=())
    with pytest.raises(UserError, match="r must be a share"):
        with_r(mctf(small(), 4), r)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: mctf(small(), 4, (1, 9)), r"blocks \[9\] do not exist: the model has 4"),
        (lambda: mctf(small(), 4, temperatures=(0, 0, 0)), "not all of them 0"),
        (lambda: mctf(small(), 4, temperatures=(1, -2, 3)), "from 0 up"),
        (lambda: mctf(small(), 4, temperatures=(1, 2)), "three numbers"),
        (lambda: mctf(small(), 4, mode="early"), "mode must be one of ahead, precise, after, got 'early'"),
        (lambda: mctf(small(), 4, pooling="sum"), "pooling must be one of size"),
        (lambda: mctf(timm.create_model("resnet10t")), "ResNet is no timm VisionTransformer"),
        (lambda: with_r(mctf(small(), 4, blocks=()), 2), "no blocks that fuse"),
        (lambda: timm.create_model("mctf_deit_tiny", features_only=True), "no feature maps"),
    ],
)
def test_refuses_other_mistakes(call, said):
    with pytest.raises(UserError, match=said):
        call()
