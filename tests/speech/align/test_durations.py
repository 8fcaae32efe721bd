"""Durations on disk: whole or absent, and made again where they are damaged."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vitalk.errors import UserError
from vitalk.speech.align.durations import DurationCache, extract
from vitalk.speech.align.training import AlignerTraining


class Counting:
    """An aligner that gives every frame but the needed ones to the last symbol, and counts what it is asked."""

    def __init__(self):
        self.asked = 0

    def durations(self, batch):
        self.asked += len(batch["ids"])
        inside = torch.arange(batch["ids"].shape[1]) < batch["text_lengths"][:, None]
        durations = inside.long()
        durations[torch.arange(len(durations)), batch["text_lengths"] - 1] += (
            batch["mel_lengths"] - batch["text_lengths"]
        )
        return durations


def loader(names=("a", "b", "c", "d"), size=2):
    for start in range(0, len(names), size):
        chosen = list(names[start : start + size])
        text = torch.tensor([3 + len(name) for name in chosen])
        yield {
            "utterances": chosen, "ids": torch.ones(len(chosen), int(text.max()), dtype=torch.int64),
            "text_lengths": text, "mel": torch.randn(len(chosen), 5, 20), "mel_lengths": torch.full((len(chosen),), 20),
        }  # fmt: skip


@given(st.text(min_size=1, max_size=20), st.lists(st.integers(0, 9), min_size=1, max_size=30))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_put_is_got(tmp_path, name, durations):
    cache = DurationCache(tmp_path)
    cache.put(name, torch.tensor(durations), sum(durations))
    assert cache[name].tolist() == durations and cache[name].dtype == np.int64
    assert name in cache and name in list(cache) and cache.missing([name, name + "?"]) == [name + "?"]
    assert cache.get(name, len(durations), sum(durations)) is not None
    assert cache.get(name, len(durations) + 1) is None and cache.get(name, frames=sum(durations) + 1) is None
    assert all(path.parent == tmp_path for path in tmp_path.rglob("*.npz"))


def test_extraction_goes_on_where_it_stopped_and_repairs(tmp_path):
    cache, aligner = DurationCache(tmp_path), Counting()
    assert extract(aligner, list(loader())[:1], cache) == 2
    assert extract(aligner, loader(), cache) == 2 and aligner.asked == 4
    assert extract(aligner, loader(), cache) == 0 and aligner.asked == 4 and len(cache) == 4
    path = tmp_path / "b.npz"
    path.write_bytes(path.read_bytes()[:100])
    assert cache.missing("abcd") == ["b"]
    with pytest.raises(UserError, match="no sound durations of b; align it"):
        cache["b"]
    assert extract(aligner, loader(), cache) == 1 and aligner.asked == 5
    assert cache["b"].sum() == 20 and sorted(cache) == list("abcd")
    assert not [p for p in tmp_path.iterdir() if p.suffix != ".npz"]


def test_damaged_bytes_are_noticed_or_harmless(tmp_path):
    cache = DurationCache(tmp_path)
    cache.put("a", np.array([3, 4, 5]), 12)
    path = tmp_path / "a.npz"
    whole = path.read_bytes()
    for place in range(0, len(whole), 5):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        found = cache.get("a", 3, 12)
        assert found is None or found.tolist() == [3, 4, 5]
    for length in range(0, len(whole), 23):
        path.write_bytes(whole[:length])
        assert cache.get("a") is None


@pytest.mark.parametrize(
    ("durations", "words"),
    [
        ([3, 4], "sum to 7 frames instead of 12"),
        ([-1, 13], "negative"),
        ([1.0, 11.0], "whole numbers"),
        ([[12]], "row"),
    ],
)
def test_durations_that_cannot_be_are_refused(tmp_path, durations, words):
    cache = DurationCache(tmp_path)
    with pytest.raises(UserError, match=f"the durations of a .*{words}"):
        cache.put("a", np.array(durations), 12)
    assert not list(tmp_path.iterdir())


def test_an_aligner_in_training_is_asked_in_eval_mode(tmp_path):
    model = AlignerTraining(4, 5, text_dim=8, dim=8).train()
    assert extract(model, loader(("a/b", "../c")), cache := DurationCache(tmp_path)) == 2
    assert model.training and cache["../c"].sum() == 20 and len(cache["a/b"]) == 6
