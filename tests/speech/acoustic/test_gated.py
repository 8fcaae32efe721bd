"""The gated stack against its formula, its reach, and padding."""

import pytest
import torch
import torch.nn.functional as F

from vitalk.errors import UserError
from vitalk.speech.acoustic.fft_block import length_mask
from vitalk.speech.acoustic.gated import GatedStack, fold, normed


def test_computes_the_formula():
    stack = GatedStack(6, 4, 2, 3, base=3, skip=5, condition=2).eval()
    x, c = torch.randn(2, 6, 40), torch.randn(2, 2, 40)
    total, flow = 0, x
    for i, layer in enumerate(stack.layers):
        dilation = (1, 3)[i % 2]
        both = F.conv1d(flow, layer.conv.weight, layer.conv.bias, dilation=dilation, padding=dilation)
        both = both + torch.einsum("oc,bct->bot", layer.condition.weight[..., 0], c)
        h = torch.tanh(both[:, :6]) * torch.sigmoid(both[:, 6:])
        total = total + layer.skip(h)
        if i < 3:
            flow = (flow + layer.residual(h)) / 2**0.5
    assert torch.allclose(stack(x, c), total / 2, atol=1e-5)


def test_reaches_as_far_as_it_says():
    stack = GatedStack(2, 30, 3).double()
    assert stack.receptive_field == 6139
    x = torch.zeros(1, 2, 6301, dtype=torch.float64, requires_grad=True)
    stack(x)[0, :, 3150].sum().backward()
    touched = x.grad[0].abs().sum(0).nonzero().flatten()
    assert (touched.min().item(), touched.max().item()) == (3150 - 3069, 3150 + 3069)


def test_padding_changes_nothing():
    stack = GatedStack(4, 6, 2, 5, condition=3, residual_scale=1.0, skip_scale=1.0).eval()
    x, c = torch.randn(2, 4, 50), torch.randn(2, 3, 50)
    together = stack(x, c, length_mask(torch.tensor([50, 31]), 50))
    assert torch.allclose(together[1, :, :31], stack(x[1:, :, :31], c[1:, :, :31])[0], atol=1e-5)
    assert not together[1, :, 31:].any()


def test_weight_norm_comes_off_without_a_trace():
    stack = normed(normed(GatedStack(4, 4, 2, condition=3)))
    x, c = torch.randn(1, 4, 20), torch.randn(1, 3, 20)
    before, keys = stack(x, c), set(GatedStack(4, 4, 2, condition=3).state_dict())
    assert torch.allclose(fold(fold(stack))(x, c), before, atol=1e-6)
    assert set(stack.state_dict()) == keys and all(p.requires_grad for p in stack.parameters())


def test_refuses_sizes_that_do_not_fit():
    with pytest.raises(UserError, match="choose a multiple"):
        GatedStack(4, 5, 2)
