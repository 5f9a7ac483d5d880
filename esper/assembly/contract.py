"""What a data set and a network must be to be trained, one's own above all; said before there is a run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from esper.data.splits import DataSplits, Split
from esper.errors import ConfigError, DataError
from esper.kasmina import seeded_layers
from esper.kasmina.graft import kernel_dtype
from esper.kasmina.probing import undisturbed

_SEE = "docs/own-network.md says what it must be"


def check_data(data: Any) -> None:
    """Raise ConfigError for what is no data set, DataError for one whose samples or labels do not fit."""
    if not isinstance(data, DataSplits):
        raise ConfigError(f"data: its _target_ gave {_kind(data)}, not an esper.data.DataSplits", hint=_SEE)
    shape = tuple(data.train.x.shape[1:])
    for name, split in (("train", data.train), ("held_out", data.held_out), ("test", data.test)):
        if problem := _problem(split, shape, data.classes):
            raise DataError(f"data: {data.name}, {name}: {problem}", hint=_SEE)


def _problem(split: Split, shape: tuple[int, ...], classes: int) -> str:
    x, y = split
    if not len(x) == len(y) > 0:
        return f"{len(x)} samples and {len(y)} labels"
    if tuple(x.shape[1:]) != shape:
        return f"samples of {tuple(x.shape[1:])}, and those of train are of {shape}"
    if y.dtype != torch.int64 or y.shape not in (x.shape[:1], x.shape[:2]):
        return f"labels are {_kind(y)}, not a class for each sample, or for each of its positions, as int64"
    least, most = int(y.min()), int(y.max())
    if least < 0 or most >= classes:
        return f"labels are from {least} to {most}, and {classes} classes are counted from 0 to {classes - 1}"
    return ""


def check_module(model: Any) -> None:
    """Raise ConfigError for what is no module."""
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model: its _target_ gave {_kind(model)}, not a torch.nn.Module", hint=_SEE)


def check_network(model: nn.Module, data: DataSplits) -> None:
    """Raise ConfigError unless ``model``, on the device of ``data``, gives logits for its samples."""
    x, y = data.train.x[:2], data.train.y[:2]
    try:
        with undisturbed(model):
            logits = model(x)
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        raise ConfigError(
            f"model: {type(model).__name__} does not take {_kind(x)}: {type(error).__name__}: {first}",
            hint=_SEE,
        ) from error
    fits = isinstance(logits, Tensor) and logits.is_floating_point() and logits.shape[:-1] == y.shape
    if not fits or logits.shape[-1] < data.classes:
        wanted = (*y.shape, data.classes)
        raise ConfigError(
            f"model: {type(model).__name__} gives {_kind(logits)} for {_kind(x)}, not logits of {wanted}",
            hint=_SEE,
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(f"model: no parameter of {type(model).__name__} can be trained", hint=_SEE)


def check_kernels(model: nn.Module, dtype: str) -> None:
    """Raise ConfigError when kernels of ``dtype`` fit no layer of a wrapped ``model``."""
    found = {kernel_dtype(layer) for layer in seeded_layers(model).values()}
    if dtype not in found:
        raise ConfigError(
            f"the layers with seeds are {' and '.join(sorted(found))}, and kernels are compiled for {dtype}",
            hint=f"set tezzeret.dtype={min(found)}",
        )


def _kind(value: Any) -> str:
    """What it is, in words: ``float32 of (2, 10)``, or ``a dict``."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} of {tuple(value.shape)}"
    return f"a {type(value).__name__}"
