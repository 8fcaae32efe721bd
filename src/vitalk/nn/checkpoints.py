"""Weights of other people's models, by the names that they have in ours."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

Renames = Iterable[tuple[str, str | Callable[[re.Match[str]], str]]]
LEARNT, AVERAGED = ("state_dict", "model_state_dict", "model"), ("state_dict_ema", "model_ema")  # as files call them


def unwrapped(checkpoint: Mapping[str, Any], averaged: bool = True) -> dict[str, Any]:
    """The weights in a training checkpoint, without the ``module.`` of data-parallel training; bare ones pass through.

    averaged: prefer averaged weights where there are such.
    """
    wrappers = AVERAGED + LEARNT if averaged else LEARNT
    while inner := next((checkpoint[key] for key in wrappers if isinstance(checkpoint.get(key), Mapping)), None):
        checkpoint = inner
    return {key.removeprefix("module."): value for key, value in checkpoint.items()}


def renamed(name: str, table: Renames) -> str:
    """A name in which the patterns of a table, one after the other, are replaced wherever they are found."""
    for pattern, new in table:
        name = re.sub(pattern, new, name)
    return name


def joined(state: Mapping[str, Tensor], pattern: str, new: str, order: Iterable[str]) -> dict[str, Tensor]:
    """The state with weights in one that stand apart in it, such as those of query, key and value.

    pattern: found in their names; its last group says which part it is. new: stands there in the joint name. order:
    of the parts, along the first dimension.
    """
    out: dict[str, Tensor] = {}
    apart: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        if found := re.search(pattern, name):
            apart.setdefault(re.sub(pattern, new, name), {})[found[found.lastindex]] = value
        else:
            out[name] = value
    return out | {name: torch.cat([parts[part] for part in order]) for name, parts in apart.items()}
