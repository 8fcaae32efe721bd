"""Structural similarity against its formula, its bounds and padding."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitalk.speech.acoustic.fft_block import length_mask
from vitalk.speech.acoustic.ssim import ssim


def test_computes_the_formula():
    torch.manual_seed(0)
    a, b = torch.rand(1, 20, 30), torch.rand(1, 20, 30)
    place = torch.arange(11.0) - 5
    line = torch.exp(-(place**2) / 4.5)
    window = line[:, None] * line / line.sum() ** 2
    x, y = a[0, 4:15, 7:18], b[0, 4:15, 7:18]  # what the window sees around bin 9, frame 12
    mx, my = (window * x).sum(), (window * y).sum()
    vx, vy, c = ((window * p).sum() - q for p, q in ((x * x, mx * mx), (y * y, my * my), (x * y, mx * my)))
    wanted = (2 * mx * my + 1e-4) * (2 * c + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))
    assert torch.allclose(ssim(a, b)[0, 9, 12], wanted, atol=1e-5)
    assert torch.allclose(ssim(a - 6, b - 6, floor=-6.0), ssim(a, b), atol=1e-4)


@given(st.integers(0, 100), st.integers(1, 20))
@settings(max_examples=10, deadline=None)
def test_is_one_for_the_same_symmetric_and_knows_no_padding(seed, length):
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, 8, 20, generator=generator), torch.randn(2, 8, 20, generator=generator)
    mask = length_mask(torch.tensor([20, length]), 20)
    assert torch.allclose(ssim(a, a, mask, -5.0), torch.ones_like(a), atol=1e-4)
    found = ssim(a, b, mask, -5.0)
    assert torch.allclose(found, ssim(b, a, mask, -5.0), atol=1e-5) and found.max() <= 1 + 1e-4
    alone = ssim(a[1:, :, :length], b[1:, :, :length], None, -5.0)
    assert torch.allclose(found[1, :, :length], alone[0], atol=1e-4)


def test_is_exact_in_half_precision():
    a, b = torch.rand(1, 12, 12), torch.rand(1, 12, 12)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ssim(a, b), ssim(a, b)) and ssim(a, b).dtype == torch.float32
    assert ssim(a, 0.5 * (a + b)).mean() > ssim(a, b).mean()
