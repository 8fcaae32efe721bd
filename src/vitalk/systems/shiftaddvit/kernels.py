"""MatShift and MatAdd as they are meant: integers, shifts and additions (arXiv 2306.06446, section 4.3).

``matshift``: int32 activations in fixed point, weights of one byte (sign, zero, shift). ``matadd``: packed binary
codes, 64 a word, that say which rows are summed. Both run in ``kernels.cpp``, which the system's compiler builds once
into the user's cache; without one numpy gives the same integers, bit for bit. One thread each.

What this buys on a CPU: weights take a quarter of float32's memory. Time it costs: a vector unit multiplies and adds
16 floats in one instruction, and needs three to shift, negate and add, so MatShift is slower than a dense product.
MatAdd looks sums of four rows up in tables and can be on a par. See ``costs.kernel_costs``.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import warnings
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np

from vitalk.errors import UserError

BLOCK = 16  # outputs whose weights lie together; as in kernels.cpp
NARROW = 2.0**31


@dataclass(frozen=True)
class ShiftWeights:
    """Weights [columns, inner] that are 0 or +-2^-k, one byte each, in the order that the kernel reads them.

    packed: uint8 [blocks, inner, 16]: k in the low five bits, 64 where the weight is not zero, 128 for minus.
    base: the largest k, the bits after the point that ``exact`` products have more. reach: the largest sum of |w| of
    a column, which bounds the output.
    """

    packed: np.ndarray
    columns: int
    base: int
    reach: float

    @property
    def inner(self) -> int:
        """Inputs."""
        return self.packed.shape[1]


def pack_shifts(weight: np.ndarray) -> ShiftWeights:
    """Pack weights [columns, inner]. Raises UserError for any that is no 0 and no +-2^-k with k of 0 … 30."""
    mantissa, exponent = np.frexp(weight)
    count = np.where(weight == 0, 0, 1 - exponent)
    if not (((np.abs(mantissa) == 0.5) | (weight == 0)).all() and ((count >= 0) & (count <= 30)).all()):
        raise UserError("weights to pack must be 0 or a power of two from 2^-30 to 1; give a shift layer's")
    columns, inner = weight.shape
    code = (count + 64 * (weight != 0) + 128 * (weight < 0)).astype(np.uint8)
    padded = np.zeros((-(-columns // BLOCK) * BLOCK, inner), np.uint8)
    padded[:columns] = code
    packed = np.ascontiguousarray(padded.reshape(-1, BLOCK, inner).transpose(0, 2, 1))
    return ShiftWeights(packed, columns, int(count.max(initial=0)), float(np.abs(weight).sum(1).max(initial=0)))


def matshift(x: np.ndarray, weights: ShiftWeights, exact: bool = False) -> np.ndarray:
    """x int32 [rows, inner] -> int64 [rows, columns], the sum over inner of sign * (x >> shift).

    x >> k is floor(x 2^-k), so each product loses less than one unit. exact: sign * (x << (base - shift)) instead,
    in 64 bits: nothing is lost, and the result has ``base`` more bits after the point. Sums that could leave 32 bits
    are taken in 64. Raises UserError where x has another type or width.
    """
    if x.dtype != np.int32 or x.ndim != 2 or x.shape[1] != weights.inner:
        raise UserError(f"matshift takes int32 [rows, {weights.inner}], got {x.dtype} {list(x.shape)}")
    x = np.ascontiguousarray(x)
    # Every floor may add one unit more downwards
    bound = largest(x) * weights.reach + 2 * weights.inner
    name = "shift_exact" if exact else "shift_narrow" if bound < NARROW else "shift_wide"
    if (built := library()) is None:
        return matshift_numpy(x, weights, exact)
    y = np.empty((len(x), weights.columns), np.int64)
    if y.size and x.size:
        getattr(built, name)(*map(_pointer, (x, weights.packed, y)), *x.shape, weights.columns, weights.base)
    else:
        y[:] = 0
    return y


def matshift_numpy(x: np.ndarray, weights: ShiftWeights, exact: bool = False) -> np.ndarray:
    """``matshift`` in numpy: products with 0 and +-1 in float64, where these integers are exact, shift by shift."""
    code = weights.packed.transpose(1, 0, 2).reshape(weights.inner, -1)[:, : weights.columns]
    count = code & 31
    sign = np.where(code & 64, np.where(code & 128, -1.0, 1.0), 0.0)
    if exact:
        whole = sign * 2.0 ** (weights.base - count.astype(np.int64))
        high, low = (x >> 16).astype(np.float64), (x & 0xFFFF).astype(np.float64)
        return ((high @ whole).astype(np.int64) << 16) + (low @ whole).astype(np.int64)
    y = np.zeros((len(x), weights.columns), np.int64)
    for k in np.unique(count):
        y += ((x >> int(k)).astype(np.float64) @ (sign * (count == k))).astype(np.int64)
    return y


def pack_codes(codes: np.ndarray) -> np.ndarray:
    """Binary codes [..., rows, inner] -> uint64 [..., rows, words], the first in the lowest bit, 64 a word."""
    packed = np.packbits(codes.astype(bool), axis=-1, bitorder="little")
    missing = -packed.shape[-1] % 8
    padded = np.pad(packed, [(0, 0)] * (packed.ndim - 1) + [(0, missing)])
    return np.ascontiguousarray(padded).view("<u8")


def matadd(codes: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Sums of the rows whose bit is set: codes uint64 [..., rows, words] of ``pack_codes``, integers [..., inner,
    columns] -> int64 [..., rows, columns]. The same as multiplying by the codes.

    Sums that could leave 32 bits are taken in 64. Raises UserError for values of another kind or length.
    """
    inner, columns = values.shape[-2:]
    if values.dtype.kind != "i" or codes.dtype != np.uint64 or codes.shape[-1] != -(-inner // 64):
        raise UserError(f"matadd takes uint64 [..., {-(-inner // 64)}] and integers [..., {inner}, {columns}], "
                        f"got {codes.dtype} {list(codes.shape)} and {values.dtype}")  # fmt: skip
    if (built := library()) is None:
        return matadd_numpy(codes, values)
    values, codes = np.ascontiguousarray(values, np.int64), np.ascontiguousarray(codes)
    rows, batch = codes.shape[-2], int(np.prod(codes.shape[:-2]))
    y = np.empty((*codes.shape[:-1], columns), np.int64)
    name = "add_narrow" if largest(values) * max(inner, 1) < NARROW else "add_wide"
    getattr(built, name)(*map(_pointer, (codes, values, y)), batch, rows, inner, columns)
    return y


def matadd_numpy(codes: np.ndarray, values: np.ndarray) -> np.ndarray:
    """``matadd`` in numpy, by a product in float64, where these integers are exact."""
    bits = np.unpackbits(codes.view(np.uint8), axis=-1, count=values.shape[-2], bitorder="little")
    return (bits.astype(np.float64) @ values.astype(np.float64)).astype(np.int64)


def largest(x: np.ndarray) -> float:
    """The largest magnitude of an array of integers, 0 for an empty one."""
    return float(max(-int(x.min(initial=0)), int(x.max(initial=0))))


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels; None, with one warning, where no compiler works or the cache cannot be written to."""
    source = (resources.files(__package__) / "kernels.cpp").read_bytes()
    try:
        built = ctypes.CDLL(str(_build(source)))
    except (OSError, subprocess.SubprocessError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        warnings.warn(f"the shift and add kernels run in numpy, slower: no C++ compiler could build them ({reason})",
                      stacklevel=3)  # fmt: skip
        return None
    for name in ("shift_narrow", "shift_wide", "shift_exact"):
        getattr(built, name).argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_long] * 3 + [ctypes.c_int]
    for name in ("add_narrow", "add_wide"):
        getattr(built, name).argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_long] * 4
    return built


def _build(source: bytes) -> Path:
    """Compile for this very processor, or take what an earlier run compiled for it."""
    from platformdirs import user_cache_path

    compiler = next(filter(None, map(shutil.which, [os.environ.get("CXX", ""), "c++", "g++", "clang++"])), None)
    if compiler is None:
        raise FileNotFoundError(0, "none found")
    key = hashlib.sha256(b"\0".join([source, compiler.encode(), _processor().encode()])).hexdigest()[:16]
    target = user_cache_path("vitalk") / "kernels" / f"shiftadd-{key}.so"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_suffix(f".{os.getpid()}")
        command = [
            compiler,
            "-x",
            "c++",
            "-std=c++17",
            "-O3",
            "-shared",
            "-fPIC",
            "-Wno-psabi",
            "-o",
            str(unfinished),
            "-",
        ]
        try:
            for native in (["-march=native"], []):  # not every compiler knows its processor
                done = subprocess.run(
                    [*command[:1], *native, *command[1:]], input=source, capture_output=True, timeout=300
                )
                if done.returncode == 0:
                    os.replace(unfinished, target)
                    return target
        finally:
            unfinished.unlink(missing_ok=True)
        raise subprocess.SubprocessError(f"{Path(compiler).name} failed: {done.stderr.decode(errors='replace')[:80]}")
    return target


def _processor() -> str:
    """What this processor can do: a cache on a shared disk must not serve another's code."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    features = sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))})
    return "\n".join([platform.machine(), platform.system(), *features])


def _pointer(array: np.ndarray) -> int:
    return array.ctypes.data
