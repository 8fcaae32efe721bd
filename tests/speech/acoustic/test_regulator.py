"""Durations and the length regulator against the paper's examples and plain repetition."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitalk.errors import UserError
from vitalk.speech.acoustic.regulator import LONGEST, frame_index, frames_from_logs, regulate, timed, whole_frames

DURATIONS = st.lists(st.integers(0, 7), min_size=1, max_size=12).filter(any)


@pytest.mark.parametrize(("alpha", "expected"), [(1.0, [2, 2, 3, 1]), (1.3, [3, 3, 4, 1]), (0.5, [1, 1, 2, 1])])
def test_the_example_of_fastspeech(alpha, expected):
    assert timed(torch.tensor([[2, 2, 3, 1]]), speed=1 / alpha).tolist() == [expected]


def test_frames_name_their_symbols():
    index, mask = frame_index(torch.tensor([[2, 2, 3, 1], [0, 1, 0, 2]]))
    assert index[0].tolist() == [0, 0, 1, 1, 2, 2, 2, 3]
    assert index[1, :3].tolist() == [1, 3, 3] and mask.sum(1).tolist() == [8, 3]


@given(st.lists(DURATIONS, min_size=1, max_size=3), st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_regulating_is_repeating(rows, seed):
    torch.manual_seed(seed)
    width = max(map(len, rows))
    durations = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    hidden = torch.randn(len(rows), width, 5, requires_grad=True)
    out, mask = regulate(hidden, durations)
    assert out.shape[1] == int(durations.sum(1).max()) and torch.equal(mask.sum(1), durations.sum(1))
    for i, row in enumerate(durations):
        assert torch.equal(out[i, : row.sum()], hidden[i].repeat_interleave(row, 0))
        assert not out[i, row.sum() :].any()
    out.sum().backward()
    assert torch.equal(hidden.grad, durations[..., None].expand_as(hidden).float())


def test_ones_change_nothing_and_a_width_cuts_or_fills():
    hidden = torch.randn(2, 6, 3)
    ones = torch.ones(2, 6, dtype=torch.int32)
    assert torch.equal(regulate(hidden, ones)[0], hidden)
    assert torch.equal(regulate(hidden, ones, 4)[0], hidden[:, :4])
    filled, mask = regulate(hidden, ones, 9)
    assert torch.equal(filled[:, :6], hidden) and not filled[:, 6:].any() and mask.sum() == 12


@given(DURATIONS, st.sampled_from(["each", "total"]))
@settings(max_examples=25, deadline=None)
def test_whole_factors_scale_exactly(row, rounding):
    durations = torch.tensor([row])
    assert torch.equal(timed(durations, rounding=rounding), durations)
    assert torch.equal(timed(durations, speed=0.5, rounding=rounding), 2 * durations)
    assert torch.equal(timed(4 * durations, speed=2.0, rounding=rounding), 2 * durations)


@given(st.lists(st.floats(0, 20, width=32), min_size=1, max_size=60))
@settings(max_examples=40, deadline=None)
def test_rounding_the_ends_keeps_the_total(row):
    durations = torch.tensor([row])
    rounded = whole_frames(durations, "total")
    assert abs(float(durations.double().sum()) - int(rounded.sum())) <= 0.5 + 1e-3
    assert (rounded >= 0).all() and (rounded - durations).abs().max() <= 1 + 1e-3


def test_predictions_stay_sensible():
    logs = torch.tensor([[-5.0, 0.0, 100.0, 1.0], [-9.0, -9.0, 3.0, 3.0]])
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    frames = frames_from_logs(logs, mask)
    assert frames.tolist() == [[0, 0, int(LONGEST), 2], [1, 0, 0, 0]]
    by_symbol = frames_from_logs(torch.full((1, 3), 11.0).log(), speed=torch.tensor([[1.0, 2.0, 0.5]]))
    assert by_symbol.tolist() == [[10, 5, 20]]


def test_refuses_what_has_no_meaning():
    with pytest.raises(UserError, match="each or total"):
        whole_frames(torch.ones(1, 2), "up")
    with pytest.raises(ValueError, match="align again"):
        regulate(torch.ones(1, 2, 3), torch.zeros(1, 2, dtype=torch.long))
