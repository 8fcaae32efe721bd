"""Weights that must fit a model entry by entry."""

from collections.abc import Mapping

from torch import Tensor, nn

from vitalk.errors import UserError


def load_matching(model: nn.Module, state: Mapping[str, Tensor], source: str = "the checkpoint") -> None:
    """Load all entries of ``state`` into ``model``, or none.

    state: in the model's own names; checkpoints of others go through its ``checkpoint_filter_fn`` first. source: what
    the message calls it, such as a path.
    Raises UserError where an entry is missing, left over or of another shape, naming the first in the model's order.
    """
    if (fault := first_mismatch(model, state)) is not None:
        raise UserError(f"{source} does not fit {type(model).__name__}: {fault}; give the variant it was made with")
    model.load_state_dict(state)


def first_mismatch(model: nn.Module, state: Mapping[str, Tensor]) -> str | None:
    """The first entry that does not fit, with its shapes, in words; None where all do."""
    own = model.state_dict()
    for key, value in own.items():
        if key not in state:
            return f"{key} {list(value.shape)} is missing"
        if state[key].shape != value.shape:
            return f"{key} is {list(state[key].shape)}, the model has {list(value.shape)}"
    left = next((key for key in state if key not in own), None)
    return None if left is None else f"{left} {list(state[left].shape)} is unknown to the model"
