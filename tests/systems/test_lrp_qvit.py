"""LRP-QViT: the rules of relevance, the exact allocation, the clipped fold, on ViT, Swin, a trunk and hybrids."""

import copy
import json
from importlib import resources

import pytest
import timm
import torch
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from tests.nn.quant.test_export import exported, relative, run
from tests.nn.quant.test_sites import tiny_swin, tiny_vit
from tests.systems.test_repq_vit import difference, lively
from tests.systems.vision_checks import refuses_broken_input
from vitalk.errors import UserError
from vitalk.nn.quant import QuantConv2d, QuantMatMul, expose, quantizers, sites, switched_off, with_outliers
from vitalk.nn.quant.describe import bits_of, costs, packed_bytes
from vitalk.nn.quant.export import check_exportable, fold_weights
from vitalk.systems.lrp_qvit import Allocation, allocate, contributions, lrp_qvit, reproduce, saturation
from vitalk.systems.lrp_qvit.allocation import ladder
from vitalk.systems.lrp_qvit.clipping import clipped
from vitalk.systems.lrp_qvit.method import sensitivities, skeleton
from vitalk.systems.lrp_qvit.program import solve
from vitalk.systems.lrp_qvit.relevance import Rules, propagate
from vitalk.systems.repq_vit import repq_vit
from vitalk.vision.experiments import Calibrated, Pictures

MODELS = {"vit": (tiny_vit, 16), "swin": (tiny_swin, 32)}


def frozen(model):
    return expose(copy.deepcopy(model)).requires_grad_(False)


def relevance(function, x, start=None):
    """What ``function`` hands back to x [pictures, ...] for the relevance ``start`` of its output."""
    x = x.clone().requires_grad_()
    with Rules(torch.empty(len(x), 0)):
        out = function(x)
    return torch.autograd.grad(out, x, torch.ones_like(out) if start is None else start)[0]


# Relevance


class Residuals(nn.Module):
    """Linear layers without biases, and residuals around them."""

    def __init__(self, residual):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(12, 12, bias=False) for _ in range(3))
        self.head, self.residual = nn.Linear(12, 4, bias=False), residual

    def forward(self, x):
        x = x.flatten(1)
        for layer in self.layers:
            x = x + layer(x) if self.residual else layer(x).relu()
        return self.head(x)


@pytest.mark.parametrize("residual", [False, True])
def test_relevance_is_conserved_without_biases_and_norms(residual):
    torch.manual_seed(0)
    network, images = frozen(Residuals(residual).double()), torch.randn(6, 3, 2, 2, dtype=torch.float64)
    pixels, found = propagate(network, images)
    torch.testing.assert_close(pixels.sum((1, 2, 3)), torch.ones(6, dtype=torch.float64), rtol=0, atol=1e-3)
    torch.testing.assert_close(found["head"], torch.ones(6, dtype=torch.float64))


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), alone=st.booleans())
def test_linear_layers_share_by_what_spoke_for_the_output(seed, alone):
    generator = torch.Generator().manual_seed(seed)
    x, weight, start = (torch.rand(n, generator=generator, dtype=torch.float64) for n in ((2, 5), (3, 5), (2, 3)))
    if not alone:
        x, weight = x - 0.5, weight - 0.5
    parts = (x[:, None] * weight).clamp_min(0)  # [pictures, out, in]
    wanted = (parts / (parts.sum(2, keepdim=True) + 1e-9) * start[..., None]).sum(1)
    got = relevance(lambda x: nn.functional.linear(x, weight, weight[:, 0]), x, start)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    if alone:  # all positive: the shares of x * W
        shares = torch.einsum("bi,oi,bo->bi", x, weight, start / (x @ weight.T))
        torch.testing.assert_close(got, shares, rtol=1e-4, atol=1e-5)
    assert not relevance(lambda x: nn.functional.linear(x, weight), x, torch.zeros(2, 3)).any()


def test_one_active_path_gets_everything():
    network = nn.Sequential(nn.Flatten(1), nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 3))
    for layer in (network[1], network[3]):
        nn.init.zeros_(layer.weight), nn.init.zeros_(layer.bias)
    network[1].weight.data[2, 5], network[3].weight.data[1, 2] = 2.0, 3.0
    pixels, _ = propagate(frozen(network), torch.rand(2, 3, 2, 2) + 0.1)
    assert torch.allclose(pixels.flatten(1)[:, 5], torch.ones(2)) and pixels.count_nonzero() == 2


def test_products_keep_half_for_each_and_all_where_one_is_constant():
    torch.manual_seed(0)
    x, other = torch.rand(2, 4, 3) + 0.1, torch.rand(3, 5)
    for product in (lambda x: x @ x.transpose(1, 2), lambda x: x * x.flip(1)):
        torch.testing.assert_close(relevance(product, x).sum((1, 2)), torch.tensor([product(x)[0].numel()] * 2).float())
    torch.testing.assert_close(relevance(lambda x: x @ other, x).sum(), torch.tensor(40.0))
    start = torch.rand(2, 4, 3)
    assert torch.equal(relevance(lambda x: (x * 0.3).softmax(-1) + 7, x, start), start)


def test_residuals_share_by_their_sums_picture_by_picture():
    torch.manual_seed(0)
    a, b, start = (torch.randn(3, 2, 5, dtype=torch.float64) for _ in range(3))
    a, b = a.requires_grad_(), b.requires_grad_()
    with Rules(torch.empty(3, 0)):
        out = a + b
    got = torch.autograd.grad(out, (a, b), start)
    for i in range(3):
        shares = [(x[i] * start[i] / out[i]).detach() for x in (a, b)]
        sums = [share.sum().abs() for share in shares]
        for share, size, found in zip(shares, sums, got, strict=True):
            wanted = share / share.sum() * size / sum(sums) * start[i].sum()
            torch.testing.assert_close(found[i], wanted, rtol=1e-5, atol=1e-6)


def test_moves_of_tokens_move_relevance_and_means_give_it_to_what_is_positive():
    x, start = torch.randn(2, 4, 4, 3), torch.randn(2, 4, 4, 3)
    assert torch.equal(relevance(lambda x: x.roll((1, 2), (1, 2)), x, start), start.roll((-1, -2), (1, 2)))
    merge = lambda x: x.reshape(2, 2, 2, 2, 2, 3).permute(0, 1, 3, 4, 2, 5).flatten(3)  # noqa: E731
    assert torch.equal(merge(relevance(merge, x, merge(start))), merge(start))
    picked = relevance(lambda x: x.flatten(1, 2)[:, 0], x)
    assert picked[:, 0, 0].eq(1).all() and picked.sum() == 6
    pooled = relevance(lambda x: x.mean((1, 2)), x)
    assert (pooled[x < 0] == 0).all() and torch.allclose(pooled.sum((1, 2)), torch.ones(2, 3))


def test_patches_of_pictures_have_the_bounded_rule():
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 2, 2).double().requires_grad_(False)
    images = torch.randn(2, 3, 4, 4, dtype=torch.float64).requires_grad_()
    start = torch.rand(2, 4, 2, 2, dtype=torch.float64)
    with Rules(images):
        out = conv(images)
    (got,) = torch.autograd.grad(out, images, start)
    patches = lambda x: nn.functional.unfold(x, 2, stride=2).transpose(1, 2)  # noqa: E731
    weight, x = conv.weight.flatten(1), patches(images.detach())
    low, high = (f(images.detach(), (1, 2, 3))[:, None, None, None] for f in (torch.amin, torch.amax))
    parts = x[:, :, None] * weight - low * weight.clamp_min(0) - high * weight.clamp_max(0)
    parts = parts / parts.sum(3, keepdim=True) * start.flatten(2).transpose(1, 2)[..., None]
    torch.testing.assert_close(patches(got), parts.sum(2), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(got.sum((1, 2, 3)), start.sum((1, 2, 3)))


@pytest.mark.parametrize("name", MODELS)
def test_pictures_do_not_mix_and_fused_attention_is_opened(name):
    build, size = MODELS[name]
    torch.manual_seed(0)
    model, images = build().double(), torch.randn(5, 3, size, size, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 3, 4])
    pixels, found = propagate(frozen(model), images, labels, batch=3)
    alone, by_one = propagate(frozen(model), images, labels, batch=1)
    torch.testing.assert_close(pixels, alone)
    fused, _ = propagate(model.requires_grad_(False), images, labels)
    torch.testing.assert_close(fused, pixels)
    assert all(torch.allclose(found[site], by_one[site]) for site in found)
    assert pixels.isfinite().all() and all(bool((values > 0).all()) for values in found.values())


@pytest.mark.parametrize("name", MODELS)
def test_scores_sum_to_one_and_kinds_weigh_the_same(name):
    build, size = MODELS[name]
    torch.manual_seed(0)
    model, images = build(), torch.randn(4, 3, size, size)
    with torch.inference_mode():
        scores, plain = contributions(model, images), contributions(model, images, normalize="network")
    assert set(scores) == set(sites(expose(copy.deepcopy(model))))
    assert sum(scores.values()) == pytest.approx(1) == sum(plain.values())
    kinds = 8 if name == "vit" else 9
    for kind in ("qkv", "attn.proj", "matmul1", "fc2"):
        assert sum(score for site, score in scores.items() if site.endswith(kind)) == pytest.approx(1 / kinds)
    assert contributions(model, images, model(images).argmax(1)) == scores
    assert not any(p.grad is not None for p in model.parameters())


# Allocation


def solved(scores, sizes, choices=(3, 4, 5), target=4):
    bits, sizes = torch.tensor(choices), torch.tensor(sizes)
    away = (bits - target).square().expand(len(sizes), -1)
    gain = torch.tensor(scores, dtype=torch.float64)[:, None] * bits
    chosen = solve(gain, [sizes[:, None] * bits], [target * int(sizes.sum())], away)
    return bits[torch.tensor(chosen)]


UNITS = st.lists(st.tuples(st.floats(0.01, 1), st.integers(1, 10**8)), min_size=1, max_size=7)


@settings(deadline=None, max_examples=40)
@given(units=UNITS)
@example(units=[(1.0, 1), (1.0, 2043172), (1.0, 2043173)])
def test_the_budget_is_kept_and_nothing_is_better(units):
    scores, sizes = (list(part) for part in zip(*units, strict=True))
    taken = solved(scores, sizes)
    assert int((taken * torch.tensor(sizes)).sum()) <= 4 * sum(sizes)
    every = torch.cartesian_prod(*[torch.tensor([3, 4, 5])] * len(sizes)).view(-1, len(sizes))
    allowed = every[(every * torch.tensor(sizes)).sum(1) <= 4 * sum(sizes)]
    best = (allowed * torch.tensor(scores, dtype=torch.float64)).sum(1).max()
    assert (taken * torch.tensor(scores, dtype=torch.float64)).sum() >= best - 1e-6


@settings(deadline=None, max_examples=20)
@given(count=st.integers(1, 12), score=st.floats(0, 10), size=st.integers(1, 10**7))
def test_equal_scores_and_sizes_are_uniform_bits(count, score, size):
    assert (solved([score] * count, [size] * count) == 4).all()


@settings(deadline=None, max_examples=20)
@given(order=st.permutations(range(6)), seed=st.integers(0, 100))
def test_permuted_layers_have_permuted_bits(order, seed):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(6, generator=generator, dtype=torch.float64).tolist()
    sizes = torch.randint(100, 10_000, (6,), generator=generator).tolist()
    taken = solved(scores, sizes)
    assert torch.equal(solved([scores[i] for i in order], [sizes[i] for i in order]), taken[list(order)])


def spending(model, image, allocation):
    cost = costs(model, image)
    weights = sum(cost[name].params * weight for name, (weight, _) in allocation.bits.items())
    acts = sum(cost[name].inputs * act for name, (_, act) in allocation.bits.items())
    operations = sum(cost[name].macs * weight * act for name, (weight, act) in allocation.bits.items())
    return weights, acts, operations


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("limit", ["activations", "operations", "size"])
def test_networks_keep_both_budgets(name, limit):
    build, size = MODELS[name]
    torch.manual_seed(0)
    model, images = build(), torch.randn(2, 3, size, size)
    scores = contributions(model, images)
    found = allocate(model, images, scores=scores, limit=limit)
    uniform = allocate(model, images, scores=scores, choices=(0,))
    placed = skeleton(model, 4, 4)
    ours, fixed = (spending(placed, images[:1], a) for a in (found, uniform))
    assert ours[0] <= fixed[0] and found.bits != uniform.bits == bits_of(placed)
    assert ours[1] <= fixed[1] if limit == "activations" else limit == "size" or ours[2] <= fixed[2]
    assert all(bits in ((3, 3), (4, 4), (5, 5)) for site, bits in found.bits.items() if "patch_embed" not in site)
    assert found.bits["patch_embed.proj"][1] == 8
    assert packed_bytes(lrp_qvit(model, images, allocation=found)) <= packed_bytes(lrp_qvit(model, images, mixed=False))


def test_first_and_last_layers_may_have_their_own_bits_and_a_stem_is_one_unit():
    model, images = tiny_vit(), torch.randn(2, 3, 16, 16)
    found = allocate(model, images, 3, 3, ends_bits=8)
    assert found.bits["patch_embed.proj"] == found.bits["head"] == (8, 8)
    model.patch_embed.proj = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.GELU(), nn.Conv2d(8, 32, 8, 8))
    found = allocate(model, images, choices=(-1, 0, 1), attention="float")
    first, second = (found.bits[f"patch_embed.proj.{i}"] for i in (0, 2))
    assert first[0] == second[0] and (first[1], second[1]) == (8, second[0])
    assert not any("matmul" in site for site in found.bits)


@torch.inference_mode()
def test_allocations_are_saved_and_taken_again(tmp_path):
    torch.manual_seed(0)
    model, images = tiny_vit(), torch.randn(4, 3, 16, 16)
    found = allocate(model, images)
    again = Allocation.load(found.save(tmp_path / "bits.json"))
    assert again == found
    quantized = lrp_qvit(model, images)
    assert torch.equal(lrp_qvit(model, images, allocation=again)(images), quantized(images))
    assert bits_of(quantized) == found.bits
    path = tmp_path / "other.json"
    for text in ("{", "[]", json.dumps({"bits": {"head": [4]}, "scores": {}})):
        path.write_text(text)
        with pytest.raises(UserError, match="no allocation"):
            Allocation.load(path)
    path.write_text(json.dumps({"bits": {"head": [4, 9]}, "scores": {}}))
    with pytest.raises(UserError, match="2 to 8"):
        Allocation.load(path)
    with pytest.raises(UserError, match="no bits for"):
        lrp_qvit(tiny_vit(depth=3), images, allocation=again)


def test_sensitivity_moves_bits_to_where_quantization_hurts():
    torch.manual_seed(0)
    model, images = tiny_vit(), torch.randn(8, 3, 16, 16)
    scores = dict.fromkeys(contributions(model, images), 1.0)
    found = ladder(skeleton(model, 3, 3), images[:1], (-1, 0, 1))
    losses = sensitivities(model, images, found)
    assert set(losses) == set(scores) and all(len(each) == 3 for each in losses.values())
    weighed = allocate(model, images, 3, 3, scores=scores, sensitivity=True)

    def lost(bits):
        return sum(losses[name][found.steps[name].index(bits[name])] for name in losses)

    assert lost(weighed.bits) < lost(found.target)
    assert bits_of(lrp_qvit(model, images, 3, 3, sensitivity=True)) != bits_of(lrp_qvit(model, images, 3, 3))


# The quantized network


@torch.inference_mode()
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("integer", [True, False])
def test_unclipped_and_fixed_it_is_repq_bit_for_bit(name, integer):
    build, size = MODELS[name]
    model, images = lively(build()), torch.randn(4, 3, size, size)
    wanted = repq_vit(model, images, 4, 4, integer=integer)(images)
    assert torch.equal(lrp_qvit(model, images, mixed=False, clip=(0, 100), integer=integer)(images), wanted)
    fixed = lrp_qvit(model, images, mixed=False, integer=integer)
    assert torch.equal(lrp_qvit(model, images, choices=(0,), integer=integer)(images), fixed(images))


@torch.inference_mode()
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype, bound", [(torch.float32, 1e-4), (torch.float64, 1e-10)])
def test_the_float_network_is_unchanged(name, dtype, bound):
    build, size = MODELS[name]
    model, images = lively(build()).to(dtype), torch.randn(4, 3, size, size, dtype=dtype)
    before = copy.deepcopy(model.state_dict())
    quantized = lrp_qvit(model, images, clip=(10, 90))
    with switched_off(quantized):
        assert (quantized(images) - model(images)).abs().max() < bound
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@settings(deadline=None)
@given(seed=st.integers(0, 1000), low=st.floats(0, 40), high=st.floats(60, 100))
def test_clipping_moves_outliers_only_and_zero_points_stay_whole(seed, low, high):
    generator = torch.Generator().manual_seed(seed)
    scale, zero = torch.rand(50, generator=generator) + 0.1, torch.randint(0, 16, (50,), generator=generator).float()
    clipped_scale, clipped_zero, mean_scale, mean_zero = clipped((low, high))(scale, zero)
    bounds = scale.quantile(torch.tensor([low / 100, high / 100]))
    assert torch.equal(clipped_scale, scale.clamp(*bounds)) and torch.equal(clipped_zero, clipped_zero.round())
    assert mean_scale == clipped_scale.mean() and mean_zero == clipped_zero.mean()
    assert all(torch.equal(a, b) for a, b in zip(clipped((0, 100))(scale, zero), (scale, zero), strict=False))


@torch.no_grad()
def test_only_the_clipped_channels_saturate():
    torch.manual_seed(0)
    model, images = tiny_vit(embed_dim=64), torch.randn(16, 3, 16, 16)
    made = with_outliers(model, images[:1], channels=1, factor=50.0)
    shares = {}
    for clip in ((0, 100), (0, 95)):
        shares[clip] = saturation(lrp_qvit(made, images, 8, 8, mixed=False, clip=clip), images)
    assert set(shares[0, 100]) == {f"blocks.{i}.{layer}" for i in (0, 1) for layer in ("attn.qkv", "mlp.fc1")}
    for name, channels in shares[0, 95].items():
        assert channels.max() > 0.3 and 1 <= (channels > 0.1).sum() <= 8
        assert shares[0, 100][name].max() < 0.1


@torch.no_grad()
def test_mixed_bits_are_exported_with_integer_products(tmp_path):
    torch.manual_seed(0)
    model, images = tiny_vit(depth=1), torch.randn(6, 3, 16, 16)
    quantized = lrp_qvit(model, images, attention="float")
    assert len({q.bits for q in quantizers(quantized).values()}) > 2
    check_exportable(quantized)
    out, operators = run(fold_weights(exported(quantized, images)), images, tmp_path)
    assert relative(out, quantized(images).numpy()) < 1e-3
    assert operators["MatMulIntegerToFloat"] == 6


@torch.inference_mode()
def test_a_trunk_with_fewer_tokens_is_quantized_too():
    from vitalk.systems.evit import evit

    torch.manual_seed(0)
    trunk, images = evit(tiny_vit(img_size=32), keep_rate=0.7, blocks=(0,)), torch.randn(4, 3, 32, 32)
    for attention in ("float", "log-sqrt2"):
        assert difference(lrp_qvit(trunk, images, 8, 8, attention=attention)(images), trunk(images)) < 0.2
    scores = contributions(trunk, images)
    assert all(score > 0 for name, score in scores.items() if "matmul" not in name)


FORMS = {
    "deit_tiny_distilled_patch16_224": {
        "img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2,
    },
    "mobilevit_xxs": {},
    "pvt_v2_b0": {"embed_dims": (8, 16, 16, 16), "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)},
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
@torch.inference_mode()
def test_timm_models_of_other_forms(name):
    model, images = timm.create_model(name, num_classes=3, **FORMS[name]).eval(), torch.randn(2, 3, 32, 32)
    quantized = lrp_qvit(model, images, attention="float", labels=torch.tensor([0, 2]))
    assert quantized(images).shape == (2, 3) and quantized(images).isfinite().all()


@torch.inference_mode()
def test_quantizers_sit_where_repq_puts_them_and_constant_pictures_are_no_trouble():
    quantized = lrp_qvit(tiny_vit(), torch.zeros(2, 3, 16, 16), 5, 3, mixed=False)
    assert quantized(torch.zeros(2, 3, 16, 16)).isfinite().all()
    for site in sites(quantized).values():
        if not isinstance(site, QuantMatMul):
            assert site.weight_quantizer.bits == 5
            assert site.input_quantizer.bits == (8 if isinstance(site, QuantConv2d) else 3)
    assert lrp_qvit(tiny_vit(), torch.ones(2, 3, 16, 16))(torch.ones(2, 3, 16, 16)).isfinite().all()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"weight_bits": 1}, "weight_bits must be 2 to 8, got 1"),
        ({"act_bits": 9}, "act_bits"),
        ({"attention": "ln"}, "log2"),
        ({"choices": ()}, "choices"),
        ({"choices": (0.5,)}, "choices"),
        ({"choices": (1,)}, "budget"),
        ({"clip": (99, 1)}, "percentiles"),
        ({"clip": (-1, 99)}, "percentiles"),
        ({"labels": torch.tensor([0])}, "2 class numbers"),
        ({"labels": torch.tensor([0, 7])}, "0 to 4, got 0 to 7"),
    ],
    ids=lambda value: None if isinstance(value, str) else "_".join(value),
)
def test_refuses_settings_that_mean_nothing(change, message):
    with pytest.raises(UserError, match=message):
        lrp_qvit(tiny_vit(), torch.randn(2, 3, 16, 16), **change)


def test_refuses_broken_input():
    model, images = tiny_vit(), torch.randn(2, 3, 16, 16)
    with pytest.raises(UserError, match="pictures hold NaN"):
        allocate(model, images * float("nan"))
    for change, message in (({"limit": "bytes"}, "limit"), ({"ends_bits": 9}, "ends_bits")):
        with pytest.raises(UserError, match=message):
            allocate(model, images, **change)
    with pytest.raises(UserError, match="normalize"):
        contributions(model, images, normalize="depth")
    refuses_broken_input(lrp_qvit, model, images)


# The reproduction


def found_with(noise=0.1, **rows):
    values = {name.replace("_", " "): value for name, value in rows.items()}
    by_draw = {name: [values.get(name, 50.0) + d * noise for d in (-1, 0, 1)] for name in reproduce.names()}
    by_draw["w4a4 repq"] = by_draw["w3a3 repq"] = [50.0] * 3
    return Calibrated(by_draw, 89.9, 1000, 32)


@pytest.mark.parametrize(
    "rows, verdict",
    [
        ({"w4a4_mixed": 53.0}, "reproduced"),
        ({"w4a4_mixed": 53.0, "w4a4_random": 52.5}, "direction only"),
        ({"w4a4_mixed": 53.0, "w4a4_clipped": 49.0}, "direction only"),
        ({"w4a4_mixed": 53.0, "w4a4_reversed": 54.0}, "not reproduced"),
        ({"w4a4_mixed": 53.0, "noise": 5.0}, "not reproduced"),
        ({"w4a4_mixed": 51.0}, "direction only"),
        ({"w4a4_mixed": 49.0, "w3a3_mixed": 52.0, "w3a3_reversed": 40.0}, "direction only"),
        ({"w4a4_mixed": 50.2, "w3a3_mixed": 50.4}, "not reproduced"),
    ],
)
def test_the_verdict_follows_from_the_figures(rows, verdict):
    assert reproduce.judge(found_with(**rows)) == verdict


def test_reversed_and_random_scores_are_the_same_numbers():
    scores = {"a": 0.5, "b": 0.2, "c": 0.3}
    assert reproduce.reversed_scores(scores) == {"a": 0.2, "b": 0.5, "c": 0.3}
    assert sorted(reproduce.shuffled(scores, 1.0).values()) == [0.2, 0.3, 0.5]
    assert reproduce.rank_correlation(scores, scores) == pytest.approx(1)
    assert reproduce.rank_correlation(scores, reproduce.reversed_scores(scores)) == pytest.approx(-1)


def test_measures_every_row(monkeypatch, tmp_path):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (40, 3, 16, 16), generator=generator, dtype=torch.uint8)
    pictures = Pictures(pixels, torch.arange(40) % 5)
    model = type("Loaded", (), {"model": tiny_vit(depth=1)})
    monkeypatch.setattr(reproduce, "load_model", lambda _: model)
    monkeypatch.setattr(reproduce.Pictures, "cifar10", classmethod(lambda *_: pictures))
    monkeypatch.setattr(reproduce, "CALIBRATION", 4)
    monkeypatch.setattr(reproduce, "DRAWS", 2)
    found = reproduce.measure(0.05, tmp_path)
    assert set(found.details["top1"]) == set(reproduce.names()) and "reversed" in found.measured
    assert set(found.details["rank_correlation_with_sensitivity"]) == set(reproduce.BITS)
    assert 0 < found.details["relevance_at_the_pixels"] < 2
    assert found.details["percent_of_channels_that_saturate"]["clipped"] >= 0


def test_the_recipe_has_the_presets():
    text = resources.files("vitalk.systems.lrp_qvit").joinpath("recipe.yaml").read_text()
    presets = yaml.safe_load(text)["presets"]
    assert set(presets) == {"tiny", "cpu", "paper"}
    assert all(set(p) >= {"model", "data", "trainer"} for p in presets.values())
