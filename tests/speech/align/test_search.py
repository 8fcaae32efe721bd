"""The alignment search against two official ones, exhaustive search, and its own other backend."""

from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.parity import parity
from vitalk.errors import UserError
from vitalk.speech.align import search
from vitalk.speech.align.search import maximum_path, path_of

FOLDER = Path(__file__).parents[2] / "parity"
BACKENDS = ["numba", "torch"]


def exhaustive(score):
    """The best sum of a score [text, frames], by trying every way to cut the frames."""
    text, frames = score.shape
    cuts = ([0, *inner, frames] for inner in combinations(range(1, frames), text - 1))
    return max(sum(score[j, a:b].sum() for j, (a, b) in enumerate(pairwise(cut))) for cut in cuts)


@pytest.mark.parametrize("backend", BACKENDS)
def test_agrees_with_glow_tts(backend):
    loaded = parity.load(FOLDER / "clartts.mas.json")
    inputs, expected = loaded["inputs"], loaded["outputs"]
    score = 3 * torch.from_numpy(parity.tensor("value", **inputs["value"]))
    durations = maximum_path(score, torch.tensor([9, 6, 4]), torch.tensor([24, 17, 4]), backend=backend)
    path = path_of(durations, 24)
    assert parity.distance(path.numpy(), expected["path"]) == 0
    assert parity.distance(durations.numpy(), expected["row_sums"]) == 0
    assert parity.distance((score * path).sum((1, 2)).numpy(), expected["score"]) < 1e-6
    mask = torch.zeros(3, 9, 24, dtype=torch.bool)
    for item, (text, frames) in enumerate(((9, 24), (6, 17), (4, 4))):
        mask[item, :text, :frames] = True
    given_durations = torch.from_numpy(parity.tensor("durations", **inputs["durations"]))
    assert parity.distance((path_of(given_durations, 24) & mask).numpy(), expected["expanded_path"]) == 0


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_finds_what_trying_everything_finds(data):
    size = st.integers(1, 9).flatmap(lambda frames: st.tuples(st.integers(1, min(frames, 5)), st.just(frames)))
    sizes = data.draw(st.lists(size, min_size=1, max_size=3))
    most_text, most_frames = (max(size) for size in zip(*sizes, strict=True))
    seed = data.draw(st.integers(0, 10_000))
    # Few whole values: sums are exact, and ties are common.
    score = np.random.default_rng(seed).integers(-2, 3, (len(sizes), most_text, most_frames)).astype(np.float32)
    lengths = [torch.tensor(v) for v in zip(*sizes, strict=True)]
    for ties in ("stay", "diagonal"):
        found = [maximum_path(torch.from_numpy(score), *lengths, ties, backend) for backend in BACKENDS]
        assert torch.equal(*found)
        path = path_of(found[0], most_frames).numpy()
        for item, (text, frames) in enumerate(sizes):
            durations = found[0][item]
            assert durations[:text].min() >= 1 and durations.sum() == frames and not durations[text:].any()
            assert (score[item] * path[item]).sum() == exhaustive(score[item, :text, :frames])


@pytest.mark.parametrize("backend", BACKENDS)
def test_ties_go_where_they_are_sent(backend):
    args = torch.zeros(1, 3, 7), torch.tensor([3]), torch.tensor([7])
    assert maximum_path(*args, "stay", backend).tolist() == [[1, 1, 5]]
    assert maximum_path(*args, "diagonal", backend).tolist() == [[5, 1, 1]]


@given(st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_large_batches_are_the_same_on_both_backends_and_padding_is_not_read(seed):
    rng = np.random.default_rng(seed)
    text = torch.from_numpy(rng.integers(1, 20, 6))
    frames = text + torch.from_numpy(rng.integers(0, 60, 6))
    score = torch.from_numpy(rng.standard_normal((6, 20, 80)).astype(np.float32))
    first = maximum_path(score, text, frames, backend="numba")
    for item in range(6):
        score[item, text[item] :] = float("nan")
        score[item, :, frames[item] :] = float("inf")
    assert torch.equal(first, maximum_path(score, text, frames, backend="numba"))
    assert torch.equal(first, maximum_path(score, text, frames, backend="torch"))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_scores_that_are_no_numbers_still_give_a_path(backend, value):
    score = torch.randn(1, 4, 9)
    score[0, 1:3, 2:6] = value
    durations = maximum_path(score.half(), torch.tensor([4]), torch.tensor([9]), backend=backend)
    assert durations.sum() == 9 and durations.min() >= 1


def test_what_has_no_path_is_named():
    score = torch.zeros(3, 5, 8)
    with pytest.raises(UserError, match="item 1 of the batch has 5 symbols but only 4 frames"):
        maximum_path(score, torch.tensor([5, 5, 5]), torch.tensor([8, 4, 3]))
    with pytest.raises(UserError, match="item 2 of the batch has no symbols"):
        maximum_path(score, torch.tensor([5, 5, 0]), torch.tensor([8, 8, 8]))
    with pytest.raises(UserError, match=r"item 0 .* 5 by 8; check the lengths"):
        maximum_path(score, torch.tensor([5, 5, 5]), torch.tensor([9, 8, 8]))


def test_works_without_numba(monkeypatch):
    score = torch.randn(2, 5, 12), torch.tensor([5, 3]), torch.tensor([12, 9])
    with_numba = maximum_path(*score)
    monkeypatch.setattr(search, "_compiled", lambda: None)
    assert torch.equal(maximum_path(*score), with_numba)
    with pytest.raises(UserError, match="needs numba"):
        maximum_path(*score, backend="numba")
