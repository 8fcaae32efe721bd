"""Costs: counted exactly, timed fairly."""

import pytest
import timm
import torch
from torch import nn

from vitalk.errors import UserError
from vitalk.nn.attention import SiteAttention
from vitalk.vision.cost import count, file_size, growth, latencies, latency, model_latency


def small(**kwargs):
    options = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2, "num_classes": 5}
    return timm.create_model("deit_tiny_patch16_224", **{**options, **kwargs})


@pytest.mark.parametrize("attention", [{}, {"attn_layer": SiteAttention}])
def test_macs_of_a_vit_layer_by_layer(attention):
    """A block of n tokens of width C takes 12 n C^2 + 2 n^2 C, fused kernel or not."""
    model = small(**attention).train()
    cost = count(model, torch.randn(1, 3, 32, 32))
    n, c = 17, 24
    for block in range(3):
        name = f"blocks.{block}"
        own = {key.removeprefix(f"{name}."): value for key, value in cost.layers.items() if key.startswith(name)}
        products = sum(own.pop(key, 0) for key in ("attn", "attn.matmul1", "attn.matmul2"))
        assert products == 2 * n * n * c
        assert own == {
            "attn.qkv": 3 * n * c * c,
            "attn.proj": n * c * c,
            "mlp.fc1": 4 * n * c * c,
            "mlp.fc2": 4 * n * c * c,
        }
    assert cost.layers["patch_embed.proj"] == 16 * 24 * 3 * 64 and cost.layers["head"] == 24 * 5
    assert cost.macs == sum(cost.layers.values()) and cost.params == sum(p.numel() for p in model.parameters())
    assert model.training


def test_deit_small_costs_what_the_literature_says():
    cost = count(timm.create_model("deit_small_patch16_224"), torch.randn(1, 3, 224, 224))
    assert round(cost.params / 1e6, 1) == 22.1 and round(cost.macs / 1e9, 1) == 4.6


def test_work_between_modules_is_booked_on_what_follows():
    class Late(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(4, 4))

        def forward(self, x):
            return self.body(x @ torch.eye(4)) @ torch.eye(4)

    assert count(Late(), torch.randn(2, 4)).layers == {"body": 32, "body.0": 32, "": 32}


def test_shared_parameters_count_once():
    layer = nn.Linear(4, 4)
    cost = count(nn.Sequential(layer, layer), torch.randn(1, 4))
    assert cost.params == 20 and cost.macs == 32


def test_hooks_are_gone_where_the_model_fails():
    model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(RuntimeError):
        count(model, torch.randn(1, 5))
    assert not model[0]._forward_hooks and not model[0]._forward_pre_hooks


def test_calls_are_taken_in_turns(monkeypatch):
    clock, order = [0.0], []
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])

    def call(name, seconds):
        order.append(name)
        clock[0] += seconds

    taken = latencies({"a": lambda: call("a", 1.0), "b": lambda: call("b", 3.0)}, warmup=1, repeats=3)
    assert taken == {"a": 1.0, "b": 3.0} and order == ["a", "b"] * 4
    order.clear()
    latencies({"a": lambda: call("a", 1.0)}, warmup=0, repeats=9, seconds=3.5)
    assert len(order) == 4
    times = iter([9.0, 1.0, 2.0, 4.0])
    assert latency(lambda: call("c", next(times)), warmup=1, repeats=3) == 2.0


def test_growth_is_the_ratio_of_the_times(monkeypatch):
    clock = iter(range(0, 10_000))
    monkeypatch.setattr("vitalk.vision.cost.latencies", lambda runs, **_: {key: 2.0 + next(clock) for key in runs})
    layers = {"a": nn.Identity(), "b": nn.Identity()}
    assert growth(layers, torch.ones(1), torch.ones(2), 1.0) == {"a": 3 / 2, "b": 5 / 4}


def test_latency_by_batch_size():
    model = small().train()
    taken = model_latency(model, (3, 32, 32), batches=(1, 4), warmup=1, repeats=3)
    assert set(taken) == {1, 4} and all(0 < seconds < 10 for seconds in taken.values())
    assert model.training


def test_file_size(tmp_path):
    (tmp_path / "a").write_bytes(b"123")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "c").write_bytes(b"12345")
    assert file_size(tmp_path / "a") == 3 and file_size(tmp_path) == 8
    with pytest.raises(UserError, match="no file"):
        file_size(tmp_path / "none")


@pytest.mark.parametrize("fused", [True, False])
def test_both_products_of_attention_count_whatever_computes_them(fused):
    attn = timm.layers.Attention(32, 2)
    attn.fused_attn = fused
    tokens, dim = 64, 32
    assert count(attn, torch.randn(1, tokens, dim)).macs == 4 * tokens * dim**2 + 2 * tokens**2 * dim


def test_modules_get_their_own_modes_back():
    inner = nn.Linear(4, 4).eval()
    wrapper = nn.Sequential(inner, nn.Dropout())
    wrapper.training = True
    count(wrapper, torch.randn(2, 4))
    assert wrapper.training and wrapper[1].training and not inner.training
