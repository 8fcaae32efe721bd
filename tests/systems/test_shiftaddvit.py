"""ShiftAddViT against its official implementation, and against the paper's own invariants."""

import copy
import math
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import Attention
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from tests.parity import parity
from vitalk.errors import UserError
from vitalk.systems.shiftaddvit import (
    AngularAttention,
    BinaryCodes,
    KernelHash,
    Mix,
    MoELinear,
    ShiftLinear,
    ShiftLinearQ,
    ShiftLinearSP2,
    balance,
    checkpoint_filter_fn,
    collecting,
    dispatch,
    fit_hashing,
    fixed,
    multiplier_share,
    scv,
    shiftadd,
    smooth_load,
)
from vitalk.systems.shiftaddvit.hashing import similarity
from vitalk.systems.shiftaddvit.shift import shift_and_sign, sp2_table

FOLDER = Path(__file__).parents[1] / "parity"
SMALL = {"img_size": 32, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 5}


def fixture(variant):
    found = parity.load(FOLDER / f"shiftaddvit.{variant}.json")
    given = {name: torch.from_numpy(parity.tensor(name, **spec)) for name, spec in found["inputs"].items()}
    state = (
        {key: torch.from_numpy(value) for key, value in parity.filled_state(found).items()} if "state" in found else {}
    )
    return found["outputs"], given, state, found["params"]


def near(value, expected):
    return parity.distance(value.detach().numpy(), expected) < 1e-4


def small(**kwargs):
    torch.manual_seed(0)
    return VisionTransformer(**{**SMALL, **kwargs}).eval()


def images(batch=2, size=32):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


# The official layers


def test_rounding_agrees_with_the_official_functions():
    out, x, _, _ = fixture("shift_linear")
    weight = 0.3 * x["weight"]
    shift, sign = shift_and_sign(weight)
    assert near(fixed(x["x"]), out["fixed_16_16"]) and near(shift, out["shift"]) and near(sign, out["sign"])
    assert near(shift.exp2() * sign, out["power_of_2"])
    assert near(sp2_table()[0], out["apot_values"])
    for name, value in ShiftLinearSP2.parts(weight).items():
        assert near(value, out[f"apot_{name}"])


def test_deepshift_ps_agrees_with_the_official_layer_and_its_gradients():
    out, x, _, _ = fixture("shift_linear")
    layer, entering = ShiftLinear(24, 12), x["x"].clone().requires_grad_()
    layer.shift.data, layer.sign.data, layer.bias.data = 18 * x["shift_unit"] - 16, x["sign_raw"], x["bias"]
    answer = layer(entering)
    (answer * x["grad_out"]).sum().backward()
    assert near(answer, out["ps_out"]) and near(entering.grad, out["ps_grad_x"])
    assert near(layer.shift, out["ps_shift_after"])  # put back into its range
    for name in ("shift", "sign", "bias"):
        assert near(getattr(layer, name).grad, out[f"ps_grad_{name}"])
    assert near(layer.eval().quantized_weight(), out["ps_weight_from_function"])


def dense(x):
    linear = nn.Linear(24, 12)
    linear.weight.data, linear.bias.data = 0.3 * x["weight"], x["bias"]
    return linear


def test_deepshift_q_and_sums_of_two_powers_agree_with_the_official_layers():
    out, x, _, _ = fixture("shift_linear")
    assert near(ShiftLinear.from_linear(dense(x))(x["x"]), out["converted_out"])
    layer, entering = ShiftLinearQ.from_linear(dense(x)), x["x"].clone().requires_grad_()
    answer = layer(entering)
    (answer * x["grad_out"]).sum().backward()
    assert near(answer, out["q_out"]) and near(entering.grad, out["q_grad_x"])
    assert near(layer.weight.grad, out["q_grad_weight"])
    double = ShiftLinearSP2(24, 12)
    parts = [*(-2.9 * x["sp2_shift"]), *x["sp2_sign"], x["bias"]]
    for name, value in zip(("shift_1", "shift_2", "sign", "sign_1", "sign_2", "bias"), parts, strict=True):
        getattr(double, name).data = value.clone()
    assert near(double(x["x"]), out["sp2_out"])


@pytest.mark.parametrize("name", ["binary", "binary_sparse", "ksh"])
def test_attention_agrees_with_the_official_modules_and_their_gradients(name):
    out, x, state, _ = fixture("attention")
    kind = "hash" if name == "ksh" else "binary"
    attn = AngularAttention(Attention(64, 4, qkv_bias=True), kind, "batch", sparse=name == "binary_sparse")
    own = {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
    own = {key.replace("qk_quant.ksh", "codes"): value for key, value in own.items()}
    attn.load_state_dict(own | ({"codes.fitted": torch.tensor(True)} if kind == "hash" else {}))
    attn.train(name == "binary_sparse")  # the branch is for training; the release always takes it
    entering = x["tokens"].clone().requires_grad_()
    answer = attn(entering)
    (answer * x["grad_out"]).sum().backward()
    assert near(answer, out[f"{name}_out"]) and near(entering.grad, out[f"{name}_grad"])


def test_hashing_agrees_with_the_official_codes_and_fit():
    out, x, state, _ = fixture("attention")
    hashing = KernelHash(4, 16)
    own = {key.removeprefix("hash."): value for key, value in state.items() if key.startswith("hash.")}
    hashing.load_state_dict(own | {"fitted": torch.tensor(True)})
    assert near(hashing(x["heads"]), out["hash_codes"])

    out, x, state, _ = fixture("hash_fit")
    hashing, vectors = KernelHash(2, 8, bits=4, anchors=6), F.normalize(x["w"], dim=-1)
    hashing.A.copy_(state["A"])
    hashing.fit(vectors, anchors=vectors[0, :, :6])
    assert near(similarity(vectors), out["similarity"]) and near(hashing(vectors), out["codes"])
    for name in ("A", "mvec", "anchor"):
        assert near(getattr(hashing, name), out[name])


def mixture(state, prefix, weighted):
    _, x, _, _ = fixture("moe")
    linear = nn.Linear(24, 16)
    linear.weight.data = 0.3 * x["expert_weight"]
    moe = MoELinear(linear, weighted=weighted).eval()
    own = {f"m.{key.removeprefix(prefix)}": value for key, value in state.items() if key.startswith(prefix)}
    holder = nn.Module()
    holder.m = moe
    made = checkpoint_filter_fn({key.replace(".gate.gate.", ".router."): v for key, v in own.items()}, holder)
    shifts = {f"m.experts.1.{key}": v for key, v in ShiftLinear.parts(0.3 * x["expert_weight"]).items()}
    holder.load_state_dict(made | shifts)
    return moe


@torch.inference_mode()
def test_mixtures_agree_with_the_official_ones():
    """The default gate gives its expert's answer unweighted; the other scales it, without the detour by logarithms."""
    out, x, state, _ = fixture("moe")
    naive, noisy = mixture(state, "moe.", weighted=False), mixture(state, "moe_v2.", weighted=True)
    assert near(naive(x["tokens"]), out["moe_out"])
    assert near(naive(x["tokens"]).flatten(0, 1), out["moe_plain"])
    assert near(noisy(x["tokens"]).flatten(0, 1), out["moe_v2_plain"])


def test_the_balance_agrees_with_the_official_gates():
    """The evaluated V2 gate counts its load hard; the first noisy gate compares logits with logits, as we do."""
    out, x, state, _ = fixture("moe")
    alpha = torch.tensor([6.0, 4.0])
    assert near(scv(torch.tensor([3.0, 5.0, 1.0, 7.0])).reshape(1), out["cv_squared"])
    logits = x["x"] @ state["noisy2.w_gate"]
    counts = F.one_hot(logits.argmax(1), 2).sum(0).float()
    assert near((scv(counts) + scv(alpha * logits.softmax(1).sum(0))).reshape(1), out["v2_eval_loss"])
    clean = x["x"] @ state["noisy.w_gate"]
    std = F.softplus(x["x"] @ state["noisy.w_noise"]) + 1e-2
    noisy = clean + x["noise"] * std
    hard = F.one_hot(noisy.argmax(1), 2).sum(0).float()
    assert near((scv(alpha * hard) + scv(alpha * smooth_load(clean, noisy, std))).reshape(1), out["noisy_loss"])


def test_dispatch_agrees_with_the_official_dispatcher():
    """Without its combine's logarithms, which lose nothing on these values."""
    out, x, _, _ = fixture("moe")
    choice = (x["gates"][:, 0] > 0.5).long()
    order = choice.argsort(stable=True)
    assert near(x["e0"][order], out["dispatched"]) and near(
        torch.bincount(choice, minlength=2).float(), out["part_sizes"]
    )


@pytest.mark.parametrize("variant, attention", [("base", "keep"), ("hash", "hash")])
def test_agrees_with_the_official_networks(variant, attention):
    out, x, state, params = fixture(f"pvtv2_b0_{variant}")
    net = timm.create_model("shiftadd_pvt_v2_b0", attention=attention, linears="mult").eval()
    net.load_state_dict(net.checkpoint_filter_fn({"model": state}, net))
    assert sum(p.numel() for p in net.parameters()) == params
    seen = {}
    net.patch_embed.register_forward_hook(lambda *args: seen.update(after_stem=args[2].flatten(1, 2)))
    for i, stage in enumerate(net.stages, 1):
        stage.register_forward_hook(lambda *args, i=i: seen.update({f"stage_{i}": args[2].flatten(2).transpose(1, 2)}))
    with torch.inference_mode():
        assert near(net(x["image"]), out["logits"])
    assert all(near(value, out[name]) for name, value in seen.items()) and len(seen) == 5


def official(key):
    """Our name -> the release's, for a net with mixtures."""
    parts = key.split(".")
    if parts[0] == "stages" and parts[2] == "blocks":
        parts[:4] = [f"block{int(parts[1]) + 1}", parts[3]]
    elif parts[0] == "stages":
        parts[:3] = [f"{'patch_embed' if parts[2] == 'downsample' else 'norm'}{int(parts[1]) + 1}"]
    elif parts[0] == "patch_embed":
        parts[0] = "patch_embed1"
    key = ".".join(parts)
    key = key.replace(".codes.", ".qk_quant.ksh.").replace(".router.", ".gate.gate.")
    return key.replace(".mlp.dwconv.", ".mlp.dwconv.dwconv.")


@pytest.mark.parametrize("attention, gate", [("hash", "naive"), ("keep", "v2")])
def test_official_mixtures_load_whatever_their_gate(attention, gate):
    net = timm.create_model("shiftadd_pvt_v2_b0", attention=attention, linears="moe", anchors=4, weighted=False).eval()
    state, dim = {}, 0
    for key, value in net.state_dict().items():
        value = torch.from_numpy(parity.fill(key, value.shape)) if value.is_floating_point() else value
        if ".router." in key and gate == "v2":
            if key.endswith("bias"):
                continue
            key, value = key.replace(".router.weight", ".gate.w_gate"), value.T
        if not key.endswith("fitted"):
            state[official(key)] = value
    state["block1.0.attn.qk_quant.projection_matrix"] = torch.zeros(3, 3)
    if attention == "hash":  # the release's last stage has q, k and v in one
        for block in (0, 1):
            for kind in ("weight", "bias"):
                q, kv = (state.pop(f"block4.{block}.attn.{name}.{kind}") for name in ("q", "kv"))
                state[f"block4.{block}.attn.qkv.{kind}"] = torch.cat([q, kv])
                dim = q.shape[0]
    made = net.checkpoint_filter_fn(state, net)
    net.load_state_dict(made)
    assert dim in (0, 256)
    for key, value in net.state_dict().items():
        wanted = torch.from_numpy(parity.fill(key, value.shape)) if value.is_floating_point() else torch.tensor(True)
        if gate == "v2" and key.endswith("router.bias"):
            wanted = torch.zeros(2)
        assert torch.equal(value, wanted), key
    assert net(images(size=64)).isfinite().all()


def test_parameter_counts_are_exact():
    plain = sum(p.numel() for p in timm.create_model("deit_tiny_patch16_224").parameters())
    counts = {}
    for linears in ("mult", "shift", "shift-q", "sp2", "moe"):
        net = timm.create_model("shiftadd_deit_tiny", attention="binary", linears=linears)
        counts[linears] = sum(p.numel() for p in net.parameters()) - plain - 12 * 3 * 9  # convolutions over values
    weights, biases = 12 * 12 * 192**2, 12 * (4 + 5) * 192
    routers = 12 * (3 * (2 * 192 + 2) + 2 * 768 + 2)
    assert counts == {
        "mult": 0,
        "shift": weights,
        "shift-q": 0,
        "sp2": 4 * weights,
        "moe": 2 * weights + biases + routers,
    }


# The paper's invariants


@settings(max_examples=25, deadline=None)
@given(bits=st.integers(2, 5), scale=st.floats(1e-6, 30.0), seed=st.integers(0, 99))
def test_shift_weights_are_powers_of_two_or_zero(bits, scale, seed):
    torch.manual_seed(seed)
    linear = nn.Linear(7, 9)
    linear.weight.data = scale * torch.randn(9, 7)
    linear.weight.data[0, :3] = 0
    for kind, lowest in ((ShiftLinear, 2 ** (bits - 1) - 2), (ShiftLinearQ, 2 ** (bits - 1) - 1)):
        weight = kind.from_linear(linear, bits).quantized_weight()
        allowed = {0.0} | {sign * 2.0**-k for k in range(lowest + 1) for sign in (1, -1)}
        assert set(weight.flatten().tolist()) <= allowed
        assert (weight[0, :3] == 0).all() and torch.equal(weight.sign(), linear.weight.sign())


@settings(max_examples=25, deadline=None)
@given(st.floats(-40000, 40000, width=32))
def test_fixed_point_is_floored_and_clamped(value):
    expected = min(max(math.floor(value * 2**16) / 2**16, -(2.0**15)), 2.0**15 - 1)
    x = torch.tensor([value], requires_grad=True)
    assert fixed(x).item() == np.float32(expected)
    fixed(x).sum().backward()
    assert x.grad.item() == 1  # straight through, also where clamped


@settings(max_examples=20, deadline=None)
@given(tokens=st.integers(1, 9), dim=st.integers(1, 5), seed=st.integers(0, 99))
def test_linear_angular_attention_is_the_same_in_either_order(tokens, dim, seed):
    torch.manual_seed(seed)
    q, k, v = torch.randn(3, 2, 2, tokens, dim, dtype=torch.double)
    quadratic = 0.5 * v + (q @ k.transpose(-2, -1)) @ v / math.pi
    torch.testing.assert_close(Mix()(q, k, v), quadratic)


@torch.inference_mode()
def test_pictures_do_not_depend_on_their_batch():
    for kind in ("linear", "binary", "hash"):
        net = fit_hashing(shiftadd(small(), kind, "moe"), images()).eval()
        both = net(images(4))
        torch.testing.assert_close(torch.cat([net(image[None]) for image in images(4)]), both, rtol=1e-4, atol=1e-5)
    codes = BinaryCodes("batch")
    x = torch.randn(2, 1, 4, 3) + torch.tensor([0.0, 3.0])[:, None, None, None]
    assert not torch.equal(codes(x)[:1], codes(x[:1]))  # the release's


def test_all_zero_rows_stay_zero():
    attn = AngularAttention(Attention(24, 2, qkv_bias=False), "binary")
    attn.proj.bias.data.zero_()
    out = attn(torch.zeros(1, 6, 24, requires_grad=True))
    assert torch.equal(out, torch.zeros(1, 6, 24))
    out.sum().backward()
    assert all(p.grad.isfinite().all() for p in attn.parameters() if p.grad is not None)


@settings(max_examples=25, deadline=None)
@given(tokens=st.integers(0, 20), experts=st.integers(2, 4), seed=st.integers(0, 99))
def test_dispatch_equals_a_dense_sum_with_one_hot_gates(tokens, experts, seed):
    torch.manual_seed(seed)
    layers = [nn.Linear(3, 5) for _ in range(experts)]
    x, choice = torch.randn(tokens, 3), torch.randint(experts, (tokens,))
    gates = F.one_hot(choice, experts).float()
    expected = sum(gates[:, i, None] * layer(x) for i, layer in enumerate(layers))
    torch.testing.assert_close(dispatch(layers, x, choice), expected)


def test_only_its_expert_sees_a_token():
    moe = MoELinear(nn.Linear(6, 4)).eval()
    seen = []
    for expert in moe.experts:
        expert.register_forward_hook(lambda _, inputs, out: seen.append(len(inputs[0])))
    x = torch.randn(2, 7, 6)
    out = moe(x)
    p = moe.router(x).softmax(-1)
    assert sum(seen) == 14 and seen[0] == int((p.argmax(-1) == 0).sum())
    answers = torch.stack([expert(x) for expert in moe.experts], -1)
    torch.testing.assert_close(out, (answers * (p * F.one_hot(p.argmax(-1), 2))[:, :, None]).sum(-1))
    out.sum().backward()
    assert moe.router.weight.grad.abs().sum() > 0  # the probability teaches the router


def test_the_balance_is_least_where_latencies_are_equal():
    assert scv(torch.full((4,), 7.0)) == 0
    alpha = torch.tensor([0.6, 0.4])
    assert scv(alpha * torch.tensor([40.0, 60.0])) < 1e-10 < scv(alpha * torch.tensor([50.0, 50.0]))
    clean = torch.randn(50, 2)
    noisy = clean + torch.randn(50, 2) / 2
    even = scv(clean.softmax(1).sum(0)) + scv(smooth_load(clean, noisy, 0.5))
    torch.testing.assert_close(balance(clean, noisy, torch.tensor([0.5, 0.5])), even)  # the ordinary losses
    draws = [clean + torch.randn(50, 2) / 2 for _ in range(500)]
    counted = torch.stack([F.one_hot(d.argmax(1), 2).sum(0).float() for d in draws]).mean(0)
    expected = torch.stack([smooth_load(clean, d, 0.5) for d in draws]).mean(0)
    torch.testing.assert_close(expected, counted, rtol=0.03, atol=0)


@pytest.mark.parametrize("alpha, share", [((0.6, 0.4), 0.4), ((0.4, 0.6), 0.6), ((3, 1), 0.25)])
def test_the_share_of_tokens_tends_to_what_latencies_ask_for(alpha, share):
    torch.manual_seed(0)
    moe, x = MoELinear(nn.Linear(8, 4), alpha=alpha), torch.randn(600, 8)
    optimizer = torch.optim.Adam(moe.router.parameters(), 2e-2)
    for _ in range(150):
        with collecting(moe) as losses:
            moe(x)
        optimizer.zero_grad()
        losses[0].backward()
        optimizer.step()
    with torch.inference_mode():
        assert multiplier_share(moe, x)[0] == pytest.approx(share, abs=0.06)


def test_hashing_is_fitted_once_and_travels_with_the_weights():
    first = shiftadd(small(), "hash", "mult", anchors=9)
    with pytest.raises(UserError, match="never fitted"):
        first.eval()(images())
    first.train()(images())
    state = copy.deepcopy(first.state_dict())
    first(images(3))
    hashed = [key for key in state if ".codes." in key]
    assert len(hashed) == 8 and all(torch.equal(state[key], first.state_dict()[key]) for key in hashed)
    second = shiftadd(small(), "hash", "mult", anchors=9)
    second.load_state_dict(state)
    assert torch.equal(second.eval()(images()), first.eval()(images()))
    with torch.inference_mode():
        fit_hashing(third := shiftadd(small(), "hash", "mult", anchors=9).eval(), images())
        assert third(images()).isfinite().all() and not third.blocks[0].attn.codes.training


# Conversion


@torch.inference_mode()
def test_dense_weights_load_in_every_stage():
    vit, x = small(), images()
    for attention, linears in (("keep", "mult"), ("binary", "moe"), ("hash", ("moe", "sp2")), ("linear", "shift-q")):
        torch.manual_seed(5)
        net = fit_hashing(shiftadd(vit, attention, linears), x)
        other = shiftadd(VisionTransformer(**SMALL).eval(), attention, linears)
        made = other.checkpoint_filter_fn(vit.state_dict(), other)
        assert set(made) == set(other.state_dict())
        new = {
            key: value for key, value in net.state_dict().items() if any(n in key for n in ("router", "dconv", "codes"))
        }
        other.load_state_dict(made | new)
        assert torch.equal(other(x), net(x))
    assert torch.equal(shiftadd(vit, "keep", "mult")(x), vit(x))
    assert list(shiftadd(vit, "keep", "mult").state_dict()) == list(vit.state_dict())


def test_stages_follow_one_another_and_leave_the_given_network_alone():
    vit = small()
    before = copy.deepcopy(vit.state_dict())
    torch.manual_seed(3)
    second = shiftadd(vit, "binary", "mult")
    third = shiftadd(second, "keep", ("shift", "moe"))
    kinds = {name: type(m) for name, m in third.named_modules()}
    assert kinds["blocks.0.attn.qkv"] is ShiftLinear and kinds["blocks.1.mlp.fc2"] is MoELinear
    assert kinds["blocks.0.attn"] is AngularAttention and kinds["head"] is nn.Linear
    assert type(second.blocks[0].attn.qkv) is nn.Linear
    assert all(torch.equal(value, before[key]) for key, value in vit.state_dict().items())


@torch.inference_mode()
def test_pvt_keeps_softmax_in_its_last_stage():
    plain = timm.create_model("pvt_v2_b0", num_classes=5).eval()
    net = shiftadd(plain, "binary", "shift").eval()
    attn = [[block.attn for block in stage.blocks] for stage in net.stages]
    assert all(isinstance(a, AngularAttention) for stage in attn[:3] for a in stage)
    assert not any(isinstance(a, AngularAttention) for a in attn[3]) and type(attn[3][0].q) is nn.Linear
    assert isinstance(net.stages[3].blocks[0].mlp.fc1, ShiftLinear) and isinstance(attn[0][0].kv, ShiftLinear)
    assert net(images(size=64)).shape == (2, 5)
    msa = shiftadd(plain, "msa", "mult")
    assert not any(".sr." in key for key in msa.state_dict()) and any(".sr." in key for key in plain.state_dict())
    msa.load_state_dict(msa.checkpoint_filter_fn(plain.state_dict(), msa))
    again = shiftadd(msa, "keep", "moe")
    assert type(again.stages[0].blocks[0].attn.q) is MoELinear
    assert timm.is_model("shiftadd_pvt_v2_b1") and timm.is_model("shiftadd_pvt_v2_b2")


@pytest.mark.parametrize("attention, linears", [("hash", "moe"), ("binary", ("shift", "sp2")), ("linear", "shift-q")])
def test_gradients_reach_all_weights_under_bf16_autocast(attention, linears):
    net = shiftadd(small(), attention, linears, sparse=True).train()
    with torch.autocast("cpu", torch.bfloat16), collecting(net) as losses:
        out = net(images(4))
        loss = out.float().square().mean() + sum(losses, torch.zeros(()))
    loss.backward()
    idle = {name for name, p in net.named_parameters() if p.grad is None}
    assert out.isfinite().all() and idle == set()
    assert all(p.grad.isfinite().all() for p in net.parameters())
    assert len(losses) == (8 + 2 if linears == "moe" else 0)  # to_qk, to_v, proj, fc1 and fc2 of two blocks


@torch.inference_mode()
def test_nan_comes_out_as_nan():
    for attention in ("keep", "linear", "binary", "hash"):
        for linears in ("shift", "moe"):
            net = fit_hashing(shiftadd(small(), attention, linears), images()).eval()
            x = images()
            x[0, 0, 0, 0] = float("nan")
            out = net(x)
            assert out[0].isnan().all() and out[1].isfinite().all()


# Refusals


@pytest.mark.parametrize("bits", [0, 1, 6, 32])
def test_refuses_bits_out_of_range(bits):
    with pytest.raises(UserError, match=f"2 to 5 bits, got {bits}"):
        shiftadd(small(), "keep", "shift", shift_bits=bits)


def test_refuses_other_mistakes():
    vit = small()
    with pytest.raises(UserError, match="0 bits and 25 anchors"):
        shiftadd(vit, "hash", "mult", hash_bits=0)
    with pytest.raises(UserError, match="16 bits and 0 anchors"):
        shiftadd(vit, "hash", "mult", anchors=0)
    with pytest.raises(UserError, match="99 anchors cannot be chosen from 65 tokens"):
        shiftadd(vit, "hash", "mult", anchors=99).train()(images())
    with pytest.raises(UserError, match="ResNet is neither a timm ViT nor a PVTv2"):
        shiftadd(timm.create_model("resnet10t"))
    with pytest.raises(UserError, match="AngularAttention is not plain self-attention"):
        shiftadd(shiftadd(vit, "binary", "mult"), "hash")
    with pytest.raises(UserError, match="qkv is a ShiftLinear"):
        shiftadd(shiftadd(vit, "keep", "shift"), "keep", "moe")
    with pytest.raises(UserError, match="there is no attention 'softmax'"):
        shiftadd(vit, "softmax")
    with pytest.raises(UserError, match="got 'mul'"):
        shiftadd(vit, "keep", ("shift", "mul"))
    with pytest.raises(UserError, match="got \\['shift'\\]"):
        shiftadd(vit, "keep", ["shift"])
    with pytest.raises(UserError, match="'sample' or 'batch', not 'none'"):
        shiftadd(vit, "binary", "mult", statistics="none")
    with pytest.raises(UserError, match="two positive latencies"):
        shiftadd(vit, "keep", "moe", alpha=(1.0, 0.0))
    with pytest.raises(UserError, match="5 bits, got 4"):
        shiftadd(vit, "keep", "sp2", shift_bits=4)
    with pytest.raises(UserError, match="takes no mask"):
        shiftadd(vit, "binary", "mult").blocks[0].attn(torch.randn(1, 4, 24), attn_mask=torch.ones(4, 4))
    with pytest.raises(UserError, match="pooled attention"):
        shiftadd(timm.create_model("pvt_v2_b2_li"), "msa", "mult")
    with pytest.raises(UserError, match="was converted before"):
        shiftadd(shiftadd(timm.create_model("pvt_v2_b0"), "binary", "mult"), "msa")
    with pytest.raises(UserError, match="no mixtures"):
        multiplier_share(vit, images())
    with pytest.raises(UserError, match="no feature maps"):
        timm.create_model("shiftadd_pvt_v2_b0", features_only=True)


def test_every_preset_of_the_recipe_names_a_model_that_exists():
    text = resources.files("vitalk.systems.shiftaddvit").joinpath("recipe.yaml").read_text()
    presets = yaml.safe_load(text)["presets"]
    assert {"tiny", "cpu", "cpu2", "cpu3", "paper", "paper2", "paper3"} == set(presets)
    for preset in presets.values():
        options = preset["model"]["init_args"]
        run = timm.create_model(options["model"], num_classes=10, **{**options["model_args"], "pretrained": False})
        shifts = any(isinstance(module, ShiftLinear) for module in run.modules())
        assert run.num_classes == 10 and (options.get("weight_decay", 0.0) == 0 or not shifts)
