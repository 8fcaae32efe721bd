"""Relative attention against its formula, padding, and lengths below and beyond the window."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitalk.errors import UserError
from vitalk.nn.attention import split_heads
from vitalk.speech.acoustic.fft_block import length_mask
from vitalk.speech.acoustic.relative import ConvPrenet, RelativeAttention, RelativeStack


@torch.inference_mode()
@pytest.mark.parametrize("time", [1, 2, 3, 12])
def test_attention_computes_the_formula(time):
    torch.manual_seed(0)
    attn, x = RelativeAttention(8, 2, window=2), torch.randn(1, time, 8)
    q, k, v = split_heads(attn.qkv(x), 2)
    wanted = torch.zeros_like(q)
    for head in range(2):
        for i in range(time):
            near = [attn.keys[j - i + 2] if abs(j - i) <= 2 else torch.zeros(4) for j in range(time)]
            scores = torch.stack([q[0, head, i] @ (k[0, head, j] + near[j]) / 2 for j in range(time)])
            values = [attn.values[j - i + 2] if abs(j - i) <= 2 else torch.zeros(4) for j in range(time)]
            weights = scores.softmax(0)
            wanted[0, head, i] = sum(weights[j] * (v[0, head, j] + values[j]) for j in range(time))
    assert torch.allclose(attn(x), attn.proj(wanted.transpose(1, 2).flatten(2)), atol=1e-5)


@given(st.integers(1, 12), st.booleans(), st.booleans())
@settings(max_examples=12, deadline=None)
def test_padding_changes_nothing(length, pre_norm, prenet):
    torch.manual_seed(length)
    stack = RelativeStack(2, 16, 2, 24, (3, 1), pre_norm=pre_norm, prenet=prenet).eval()
    if prenet:
        torch.nn.init.normal_(stack.prenet.proj.weight, std=0.3)
    x = torch.randn(2, 13, 16)
    together = stack(x, length_mask(torch.tensor([13, length]), 13))
    assert torch.allclose(together[1, :length], stack(x[1:, :length])[0], atol=1e-5)
    assert not together[1, length:].any()


def test_knows_distances_and_no_places():
    torch.manual_seed(0)
    attn, x = RelativeAttention(8, 2, window=1).eval(), torch.randn(1, 6, 8)
    turned = attn(x.flip(1)).flip(1)
    assert not torch.allclose(attn(x), turned, atol=1e-4), "before is not behind"
    with torch.no_grad():
        attn.keys.zero_(), attn.values.zero_()
    assert torch.allclose(attn(x), attn(x.flip(1)).flip(1), atol=1e-6)


def test_a_pre_net_begins_as_nothing():
    x = torch.randn(2, 5, 8)
    assert torch.equal(ConvPrenet(8)(x), x)


def test_an_empty_item_stays_finite_and_every_weight_learns():
    stack, x = RelativeStack(1, 16, 2, 24, (3, 1)), torch.randn(2, 5, 16, requires_grad=True)
    stack(x, length_mask(torch.tensor([5, 0]), 5)).square().sum().backward()
    assert x.grad.isfinite().all()
    last = [p for name, p in stack.named_parameters() if not name.startswith(("prenet.convs", "prenet.norms"))]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in last)


def test_refuses_sizes_without_a_middle():
    with pytest.raises(UserError, match="heads"):
        RelativeAttention(8, 3)
    with pytest.raises(UserError, match="odd"):
        ConvPrenet(8, kernel=4)
    with pytest.raises(UserError, match="odd"):
        RelativeStack(1, 8, 2, 8, (4, 1))


def test_dropout_between_the_convolutions_is_for_training_only():
    torch.manual_seed(0)
    stack = RelativeStack(1, 8, 2, 16, (3, 3), prenet=False, inner_dropout=0.5)
    x = torch.randn(1, 5, 8)
    assert not torch.equal(stack(x), stack(x))
    assert torch.equal(stack.eval()(x), stack(x))
