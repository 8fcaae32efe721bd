"""What models know by number: vectors where there are several, refusals where numbers do not fit."""

import pytest
import torch
from torch import nn

from vitalk.errors import UserError
from vitalk.speech.acoustic.speakers import add_speaker, numbered, vectors_of


def test_vectors_of_speakers_are_added_at_all_times():
    x, voices = torch.randn(2, 5, 4), nn.Embedding(3, 4)
    found = add_speaker(x, voices, torch.tensor([2, 0]))
    torch.testing.assert_close(found - x, voices.weight[[2, 0]][:, None].expand(-1, 5, -1))
    assert add_speaker(x, None, None) is x and vectors_of("speaker", None, None) is None


def test_parts_that_are_no_tables_are_told_vectors():
    part, given = nn.Linear(3, 4), torch.full((2, 3), -7.0)
    assert torch.equal(vectors_of("condition", part, given), part(given))


def test_refuses_what_does_not_fit():
    voices = nn.Embedding(3, 4)
    with pytest.raises(UserError, match="this model needs a language"):
        vectors_of("language", voices, None)
    with pytest.raises(UserError, match="this model knows no speaker"):
        add_speaker(torch.zeros(1, 2, 4), None, torch.tensor([0]))
    for wrong in ([0, 3], [-1, 0]):
        with pytest.raises(UserError, match=rf"there is no speaker \[{wrong[0]}, {wrong[1]}\]; numbers go from 0 to 2"):
            add_speaker(torch.zeros(2, 2, 4), voices, torch.tensor(wrong))


def test_a_graph_that_is_made_is_not_asked(monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert numbered("speaker", torch.tensor([9]), 2).tolist() == [9]
