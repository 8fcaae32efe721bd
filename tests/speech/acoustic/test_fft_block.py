"""Feed-forward Transformer blocks against an official stack, PyTorch's own layers, and padding."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.parity import parity
from vitalk.errors import UserError
from vitalk.nn.positions import sinusoid_table
from vitalk.speech.acoustic.fft_block import FFTBlock, FFTStack, SelfAttention, SinusoidalPositions, length_mask
from vitalk.systems.fastspeech2.checkpoint import from_ming024


def test_a_block_has_the_paper_s_parameters():
    assert sum(p.numel() for p in FFTBlock().parameters()) == 2_886_912
    assert sum(p.numel() for p in FFTBlock(384, 2, 1536, (3, 3)).parameters()) == 4_133_760


@torch.inference_mode()
def test_a_stack_agrees_with_the_decoder_of_zmm_tts():
    known = parity.load(Path(__file__).parents[2] / "parity" / "zmm-tts.fft_decoder.json")
    stack = FFTStack(2).eval()
    official = {key: torch.from_numpy(value) for key, value in parity.filled_state(known).items()}
    renamed = from_ming024({f"decoder.{key.replace('.linear.', '.')}": value for key, value in official.items()})
    state = {key.removeprefix("decoder."): value for key, value in renamed.items()}
    missing, unexpected = stack.load_state_dict(state, strict=False)
    assert not unexpected and {key.split(".", 2)[2] for key in missing} == {"attn.qkv.bias", "attn.proj.bias"}
    for block in stack.blocks:  # their attention has no bias
        nn.init.zeros_(block.attn.qkv.bias)
        nn.init.zeros_(block.attn.proj.bias)
    seen = {}
    stack.blocks[0].register_forward_hook(lambda _, __, out: seen.update(block_0=out))
    states = torch.from_numpy(parity.tensor("states", **known["inputs"]["states"]))
    seen["output"] = stack(states, length_mask(torch.tensor([33, 21]), 33))
    for name in ("block_0", "output"):
        assert parity.distance(seen[name].numpy(), known["outputs"][name]) < 1e-4


def test_attention_is_pytorch_s():
    ours, theirs = SelfAttention(24, 4).eval(), nn.MultiheadAttention(24, 4, batch_first=True).eval()
    theirs.in_proj_weight, theirs.in_proj_bias, theirs.out_proj = ours.qkv.weight, ours.qkv.bias, ours.proj
    x, mask = torch.randn(2, 9, 24), length_mask(torch.tensor([9, 5]), 9)
    assert torch.allclose(ours(x, mask), theirs(x, x, x, key_padding_mask=~mask)[0], atol=1e-6)


def test_positions_have_no_end():
    x = torch.zeros(1, 6000, 32)
    assert torch.allclose(SinusoidalPositions(32)(x)[0], sinusoid_table(6000, 32), atol=1e-3)
    assert torch.allclose(SinusoidalPositions(32)(x)[0, :300], sinusoid_table(300, 32), atol=3e-5)


@given(st.integers(1, 12), st.sampled_from([(9, 1), (3, 3), (5, 5)]), st.booleans())
@settings(max_examples=15, deadline=None)
def test_padding_changes_nothing(length, kernels, final_norm):
    torch.manual_seed(length)
    stack = FFTStack(2, 16, 2, 24, kernels, final_norm=final_norm).eval()
    x = torch.randn(2, 13, 16)
    together = stack(x, length_mask(torch.tensor([13, length]), 13))
    assert torch.allclose(together[1, :length], stack(x[1:, :length])[0], atol=1e-5)
    assert not together[1, length:].any()


def test_an_empty_item_of_a_batch_stays_finite():
    stack, x = FFTStack(1, 16, 2, 24), torch.randn(2, 5, 16, requires_grad=True)
    stack(x, length_mask(torch.tensor([5, 0]), 5)).sum().backward()
    assert x.grad.isfinite().all()


def test_conditional_norms_get_the_condition():
    class Conditional(nn.Module):
        def __init__(self, dim):
            super().__init__()
            self.gain, self.norm = nn.Linear(3, dim), nn.LayerNorm(dim, elementwise_affine=False)

        def forward(self, x, condition):
            return self.norm(x) * self.gain(condition)[:, None]

    stack = FFTStack(2, 16, 2, 24, norm=Conditional, final_norm=True).eval()
    x, condition = torch.randn(1, 7, 16), torch.randn(2, 3)
    a, b = (stack(x, condition=c[None]) for c in condition)
    assert a.shape == x.shape and not torch.allclose(a, b)
    assert sum(isinstance(part, Conditional) for part in stack.modules()) == 5


def test_refuses_sizes_without_a_middle():
    with pytest.raises(UserError, match="odd"):
        FFTBlock(16, 2, 24, (4, 1))
    with pytest.raises(UserError, match="heads"):
        FFTBlock(16, 3, 24)
