"""Checkpoints that fit, and those that do not."""

import pytest
import torch
from torch import nn

from vitalk.errors import UserError
from vitalk.vision.checkpoints import first_mismatch, load_matching


def test_a_fitting_checkpoint_is_loaded():
    source, model = nn.Linear(3, 2), nn.Linear(3, 2)
    load_matching(model, source.state_dict())
    assert torch.equal(model.weight, source.weight) and first_mismatch(model, source.state_dict()) is None


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"bias": torch.ones(2)}, r"weight \[2, 3\] is missing"),
        ({"weight": torch.ones(4, 3), "bias": torch.ones(4)}, r"weight is \[4, 3\], the model has \[2, 3\]"),
        ({"weight": torch.ones(2, 3), "bias": torch.ones(2), "more": torch.ones(1)}, r"more \[1\] is unknown"),
    ],
)
def test_the_first_mismatch_is_named_and_nothing_is_loaded(state, words):
    model = nn.Linear(3, 2)
    before = model.bias.clone()
    with pytest.raises(UserError, match=rf"w\.pth does not fit Linear: {words}"):
        load_matching(model, state, "w.pth")
    assert torch.equal(model.bias, before)
