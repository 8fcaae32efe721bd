"""Pruned weights in a file that is smaller for it: a bit for every weight, and the values of those that live."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from vitalk.errors import UserError
from vitalk.files import write_tensors

KEY, BITMAP, VALUES = "vitalk.sparse", ".bitmap", ".values"


def pack(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, list[int]]]:
    """(tensors, shapes): weights with enough zeros as two tensors each, a bitmap and the nonzero values, others as is.

    A bitmap costs a bit a weight, where CSR's column numbers cost 32 each: it is the smaller of the two down to a
    density of 3 %. Values keep type and bits. shapes: of the weights that were packed.
    """
    tensors, shapes = {}, {}
    for name, value in state.items():
        value = value.detach().cpu().contiguous()
        alive = value != 0
        spared = (value.numel() - int(alive.sum())) * value.element_size()
        if value.dim() < 2 or not value.is_floating_point() or spared <= value.numel() / 8 + 64:
            tensors[name] = value
            continue
        tensors[name + BITMAP] = torch.from_numpy(np.packbits(alive.flatten().numpy()))
        tensors[name + VALUES] = value[alive]
        shapes[name] = list(value.shape)
    return tensors, shapes


def packed_size(state: dict[str, Tensor]) -> int:
    """Bytes of all tensors after ``pack``."""
    return sum(value.numel() * value.element_size() for value in pack(state)[0].values())


def write_sparse(path: Path, state: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    """Write a state dict as safetensors with its zeros left out. ``read_sparse`` gives all of it back, bit for bit.

    metadata: goes along; that of ``vitalk train``'s model.safetensors makes ``unpack`` restore that very file.
    """
    tensors, shapes = pack(state)
    return write_tensors(path, tensors, {**(metadata or {}), KEY: json.dumps(shapes)})


def read_sparse(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The state dict and metadata that ``write_sparse`` wrote. Raises UserError for any other file."""
    if not Path(path).is_file():
        raise UserError(f"there is no file at {path}; check the path")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        tensors = load_file(path)
        shapes = json.loads(metadata.pop(KEY))
    except KeyError:
        raise UserError(f"{path} holds no packed weights; read it as the plain safetensors file that it is") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is not a readable safetensors file ({error})") from None
    for name, shape in shapes.items():
        bitmap, values = tensors.pop(name + BITMAP, None), tensors.pop(name + VALUES, None)
        count = int(np.prod(shape))
        if bitmap is None or values is None or bitmap.numel() != -(-count // 8):
            raise UserError(f"{path} is damaged: the packed weight {name} is incomplete; fetch the file again")
        alive = torch.from_numpy(np.unpackbits(bitmap.numpy(), count=count)).bool()
        if int(alive.sum()) != len(values):
            raise UserError(f"{path} is damaged: the packed weight {name} is inconsistent; fetch the file again")
        tensors[name] = torch.zeros(count, dtype=values.dtype).masked_scatter_(alive, values).view(shape)
    return tensors, metadata


def unpack(path: Path, target: Path) -> Path:
    """Write a packed file as the plain safetensors file that every verb of vitalk reads."""
    return write_tensors(target, *read_sparse(path))
