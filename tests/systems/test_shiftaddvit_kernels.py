"""ShiftAddViT's arithmetic: the kernels against numpy and torch, the energy model, the export, the measurement."""

import warnings
from importlib import resources

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from vitalk.deploy.onnx_export import export_onnx
from vitalk.deploy.preprocess import Preprocess
from vitalk.errors import UserError
from vitalk.systems.shiftaddvit import (
    IntegerLinear,
    IntegerMix,
    KernelCost,
    KernelHash,
    Mix,
    ShiftAddClassifier,
    ShiftLinear,
    ShiftLinearQ,
    ShiftLinearSP2,
    fit_hashing,
    fixed,
    integer,
    kernel_costs,
    kernels,
    matadd,
    matshift,
    model_energy,
    operation_energy,
    pack_codes,
    pack_shifts,
    product_energy,
    reproduce,
    shiftadd,
)
from vitalk.systems.shiftaddvit.energy import factors
from vitalk.systems.shiftaddvit.integer import integers

SMALL = {"img_size": 32, "patch_size": 4, "embed_dim": 24, "depth": 1, "num_heads": 2, "num_classes": 5}


def small(**kwargs):
    torch.manual_seed(0)
    return VisionTransformer(**{**SMALL, **kwargs}).eval()


def images(batch=2, size=32):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


def powers(draw, columns, inner, lowest=14):
    return draw.integers(-1, 2, (columns, inner)) * 2.0 ** -draw.integers(0, lowest + 1, (columns, inner))


# Kernels


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(0, 19), inner=st.integers(1, 40), columns=st.integers(1, 37),
    amplitude=st.sampled_from([2**8, 2**20, 2**31 - 1]), seed=st.integers(0, 99),
)  # fmt: skip
def test_matshift_floors_each_product_and_numpy_gives_the_same_bits(rows, inner, columns, amplitude, seed):
    draw = np.random.default_rng(seed)
    weight, x = powers(draw, columns, inner), draw.integers(-amplitude, amplitude, (rows, inner), dtype=np.int32)
    packed = pack_shifts(weight)
    count = np.where(weight == 0, 0, -np.log2(np.abs(weight), where=weight != 0, out=np.zeros_like(weight))).astype(int)
    expected = (np.sign(weight).astype(int)[None] * (x[:, None].astype(np.int64) >> count[None])).sum(2)
    assert np.array_equal(matshift(x, packed), expected)
    assert np.array_equal(kernels.matshift_numpy(x, packed), expected)
    exact = matshift(x, packed, exact=True)
    assert np.array_equal(exact, kernels.matshift_numpy(x, packed, True))
    whole = (weight * 2.0**packed.base).astype(np.int64)
    assert np.array_equal(exact, x.astype(np.int64) @ whole.T)
    assert packed.packed.dtype == np.uint8 and packed.packed.nbytes == -(-columns // 16) * 16 * inner


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(0, 3), rows=st.integers(1, 20), inner=st.integers(1, 150), columns=st.integers(1, 40),
    amplitude=st.sampled_from([2**8, 2**40]), seed=st.integers(0, 99),
)  # fmt: skip
def test_matadd_is_the_product_with_the_codes_and_numpy_gives_the_same_bits(
    batch, rows, inner, columns, amplitude, seed
):
    draw = np.random.default_rng(seed)
    codes = draw.random((batch, rows, inner)) < 0.5
    values = draw.integers(-amplitude, amplitude, (batch, inner, columns))
    packed = pack_codes(codes)
    expected = codes.astype(np.int64) @ values
    assert np.array_equal(matadd(packed, values), expected)
    assert np.array_equal(kernels.matadd_numpy(packed, values), expected)
    assert packed.shape[-1] == -(-inner // 64)


def test_shifts_floor_in_fixed_point():
    x = np.random.default_rng(0).integers(-(2**31), 2**31, 1000).astype(np.int32)
    for s in range(15):
        assert np.array_equal(x >> s, np.floor(x * 2.0**-s).astype(np.int32))


@pytest.mark.parametrize("kind", [ShiftLinear, ShiftLinearQ, ShiftLinearSP2])
def test_integer_layers_are_the_simulated_ones_without_rounding(kind):
    torch.manual_seed(0)
    linear = nn.Linear(40, 21)
    linear.weight.data *= 3
    layer, x = kind.from_linear(linear).eval(), 4 * torch.randn(2, 9, 40)
    with torch.no_grad():
        weight = layer.quantized_weight().double()
        if kind is ShiftLinearSP2:
            weight = sum(half.double() for half in layer.halves()) * layer.sign.sign().double() * (2 / 3)
        reference = F.linear(fixed(x).double(), weight, fixed(layer.bias).double())
    exact, floored = IntegerLinear(layer), IntegerLinear(layer, exact=False)
    if kind is ShiftLinearSP2:
        torch.testing.assert_close(exact(x), reference.float(), rtol=1e-6, atol=1e-7)
    else:
        assert torch.equal(exact(x), reference.float())
    torch.testing.assert_close(layer(x), exact(x), rtol=1e-5, atol=1e-5)
    lost = (exact(x) - floored(x)).abs().max()
    assert 0 < lost < 40 * 2.0**-16 * (2 if kind is ShiftLinearSP2 else 1)
    assert exact.nbytes == 32 * 40 * (2 if kind is ShiftLinearSP2 else 1)  # a byte each, in blocks of 16


def test_integer_attention_is_the_float_one_on_fixed_values():
    torch.manual_seed(0)
    q, k = (torch.rand(2, 3, 70, 16) < 0.5 for _ in range(2))
    v = torch.randn(2, 3, 70, 8)
    expected = Mix()(q.double(), k.double(), fixed(v).double()).float()
    torch.testing.assert_close(IntegerMix()(q.float(), k.float(), v), expected, rtol=1e-6, atol=1e-6)


@torch.inference_mode()
@pytest.mark.parametrize("attention, linears", [("binary", "shift"), ("hash", "moe"), ("keep", ("sp2", "shift-q"))])
def test_whole_networks_run_on_the_kernels(attention, linears):
    net = fit_hashing(shiftadd(small(depth=2), attention, linears), images()).eval()
    expected, fast = net(images()), integer(net)
    assert not any(isinstance(module, ShiftLinear) for module in fast.modules())
    torch.testing.assert_close(fast(images()), expected, rtol=1e-2, atol=1e-3)
    assert (integer(net, exact=False)(images()) - expected).norm() < 0.03 * expected.norm()


def test_refuses_what_no_integer_stands_for():
    net = integer(shiftadd(small(), "keep", "shift"))
    x = images()
    x[0, 0, 0, 0] = float("nan")
    with pytest.raises(UserError, match="activations hold NaN"):
        net(x)
    assert integers(torch.tensor([float("inf"), -float("inf"), 1.0])).tolist() == [2**31 - 2**16, -(2**31), 2**16]
    with pytest.raises(UserError, match="neither shift layers nor binary codes"):
        integer(small())
    for wrong in (0.3, 2.0, float("nan")):
        with pytest.raises(UserError, match="power of two"):
            pack_shifts(np.array([[1.0, wrong]]))
    packed = pack_shifts(np.ones((2, 3)))
    with pytest.raises(UserError, match=r"int32 \[rows, 3\], got int64"):
        matshift(np.zeros((1, 3), np.int64), packed)
    with pytest.raises(UserError, match="got uint64"):
        matadd(pack_codes(np.ones((2, 70))), np.zeros((64, 3), np.int64))


@pytest.fixture
def fresh():
    kernels.library.cache_clear()
    yield
    kernels.library.cache_clear()


def test_without_a_compiler_one_sentence_and_the_same_answer(fresh, monkeypatch, tmp_path):
    net = shiftadd(small(), "binary", "shift")
    with torch.inference_mode():
        expected = integer(net)(images())
        kernels.library.cache_clear()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.setattr(kernels.shutil, "which", lambda _: None)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            assert torch.equal(integer(net)(images()), expected)
    assert [str(w.message) for w in said if "numpy" in str(w.message)] == [
        "the shift and add kernels run in numpy, slower: no C++ compiler could build them (none found)"
    ]


def test_a_broken_compiler_leaves_nothing_behind(fresh, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\ncat > /dev/null; echo no such option >&2; exit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    with pytest.warns(UserWarning, match="failed: no such option"):
        assert kernels.library() is None
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["c++"]


# Energy and costs


def test_operations_have_the_papers_energies():
    assert operation_energy("mult") == pytest.approx(4.6) and operation_energy("mult", 8) == pytest.approx(0.23)
    assert operation_energy("shift") == pytest.approx(1.03) and operation_energy("shift", 8) == pytest.approx(0.054)
    assert operation_energy("add") == 0.9 and operation_energy("add", 8) == 0.03
    with pytest.raises(UserError, match="8 and 32 bits, got 16"):
        operation_energy("mult", 16)


def test_tilings_are_all_factorizations():
    ways = factors(12, 3)
    assert len(ways) == 18 and (ways.prod(1) == 12).all() and len({tuple(way) for way in ways}) == 18
    assert factors(12, 2, 3)[:, 0].max() == 3


@pytest.mark.parametrize("shape", [(197, 192, 576), (64, 197, 64), (1, 1, 1)])
def test_products_order_by_operation_and_width(shape):
    energy = {(kind, bits): product_energy(*shape, kind, bits) for kind in ("mult", "shift", "add") for bits in (32, 8)}
    assert max(energy["add", 32], energy["shift", 32]) < energy["mult", 32]
    assert all(energy[kind, 8] < energy[kind, 32] for kind in ("mult", "add"))
    macs = shape[0] * shape[1] * shape[2]
    assert energy["mult", 32] > macs * (4.6 + 3 * 3.7)  # computing, and the register files at the least
    assert product_energy(0, 3, 4) == 0


def test_energy_falls_with_the_operations():
    vit, x = small(depth=2), images()
    energy = {name: model_energy(shiftadd(vit, *kinds), x) for name, kinds in {
        "dense": ("keep", "mult"), "binary": ("binary", "mult"), "attention": ("binary", ("shift", "mult")),
        "all": ("binary", "shift"), "sp2": ("binary", "sp2"), "moe": ("binary", ("shift", "moe")),
    }.items()}  # fmt: skip
    total = {name: found["total"] for name, found in energy.items()}
    assert total["dense"] > total["binary"] > total["attention"] > total["all"]
    assert total["all"] < total["sp2"] < total["attention"] and total["all"] < total["moe"]
    assert energy["dense"]["shift"] == energy["dense"]["add"] == 0 < energy["binary"]["add"]
    assert energy["dense"]["mult"] == total["dense"] == pytest.approx(sum(energy["dense"].values()) / 2)


def test_a_pvt_with_reduced_keys_costs_less_than_with_all():
    plain = timm.create_model("pvt_v2_b0", num_classes=5)
    reduced, whole = (model_energy(net, images(1, 64)) for net in (plain, shiftadd(plain, "msa", "mult")))
    assert 0 < reduced["total"] < whole["total"]


def test_kernel_costs_list_every_kernel():
    rows = kernel_costs(linears=((9, 8, 16),), attention=((9, 16, 8),), repeats=2)
    assert all(isinstance(row, KernelCost) and row.seconds > 0 and row.energy > 0 for row in rows)
    sizes = {row.kernel.removesuffix(" (numpy)"): row.weights for row in rows}
    assert sizes == {
        "float32": 512, "int8": 128, "matshift": 128, "matshift exact": 128, "float32 codes": 576, "matadd": 72,
    }  # fmt: skip
    energy = {row.kernel.removesuffix(" (numpy)"): row.energy for row in rows}
    assert energy["matshift"] < energy["float32"] and energy["matadd"] < energy["float32 codes"]


# Export


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("attention, linears", [("binary", "shift"), ("hash", "moe")])
def test_exports_to_onnx_with_any_batch_size(tmp_path, attention, linears):
    import onnxruntime

    net = fit_hashing(shiftadd(small(), attention, linears, anchors=9), images()).eval()
    path = export_onnx(net, tmp_path / "net.onnx", Preprocess.from_timm_cfg({"input_size": (3, 32, 32)}), list("abcde"))
    session = onnxruntime.InferenceSession(path)
    for batch in (1, 3):
        got = session.run(None, {"image": images(batch).numpy()})[0]
        with torch.inference_mode():
            np.testing.assert_allclose(got, net(images(batch)).numpy(), atol=1e-4)


# Training


@pytest.mark.filterwarnings("ignore")
def test_the_balance_is_in_the_loss():
    torch.manual_seed(0)
    args = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2, "attention": "binary"}
    losses = {}
    for balance in (0.0, 1.0):
        module = ShiftAddClassifier("shiftadd_deit_tiny", 10, balance=balance, model_args={**args, "linears": "moe"})
        module.log, module.model = (lambda *_, **__: None), module.model.train()
        assert module.hparams.balance == balance and module.hparams.weight_decay == 0
        state = losses.setdefault("state", module.model.state_dict())
        module.model.load_state_dict(state)
        torch.manual_seed(1)
        losses[balance] = module.training_step((images(4), torch.arange(4)), 0)
    assert losses[1.0] > losses[0.0]
    losses[1.0].backward()
    assert all(p.grad is not None for p in module.parameters())


@pytest.mark.filterwarnings("ignore")
def test_the_tiny_preset_trains_and_fits_its_hashing():
    text = resources.files("vitalk.systems.shiftaddvit").joinpath("recipe.yaml").read_text()
    preset = yaml.safe_load(text)["presets"]["tiny"]["model"]
    assert preset["class_path"] == f"{ShiftAddClassifier.__module__}.{ShiftAddClassifier.__name__}"
    module = ShiftAddClassifier(num_classes=10, **preset["init_args"])
    pictures = reproduce.Pictures(torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8), torch.arange(16) % 10, 2)
    before = {name: value.clone() for name, value in module.model.state_dict().items()}
    reproduce.fit(module, pictures, 2, 8)
    hashing = [m for m in module.modules() if isinstance(m, KernelHash)]
    assert len(hashing) == 4 and all(m.ready and bool(m.fitted) for m in hashing)
    moved = [name for name, value in module.model.state_dict().items() if not torch.equal(value, before[name])]
    assert any("router" in name for name in moved) and any("dconv" in name for name in moved)
    assert module.model.eval()(images()).isfinite().all()


# The measurement


@pytest.mark.parametrize(
    "speed, saving, top1, shares, verdict",
    [
        (4.2, 40.0, (85, 83, 82, 70, 78), (0.42, 0.5, 0.6), "reproduced"),
        (4.1, 40.0, (85, 83, 82, 70, 78), (0.42, 0.5, 0.6), "direction only"),
        (4.2, 30.0, (85, 83, 82, 70, 78), (0.42, 0.5, 0.6), "direction only"),
        (4.2, 40.0, (85, 81, 80, 70, 78), (0.42, 0.5, 0.6), "direction only"),
        (4.2, 40.0, (85, 83, 81, 70, 78), (0.42, 0.5, 0.6), "direction only"),
        (4.2, 40.0, (85, 83, 82, 70, 70.2), (0.42, 0.5, 0.6), "direction only"),
        (4.2, 40.0, (85, 83, 82, 70, 78), (0.55, 0.6, 0.7), "direction only"),
        (4.2, 40.0, (85, 83, 82, 70, 69.9), (0.42, 0.5, 0.6), "not reproduced"),
        (0.9, 40.0, (85, 83, 82, 70, 78), (0.42, 0.5, 0.6), "not reproduced"),
        (4.2, -1.0, (85, 83, 82, 70, 78), (0.42, 0.5, 0.6), "not reproduced"),
        (4.1, 40.0, (85, 83, 82, 70, 78), (0.6, 0.5, 0.4), "not reproduced"),
    ],
)
def test_the_verdict_follows_from_the_figures(speed, saving, top1, shares, verdict):
    kinds = ("float32", "matshift", "float32 codes", "matadd")
    rows = [KernelCost(name, (1, 2, 3), seconds, 1.0, 1) for name, seconds in zip(kinds, (1, 2.5, 1, 0.8), strict=True)]
    energy = {"dense 32": 100.0, "shiftadd 32": 100.0 - saving, "dense 8": 10.0, "shiftadd 8": 5.0}
    found = reproduce.Efficiency({"dense": speed, "simulated": 1.2, "kernels": 1.0}, energy, rows)
    arms = dict(zip([reproduce.DENSE, *reproduce.ARMS], top1, strict=True))
    share = dict(zip(("0.6", "0.5", "0.4"), shares, strict=True))
    assert reproduce.judge(found, arms, share) == verdict
    report = reproduce.report(found, [arms, arms], {alpha: [value] * 2 for alpha, value in share.items()}, 9, 100)
    assert report.verdict == verdict and "2.5 times as long" in report.measured and "no gain" in report.measured


@pytest.mark.filterwarnings("ignore")
def test_all_arms_are_trained_and_none_changes_the_given_network():
    vit, labels = small(num_classes=10), torch.arange(20) % 10
    test = reproduce.Pictures(torch.randint(0, 256, (20, 3, 32, 32), dtype=torch.uint8), labels)
    train = reproduce.Pictures(test.pixels.repeat(10, 1, 1, 1), labels.repeat(10), padding=1)
    weights = {name: value.clone() for name, value in vit.state_dict().items()}
    found, shares = reproduce.by_stages(vit, train, test, 1, 0, lambda *_: None)
    assert set(found) == {reproduce.DENSE, *reproduce.ARMS} and set(shares) == {"0.6", "0.5", "0.4"}
    assert all(0 <= value <= 100 for value in found.values()) and all(len(values) == 2 for values in shares.values())
    assert all(torch.equal(value, weights[name]) for name, value in vit.state_dict().items())


@pytest.mark.filterwarnings("ignore")
def test_efficiency_compares_dense_simulated_and_real(monkeypatch):
    monkeypatch.setattr(reproduce, "kernel_costs", lambda **_: [])
    found = reproduce.efficiency(0.0, size=96)
    assert min(found.seconds.values()) > 0 and found.saving > 0
    assert found.energy["dense 8"] < found.energy["dense 32"]
