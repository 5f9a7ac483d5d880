"""Read the pickled batches of CIFAR-10's Python version without running anything that is in them.

A pickle may call whatever it names. The original files name three things of NumPy, and all they need them for
is to say "so many bytes, of this shape". Here those three names give two inert records, every other name is
refused, and the array is made from the bytes afterwards, once type, shape and length agree. Opcodes that the
original files do not use are refused before anything is loaded, since some of them take memory at will.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from esper.errors import DataError


class _DType:
    """Stands for ``numpy.dtype``: keeps the type's name."""

    def __init__(self, *arguments: Any) -> None:
        self.name = arguments[0] if arguments else None

    def __setstate__(self, state: object) -> None:
        """Byte order and alignment mean nothing for single bytes, the only type that is accepted."""


class _Array:
    """Stands for ``numpy.ndarray`` and what rebuilds one: keeps (version, shape, dtype, fortran, bytes)."""

    state: Any = None

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state


_ALLOWED: dict[tuple[str, str], type] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _DType,
}


# What Python 2's cPickle wrote at protocol 2 for a dictionary of strings, whole numbers, lists and one array:
# frame and stop, constants and integers, strings, containers, memo, then GLOBAL, REDUCE and BUILD.
_OPCODES = frozenset("\x80.(N\x88\x89JKMUT}su]ae)t\x85\x86\x87qrhjcRb")
_MEMO_LIMIT = 2**20  # a batch remembers some 20,000 objects; the reader's table grows with the largest index


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no CIFAR-10 file needs") from None


def read_pickled_batch(raw: bytes, path: Path) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Images, uint8 with the stored shape, and labels of the pickled batch ``raw``, which came from ``path``.

    Raises DataError when the bytes are no such batch.
    """
    try:
        _check_opcodes(raw)
        batch = _Unpickler(io.BytesIO(raw), encoding="bytes").load()
    except Exception as error:  # damaged bytes make pickle raise nearly anything, MemoryError included
        raise _foreign(path, f"cannot be read: {error}") from error
    if not isinstance(batch, dict) or b"data" not in batch or b"labels" not in batch:
        raise _foreign(path, "holds no dictionary with 'data' and 'labels'")
    labels = batch[b"labels"]
    if not isinstance(labels, list) or not all(type(x) is int and 0 <= x < 2**31 for x in labels):
        raise _foreign(path, "'labels' is not a list of whole numbers from 0 up")
    return _to_array(batch[b"data"], path), np.array(labels, dtype=np.int64)


def _check_opcodes(raw: bytes) -> None:
    for opcode, argument, _ in pickletools.genops(raw):
        if opcode.code not in _OPCODES:
            raise pickle.UnpicklingError(f"it uses {opcode.name}, which no CIFAR-10 file needs")
        if opcode.name == "LONG_BINPUT" and (argument or 0) > _MEMO_LIMIT:
            raise pickle.UnpicklingError(f"it remembers an object under number {argument:,}")


def _to_array(stored: object, path: Path) -> npt.NDArray[np.uint8]:
    match stored:
        case _Array(state=(int(), tuple(shape), _DType(name=b"u1"), False | 0, bytes(values))) if all(
            type(n) is int and n >= 1 for n in shape
        ) and math.prod(shape) == len(values):
            return np.frombuffer(values, dtype=np.uint8).reshape(shape)
    raise _foreign(path, "'data' is not an array of unsigned bytes as long as its shape says")


def _foreign(path: Path, reason: str) -> DataError:
    return DataError(
        f"{path}: expected a batch of CIFAR-10's Python version, but the file {reason}",
        hint="use the binary version instead: https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    )
