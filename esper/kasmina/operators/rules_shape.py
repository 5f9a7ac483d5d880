"""Rules of functions that fold, reorder or repeat whole dimensions."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from esper.kasmina.operators.calls import NUMBERS, SIZED, Axes, Axis, Call, Unruled, plain, rule
from esper.kasmina.operators.labels import (
    DATA,
    Dim,
    Variable,
    expand,
    factor,
    pin,
    size_of,
)
from esper.kasmina.operators.rules import joined
from esper.kasmina.operators.rules_pointwise import operand


def numbers(values: Iterable[Any]) -> list[int]:
    """Whole numbers as they stand in arguments, loose or in lists; -1 for what is none."""
    flat: list[int] = []
    for value in values:
        flat += numbers(value) if isinstance(value, list | tuple) else [value]
    return [v if isinstance(v, int) else -1 for v in flat]


@rule("view", "reshape", "unflatten", "flatten", "ravel", "view_as", "reshape_as")
def reshape(call: Call) -> Axes:
    """Any folding of neighbouring dimensions."""
    given = operand(call)
    if not isinstance(call.result, Tensor) or call.result.numel() == 0:
        raise Unruled
    return _refold(call, given, tuple(call.result.shape))


def _refold(call: Call, given: Axes, shape: tuple[int, ...]) -> Axes:
    """The axes of ``given`` in row-major order, cut to ``shape``."""
    out: list[Axis] = []
    i = j = 0
    while i < len(given) or j < len(shape):
        inside, outside = given[i : i + 1], shape[j : j + 1]
        i, j = i + len(inside), j + len(outside)
        while (left := _total(inside)) != (right := math.prod(outside)):
            if left < right:
                inside, i = (*inside, given[i]), i + 1
            else:
                outside, j = (*outside, shape[j]), j + 1
        out += _refold_group(call, inside, outside)
    return tuple(out)


def _total(axes: Axes) -> int:
    return math.prod(size_of(axis.dim) for axis in axes)


def _refold_group(call: Call, inside: Axes, outside: tuple[int, ...]) -> list[Axis]:
    if len(inside) == len(outside) == 1:
        return list(inside)
    if not outside:
        for axis in inside:
            pin(axis.dim, f"{call.where} takes its single position out")
        return []
    wide = [axis for axis in inside if not _single(axis.dim)]
    if len(wide) == 1 and sum(size != 1 for size in outside) == 1:
        return [wide[0] if size != 1 else plain(1) for size in outside]
    zero = joined(*(axis.zero for axis in inside if grows(axis.dim)))
    dim = _product([axis.dim for axis in inside])
    return [Axis(part, zero=zero) for part in _cut(call, dim, outside)]


def _single(dim: Dim) -> bool:
    return all(v.size == 1 and v.reason is not None for segment in expand(dim) for v in segment)


def grows(dim: Dim) -> bool:
    """Whether any of it is not pinned."""
    return any(v.reason is None for segment in expand(dim) for v in segment)


def _product(dims: list[Dim]) -> Dim:
    """Row-major product; a dimension that is cut into parts can stand first only, or behind data."""
    product: Dim = ((),)
    for dim in dims:
        parts = expand(dim)
        if len(parts) > 1:
            holder = Variable(size_of(parts))
            holder.value = parts
            parts = ((holder,),)
        product = tuple((*left, *right) for left in product for right in parts)
    return expand(product)


def _cut(call: Call, dim: Dim, shape: tuple[int, ...]) -> list[Dim]:
    """``dim`` as a row-major product of ``shape``."""
    if len(shape) == 1:
        return [dim]
    dim = expand(dim)
    if len(dim) > 1 and len(set(dim)) == 1:  # the same width side by side: so many times that width
        dim = ((Variable(len(dim), DATA, data=True), *dim[0]),)
    if len(dim) > 1:
        pin(dim, f"{call.where} folds what was concatenated")
        return [((Variable(size, DATA, data=True),),) for size in shape]
    rest: list[Variable] = list(dim[0])
    out: list[Dim] = []
    for size in shape:
        taken: list[Variable] = []
        while math.prod(v.size for v in taken) < size:
            head = rest.pop(0)
            needed = size // math.prod(v.size for v in taken)
            if head.size > needed:
                parts = factor(head, needed) if size % math.prod(v.size for v in taken) == 0 else None
                if parts is None:
                    pin((*dim,), f"{call.where} cuts it across")
                    return [((Variable(n, DATA, data=True),),) for n in shape]
                head, rest = parts[0], [*parts[1:], *rest]
            taken.append(head)
        if math.prod(v.size for v in taken) != size:
            pin(dim, f"{call.where} cuts it across")
            return [((Variable(n, DATA, data=True),),) for n in shape]
        if not taken and rest and rest[0].size == 1:
            taken.append(rest.pop(0))
        out.append((tuple(taken),) if taken else ((Variable(1, DATA, data=True),),))
    if rest:
        out[-1] = ((*out[-1][0], *rest),)
    return out


@rule(
    "permute",
    "transpose",
    "swapaxes",
    "swapdims",
    "movedim",
    "moveaxis",
    "t",
    "T",
    "mT",
    "adjoint",
    "H",
    "mH",
)
def permute(call: Call) -> Axes:
    """Dimensions in another order."""
    given = operand(call)
    n = len(given)
    if call.name in ("t", "T", "H"):
        order = list(range(n))[::-1]
    elif call.name in ("mT", "adjoint", "mH"):
        order = [*range(n - 2), n - 1, n - 2]
    elif call.name in ("transpose", "swapaxes", "swapdims"):
        a = call.get(1, "dim0", call.kwargs.get("axis0")) % n
        b = call.get(2, "dim1", call.kwargs.get("axis1")) % n
        order = list(range(n))
        order[a], order[b] = b, a
    elif call.name == "permute":
        dims = call.args[1:] or (call.kwargs["dims"],)
        order = [d % n for d in numbers(dims)]
    else:
        source = [d % n for d in numbers([call.get(1, "source")])]
        target = [d % n for d in numbers([call.get(2, "destination")])]
        rest = [d for d in range(n) if d not in source]
        order = [source[target.index(i)] if i in target else rest.pop(0) for i in range(n)]
    return tuple(given[i] for i in order)


@rule("squeeze", "unsqueeze")
def squeeze(call: Call) -> Axes:
    """Dimensions of a single position come and go."""
    given = list(operand(call))
    if call.name == "unsqueeze":
        given.insert(call.get(1, "dim") % (len(given) + 1), plain(1))
        return tuple(given)
    dim = call.get(1, "dim")
    dims = range(len(given)) if dim is None else [d % len(given) for d in numbers([dim])]
    gone = [d for d in dims if size_of(given[d].dim) == 1]
    for d in gone:
        pin(given[d].dim, f"{call.where} takes its single position out")
    return tuple(axis for d, axis in enumerate(given) if d not in gone)


@rule("expand", "expand_as", "broadcast_to")
def expanded(call: Call) -> Axes:
    """Single positions are repeated."""
    given, shape = operand(call), call.result.shape
    axes = [plain(size) for size in shape[: len(shape) - len(given)]]
    for axis, size in zip(given, shape[len(axes) :], strict=True):
        if size_of(axis.dim) == size:
            axes.append(axis)
        else:
            pin(axis.dim, f"{call.where} broadcasts its single position")
            axes.append(plain(size))
    return tuple(axes)


@rule("repeat", "tile")
def repeated(call: Call) -> Axes:
    """Whole dimensions are laid one after another."""
    given, shape = operand(call), call.result.shape
    axes = [plain(size) for size in shape[: len(shape) - len(given)]]
    for axis, size in zip(given, shape[len(axes) :], strict=True):
        times = size // size_of(axis.dim)
        axes.append(
            axis if times == 1 else Axis(_product([((Variable(times, DATA, data=True),),), axis.dim]))
        )
    return tuple(axes)


def _sizes(call_args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[int]:
    given = call_args[1:] or (kwargs.get("shape", kwargs.get("size", ())),)
    return numbers(given)


def _unflatten_sizes(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[int]:
    return numbers([args[2] if len(args) > 2 else kwargs.get("sizes", ())])


def _of_result(_: Call, labels: list[Axes]) -> list[Dim]:
    return [axis.dim for axis in labels[0]]


def _of_unflatten(call: Call, labels: list[Axes]) -> list[Dim]:
    start = call.get(1, "dim") % len(operand(call))
    return [axis.dim for axis in labels[0][start:]]


NUMBERS.update(view=_sizes, reshape=_sizes, expand=_sizes, broadcast_to=_sizes)
NUMBERS.update(unflatten=_unflatten_sizes)
SIZED.update(view=_of_result, reshape=_of_result, expand=_of_result, broadcast_to=_of_result)
SIZED.update(unflatten=_of_unflatten)
