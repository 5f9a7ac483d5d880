"""Tensors as the bytes that they are in memory, and what is needed to make them of bytes again."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_DTYPES: Final = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
        *(torch.int64, torch.int32, torch.int16, torch.int8),
        *(torch.uint64, torch.uint32, torch.uint16, torch.uint8, torch.bool),
        *(torch.complex128, torch.complex64),
        *(torch.float8_e4m3fn, torch.float8_e5m2),
    )
}
"""What a checkpoint holds; any other type is refused when it is to be written."""

_LARGE: Final = 2**16
"""Bytes from which memory is copied as such: that is twice as fast as ``copy_`` beyond the caches."""


def described(tensors: Mapping[str, Tensor]) -> list[tuple[str, str, list[int]]]:
    """Name, type and shape of each; TypeError names a tensor of a type that no checkpoint holds."""
    names = {dtype: name for name, dtype in _DTYPES.items()}
    for path, tensor in tensors.items():
        if tensor.dtype not in names or tensor.layout != torch.strided:
            kind = f"{tensor.layout} tensor of {tensor.dtype}"
            raise TypeError(f"{path} is a {kind}, which no checkpoint holds")
    return [(path, names[tensor.dtype], list(tensor.shape)) for path, tensor in tensors.items()]


def empty(descriptions: Iterable[Sequence[object]], most: int) -> dict[str, Tensor]:
    """Tensors as described, not filled yet; ValueError unless they take ``most`` bytes at most."""
    tensors, held = {}, 0
    for path, name, shape in descriptions:
        if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
            raise ValueError(f"{path} has no shape")
        dtype = _DTYPES[str(name)]
        held += math.prod(shape) * dtype.itemsize
        if held > most:
            raise ValueError(f"there are fewer bytes than tensors, from {path} on")
        tensors[str(path)] = torch.empty(shape, dtype=dtype)
    return tensors


def memory_of(tensors: Iterable[Tensor]) -> list[memoryview]:
    """The bytes of each, in the memory where they are: contiguous tensors on the CPU."""
    return [_memory(tensor) for tensor in tensors]


def room_for(tensors: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors on the CPU to copy ``tensors`` into: those of ``buffers`` where they fit.

    Memory that is there already is filled several times as fast as new memory.
    """
    room = {}
    for name, tensor in tensors.items():
        buffer = buffers.get(name)
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype)
        room[name] = buffer
    return room


def is_large(tensor: Tensor) -> bool:
    """Whether its copy takes longer than to think about it."""
    return tensor.nbytes > _LARGE


def fill(room: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Copy each of ``tensors`` to its place in ``room``; other threads of Python go on meanwhile."""
    for name, tensor in tensors.items():
        if tensor.device.type == "cpu" and tensor.is_contiguous() and is_large(tensor):
            np.copyto(_bytes(room[name]), _bytes(tensor))
        else:
            room[name].copy_(tensor)


def _memory(tensor: Tensor) -> memoryview:
    data: Any = _bytes(tensor)
    return memoryview(data)


def _bytes(tensor: Tensor) -> npt.NDArray[np.uint8]:
    data: npt.NDArray[np.uint8] = tensor.detach().view(-1).view(torch.uint8).numpy()
    return data
