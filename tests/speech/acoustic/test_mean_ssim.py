"""Structural similarity of spectrograms: against scikit-image's definition, masks, gradients."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitalk.errors import UserError
from vitalk.speech.acoustic.ssim import mean_ssim as ssim


def by_hand(a, b, size=11):
    """The same of two pictures [rows, columns], window by window."""
    offset = np.arange(size) - size // 2
    line = np.exp(-0.5 * (offset / 1.5) ** 2)
    window = np.outer(line, line) / line.sum() ** 2
    a, b = (np.pad(x.astype(np.float64), size // 2) for x in (a, b))
    views = [np.lib.stride_tricks.sliding_window_view(x, (size, size)) for x in (a, b, a * a, b * b, a * b)]
    ma, mb, aa, bb, ab = ((view * window).sum((2, 3)) for view in views)
    c1, c2 = 1e-4, 9e-4
    top = (2 * ma * mb + c1) * (2 * (ab - ma * mb) + c2)
    return (top / ((ma**2 + mb**2 + c1) * (aa - ma**2 + bb - mb**2 + c2))).mean()


@given(st.integers(1, 20), st.integers(1, 30), st.sampled_from([3, 11]), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_is_the_published_one(rows, columns, window, seed):
    draw = torch.Generator().manual_seed(seed)
    a, b = torch.rand(2, 2, rows, columns, generator=draw)
    wanted = [by_hand(x.numpy(), y.numpy(), window) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(ssim(a, b, window=window).numpy(), wanted, atol=1e-4)
    torch.testing.assert_close(ssim(a, a), torch.ones(2), atol=1e-5, rtol=0)


@given(st.integers(1, 12), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_padding_has_no_say(length, seed):
    draw = torch.Generator().manual_seed(seed)
    a, b = torch.rand(2, 2, 8, 12, generator=draw)
    mask = torch.arange(12) < torch.tensor([[12], [length]])
    together = ssim(a, b.masked_fill(~mask[:, None], torch.nan), mask)
    torch.testing.assert_close(together[1], ssim(a[1:, :, :length], b[1:, :, :length])[0])


def test_trains_towards_likeness_also_in_half_precision():
    target, found = torch.rand(1, 8, 20), torch.rand(1, 8, 20, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        before = ssim(found, target)
    assert before.dtype == torch.float32
    (grad,) = torch.autograd.grad(before.sum(), found)
    assert ssim(found + 0.5 * grad / grad.abs().max(), target) > before


def test_refuses_what_does_not_fit():
    with pytest.raises(UserError, match=r"shape \[1, 8, 20\] and \[1, 8, 19\], window 11"):
        ssim(torch.rand(1, 8, 20), torch.rand(1, 8, 19))
    with pytest.raises(UserError, match="odd window"):
        ssim(torch.rand(1, 8, 20), torch.rand(1, 8, 20), window=4)
