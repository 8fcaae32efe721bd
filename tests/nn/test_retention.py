"""Retention: its forms agree, and its masks and states are what they are said to be."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.parity import parity
from vitalk.nn.retention import (
    GridState,
    LineState,
    decay_mask,
    decayed_cumsum,
    decays,
    grid_decay_mask,
    retain,
    retain_chunks,
    retain_rows,
    retain_tokens,
)

quick = settings(deadline=None, max_examples=25)
GAMMA = torch.tensor([0.0, 0.5, 0.97, 1.0])


def qkv(tokens, seed=0, dim=5, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    q, k, v = torch.randn(3, 2, len(GAMMA), tokens, dim, generator=generator, dtype=torch.float64).to(dtype)
    return q, k, v


def relative(got, wanted):
    return float((got - wanted).abs().max() / wanted.abs().max())


def fixture(name):
    return parity.load(Path(__file__).parents[1] / "parity" / f"vir.{name}.json")


# Decays and masks


def test_the_release_s_decays():
    known = fixture("retention")["outputs"]
    assert parity.distance(torch.tensor(decays(4)).numpy(), known["gammas"]) < 1e-6
    assert parity.distance(decay_mask(50, torch.tensor(decays(4))).numpy(), known["mask"]) < 1e-6
    known = fixture("decay_mask_2d")["outputs"]
    assert parity.distance(torch.tensor(decays(3)).numpy(), known["gammas"]) < 1e-6
    assert parity.distance(grid_decay_mask(3, 4, torch.tensor(decays(3)), "last").numpy(), known["mask"]) < 1e-6


@pytest.mark.parametrize("heads", [1, 3, 12])
def test_decay_schedules_begin_where_the_papers_say(heads):
    assert decays(heads)[0] == pytest.approx(0.96875) and decays(heads, "retnet")[0] == 0.96875
    assert heads == 1 or decays(heads)[-1] == pytest.approx(1 - 1 / 512)
    assert decays(heads, "retnet") == tuple(1 - 2 ** (-5 - i) for i in range(heads))
    assert decays(heads, [0.5] * heads) == (0.5,) * heads


@pytest.mark.parametrize("schedule", ["linear", [0.5], [0.5, 1.5], [0.5, -0.1]])
def test_refuses_decays_that_mean_nothing(schedule):
    with pytest.raises(ValueError, match="decay"):
        decays(2, schedule)


def test_long_masks_do_not_overflow():
    mask = decay_mask(3000, torch.tensor([0.5, 1.0]))
    assert mask.isfinite().all() and mask.max() == 1 and mask[1].sum() == 3000 * 3001 / 2
    assert mask[0, 9, 0] == 0.5**9 and mask[0, 0, 9] == 0


@given(height=st.integers(1, 6), width=st.integers(1, 6))
@quick
def test_a_grid_mask_is_the_upper_left_quadrant(height, width):
    gamma = torch.tensor([0.5, 0.9])
    plain, last, first = (grid_decay_mask(height, width, gamma, token) for token in (None, "last", "first"))
    assert int((plain[0] != 0).sum()) == height * (height + 1) // 2 * width * (width + 1) // 2
    assert torch.equal(last[:, :-1, :-1], plain) and torch.equal(first[:, 1:, 1:], plain)
    assert (last[:, -1] != 0).all() and (last[:, :-1, -1] == 0).all(), "the last class token sees all, unseen"
    assert (first[:, :, 0] != 0).all() and (first[:, 0, 1:] == 0).all(), "the first is seen by all, and sees nothing"
    wanted = [[0.5 ** (r + c) for c in range(1, width + 1)] for r in range(height)]
    torch.testing.assert_close(first[0, 1:, 0].reshape(height, width), torch.tensor(wanted))


@given(height=st.integers(2, 6), width=st.integers(2, 6))
@quick
def test_a_grid_mask_moves_with_the_picture(height, width):
    mask = grid_decay_mask(height, width, torch.tensor([0.8]))[0].reshape(height, width, height, width)
    assert torch.equal(mask[1:, 1:, 1:, 1:], mask[:-1, :-1, :-1, :-1])
    wider = grid_decay_mask(height, width + 3, torch.tensor([0.8]))[0].reshape(height, width + 3, height, width + 3)
    assert torch.equal(wider[:, :width, :, :width], mask), "a distance does not depend on the width"


# Along a sequence


@given(tokens=st.integers(1, 40), chunk=st.integers(1, 50), seed=st.integers(0, 99))
@quick
def test_the_forms_agree(tokens, chunk, seed):
    q, k, v = qkv(tokens, seed)
    parallel = retain(q, k, v, decay_mask(tokens, GAMMA))
    assert relative(retain_tokens(q, k, v, GAMMA), parallel) < 1e-5
    chunkwise, state = retain_chunks(q, k, v, GAMMA, chunk)
    assert relative(chunkwise, parallel) < 1e-5
    wanted = torch.einsum("hn,bhnd,bhne->bhde", decay_mask(tokens, GAMMA)[:, -1], k, v)
    assert relative(state, wanted) < 1e-5


@pytest.mark.parametrize("chunk", [1, 7, 16, 196, 300])
def test_the_forms_agree_at_the_size_of_a_picture(chunk):
    q, k, v = (x.repeat(1, 3, 1, 1)[:, :12] for x in qkv(196, dim=16))
    gamma = torch.tensor(decays(12))
    parallel = retain(q, k, v, decay_mask(196, gamma))
    assert relative(retain_chunks(q, k, v, gamma, chunk)[0], parallel) < 1e-5
    assert chunk < 196 or torch.equal(retain_chunks(q, k, v, gamma, chunk)[0], parallel)


@given(cuts=st.lists(st.integers(1, 29), max_size=6), seed=st.integers(0, 9))
@quick
def test_a_state_goes_on_wherever_a_sequence_is_cut(cuts, seed):
    whole, edges = qkv(30, seed), [0, *sorted(set(cuts)), 30]
    state, parts = LineState(GAMMA), []
    for start, end in pairwise(edges):
        parts.append(state(*(x[:, :, start:end] for x in whole)))
        assert state.memory.shape == (2, 4, 5, 5)
    assert relative(torch.cat(parts, 2), retain(*whole, decay_mask(30, GAMMA))) < 1e-5


def test_no_and_full_memory():
    q, k, v = qkv(9)
    y = retain_chunks(q, k, v, GAMMA, 4)[0]
    torch.testing.assert_close(y[:, 0], ((q * k).sum(-1, keepdim=True) * v)[:, 0])
    sums = torch.einsum("bhnd,bhne->bhnde", k, v).cumsum(2)
    torch.testing.assert_close(y[:, 3], torch.einsum("bhnd,bhnde->bhne", q, sums)[:, 3])


@given(place=st.integers(0, 19), chunk=st.integers(1, 25))
@quick
def test_a_token_does_not_change_what_came_before(place, chunk):
    q, k, v = qkv(20)
    changed = [x.index_add(2, torch.tensor([place]), torch.ones(2, 4, 1, 5)) for x in (q, k, v)]
    before, after = (retain_chunks(*x, GAMMA, chunk)[0] for x in ((q, k, v), changed))
    assert torch.equal(before[:, :, :place], after[:, :, :place])
    assert not torch.equal(before[:, :, place], after[:, :, place])


# On a grid


@given(
    height=st.integers(1, 6), width=st.integers(1, 6), rows=st.integers(1, 7),
    token=st.sampled_from([None, "first", "last"]), seed=st.integers(0, 9),
)  # fmt: skip
@quick
def test_the_forms_agree_on_a_grid(height, width, rows, token, seed):
    q, k, v = qkv(height * width + (token is not None), seed)
    parallel = retain(q, k, v, grid_decay_mask(height, width, GAMMA, token))
    assert relative(retain_rows(q, k, v, GAMMA, width, rows, token), parallel) < 1e-5


def test_the_states_of_a_row_follow_the_grid_recurrence():
    height, width = 4, 5
    q, k, v = qkv(height * width, dtype=torch.float64)
    gamma = GAMMA.double()
    own = torch.einsum("bhnd,bhne->bhnde", k, v).unflatten(2, (height, width))
    g, states = gamma[:, None, None], torch.zeros(height + 1, width + 1, 2, 4, 5, 5, dtype=torch.float64)
    state = GridState(gamma, width)
    for r in range(height):
        for c in range(width):
            up, left, corner = states[r, c + 1], states[r + 1, c], states[r, c]
            states[r + 1, c + 1] = g * up + g * left - g**2 * corner + own[:, :, r, c]
        row = slice(r * width, (r + 1) * width)
        y = state.scan(*(x[:, :, row] for x in (q, k, v)))
        torch.testing.assert_close(state.memory, states[r + 1, 1:].movedim(0, 2))
        torch.testing.assert_close(y, torch.einsum("bhcd,bhcde->bhce", q[:, :, row], state.memory))


@given(place=st.integers(0, 19))
@quick
def test_a_patch_changes_only_what_lies_below_and_right_of_it(place):
    q, k, v = qkv(20)
    k_changed = k.index_add(2, torch.tensor([place]), torch.ones(2, 4, 1, 5))
    before, after = (retain_rows(q, x, v, GAMMA, width=5) for x in (k, k_changed))
    moved = (before != after)[:, 1:3].any(-1).all(1).all(0).unflatten(0, (4, 5))
    row, column = torch.arange(4)[:, None], torch.arange(5)
    assert torch.equal(moved, (row >= place // 5) & (column >= place % 5))


def test_a_class_token_may_come_apart_from_the_rows():
    q, k, v = qkv(13)
    for token, sizes in (("last", [4, 8, 1]), ("first", [1, 8, 4]), ("last", [8, 5]), ("first", [9, 4])):
        state = GridState(GAMMA, 4, token)
        parts = [state.scan(*part) for part in zip(*(x.split(sizes, 2) for x in (q, k, v)), strict=True)]
        assert relative(torch.cat(parts, 2), retain(q, k, v, grid_decay_mask(3, 4, GAMMA, token))) < 1e-5
        assert state.memory.shape == (2, 4, 4, 5, 5)


def test_a_grid_does_not_go_on_by_half_a_row():
    with pytest.raises(ValueError, match="whole rows of 4 tokens, got 6"):
        GridState(GAMMA, 4).scan(*qkv(6))


@given(columns=st.integers(1, 20))
@quick
def test_the_decayed_sum_is_a_recurrence(columns):
    x = torch.randn(2, 4, columns, 3, 3, dtype=torch.float64)
    wanted = [x[:, :, 0]]
    for c in range(1, columns):
        wanted.append(GAMMA.double()[:, None, None] * wanted[-1] + x[:, :, c])
    torch.testing.assert_close(decayed_cumsum(x, GAMMA.double()), torch.stack(wanted, 2))


# Precision and gradients


def low_precision_error(form):
    wide = qkv(200, dtype=torch.float32)
    low = [x.bfloat16() for x in wide]
    got, wanted = form(*low), form(*(x.float() for x in low))
    assert got.dtype == torch.bfloat16
    return float((got.float() - wanted).norm() / wanted.norm())


def test_states_stay_in_float32_in_low_precision():
    assert low_precision_error(lambda q, k, v: retain_chunks(q, k, v, GAMMA, 16)[0]) < 0.01
    assert low_precision_error(lambda q, k, v: retain_tokens(q, k, v, GAMMA)) < 0.01
    assert low_precision_error(lambda q, k, v: retain_rows(q, k, v, GAMMA, 10)) < 0.01
    for state, size in ((LineState(GAMMA), 1), (LineState(GAMMA), 8), (GridState(GAMMA, 4), 8)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            for _ in range(2):
                state(*qkv(size, dtype=torch.bfloat16))
        assert state.memory.dtype == torch.float32


@pytest.mark.parametrize("form", ["chunks", "tokens"])
def test_the_forms_have_equal_gradients(form):
    grads = []
    for own in (False, True):
        q, k, v = (x.requires_grad_() for x in qkv(11, dtype=torch.float64))
        if not own:
            y = retain(q, k, v, decay_mask(11, GAMMA.double()))
        elif form == "chunks":
            y = retain_chunks(q, k, v, GAMMA.double(), 4)[0]
        else:
            y = retain_tokens(q, k, v, GAMMA.double())
        y.square().sum().backward()
        grads.append([x.grad for x in (q, k, v)])
    for got, wanted in zip(*grads, strict=True):
        torch.testing.assert_close(got, wanted)
