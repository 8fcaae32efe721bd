"""Where mixed precision must not reach."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def full_precision(x: Tensor) -> AbstractContextManager:
    """A context without autocast for the device of ``x``: sums and powers in it keep the types of their inputs."""
    # Only where autocast is on: an autocast region would stand in every exported graph otherwise.
    kind = x.device.type
    on = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.autocast(kind, enabled=False) if on else nullcontext()
