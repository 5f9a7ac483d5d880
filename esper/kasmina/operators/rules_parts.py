"""Rules of functions that join, cut, pick or pad along a dimension."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from esper.kasmina.operators.calls import NUMBERS, SIZED, Axes, Axis, Call, Unruled, plain, rule
from esper.kasmina.operators.labels import DATA, Dim, Variable, fresh, pin, size_of
from esper.kasmina.operators.rules import joined
from esper.kasmina.operators.rules_pointwise import keeping, operand
from esper.kasmina.operators.rules_shape import grows, numbers


@rule("cat", "concat", "concatenate")
def cat(call: Call) -> Axes:
    """One after another along one dimension; the others agree."""
    tensors = call.get(0, "tensors")
    labels = [call.axes(t) for t in tensors if t.numel() > 0]
    ndim = call.result.ndim
    dim = call.get(1, "dim", call.kwargs.get("axis", 0)) % ndim
    out: list[Axis] = []
    for i in range(ndim):
        present = [axes[i] for axes in labels]
        if i == dim:
            whole = tuple(segment for axis in present for segment in axis.dim)
            out.append(Axis(whole, zero=joined(*(a.zero for a in present if grows(a.dim)))))
        else:
            out.append(_agreeing(call, present))
    return tuple(out)


def _agreeing(call: Call, present: list[Axis]) -> Axis:
    for axis in present[1:]:
        call.trace.unify(present[0].dim, axis.dim, call.where)
    return Axis(present[0].dim, joined(*(a.mean for a in present)), joined(*(a.zero for a in present)))


@rule("stack")
def stack(call: Call) -> Axes:
    """Along a new dimension."""
    tensors = call.get(0, "tensors")
    labels = [call.axes(t) for t in tensors]
    out = [_agreeing(call, [axes[i] for axes in labels]) for i in range(len(labels[0]))]
    out.insert(call.get(1, "dim", 0) % call.result.ndim, plain(len(tensors)))
    return tuple(out)


def _divided(call: Call, axis: Axis, parts: int) -> Axis:
    """One of ``parts`` equal parts of ``axis``, which all grow alike."""
    part = fresh(size_of(axis.dim) // parts)
    whole = ((Variable(parts, DATA, data=True), *part[0]),)
    call.trace.unify(axis.dim, whole, call.where)
    return Axis(part, zero=axis.zero, source=axis.source)


@rule("glu")
def glu(call: Call) -> Axes:
    """One half times the sigmoid of the other."""
    axes = list(operand(call))
    dim = call.get(1, "dim", -1) % len(axes)
    half = _divided(call, axes[dim], 2)
    axes[dim] = half
    return tuple(keeping((a,), zero=i == dim)[0] for i, a in enumerate(axes))


@rule("chunk", "split", "tensor_split", "unsafe_chunk", "unsafe_split", "split_with_sizes")
def split(call: Call) -> list[Axes]:
    """Parts along one dimension."""
    given = operand(call)
    dim = call.get(2, "dim", 0) % len(given)
    axis = given[dim]
    sizes = [t.shape[dim] for t in call.result]
    named = isinstance(call.args[1] if len(call.args) > 1 else None, list | tuple)
    if len(sizes) == 1:
        parts = [axis]
    elif len(set(sizes)) == 1 and not named:
        parts = [_divided(call, axis, len(sizes))] * len(sizes)
    elif named:
        dims = [fresh(size) for size in sizes]
        call.trace.unify(axis.dim, tuple(d[0] for d in dims), call.where)
        parts = [Axis(d, zero=axis.zero, source=axis.source) for d in dims]
    else:
        pin(axis.dim, f"{call.where} cuts it into unequal parts")
        parts = [plain(size) for size in sizes]
    return [(*given[:dim], part, *given[dim + 1 :]) for part in parts]


@rule("unbind")
def unbind(call: Call) -> list[Axes]:
    """One tensor for each position."""
    given = operand(call)
    dim = call.get(1, "dim", 0) % len(given)
    pin(given[dim].dim, f"{call.where} takes its positions apart")
    return [(*given[:dim], *given[dim + 1 :])] * len(call.result)


@rule("select", "narrow", "index_select")
def select(call: Call) -> Axes:
    """Some positions along one dimension."""
    given = operand(call)
    dim = call.get(1, "dim") % len(given)
    pin(given[dim].dim, f"{call.where} selects from it")
    kept = () if call.name == "select" else (plain(call.result.shape[dim]),)
    return (*given[:dim], *kept, *given[dim + 1 :])


@rule("getitem")
def getitem(call: Call) -> Axes:
    """Numbers, slices, None, Ellipsis and at most one tensor."""
    given, index = list(operand(call)), call.args[1]
    items = list(index) if isinstance(index, tuple) else [index]
    tensors = [item for item in items if isinstance(item, Tensor)]
    if len(tensors) > 1 or any(isinstance(item, list | bool) for item in items):
        raise Unruled
    if tensors and tensors[0].dtype == torch.bool:
        raise Unruled
    taken = sum(item is not None and item is not Ellipsis for item in items)
    if Ellipsis not in [item for item in items if not isinstance(item, Tensor)]:
        items.append(Ellipsis)
    out: list[Axis] = []
    for item in items:
        if item is None:
            out.append(plain(1))
        elif item is Ellipsis:
            out += [given.pop(0) for _ in range(len(operand(call)) - taken)]
        else:
            out += _picked(call, given.pop(0), item)
    return tuple(out)


def _picked(call: Call, axis: Axis, item: Any) -> list[Axis]:
    if isinstance(item, slice):
        size = size_of(axis.dim)
        if item.indices(size) == (0, size, 1):
            return [axis]
        pin(axis.dim, f"{call.where} takes a slice of it")
        return [plain(len(range(*item.indices(size))))]
    pin(axis.dim, f"{call.where} picks from it")
    return [plain(size) for size in item.shape] if isinstance(item, Tensor) else []


@rule("flip", "roll")
def moved(call: Call) -> Axes:
    """Positions in another order along some dimensions."""
    given = operand(call)
    dims = call.args[1:] if call.name == "flip" else (call.get(2, "dims"),)
    dims = dims or (call.kwargs.get("dims"),)
    if None in dims:
        raise Unruled
    for d in numbers(dims):
        pin(given[d].dim, f"{call.where} reorders it")
    return keeping(given, mean=True, zero=True)


@rule("pad")
def pad(call: Call) -> Axes:
    """Constant, reflected or repeated entries at the ends of the last dimensions."""
    given, amounts = list(operand(call)), list(call.get(1, "pad"))
    mode, value = call.get(2, "mode", "constant"), call.get(3, "value", None)
    for i in range(len(amounts) // 2):
        before, after = amounts[2 * i : 2 * i + 2]
        d = len(given) - 1 - i
        if before == after == 0:
            continue
        if min(before, after) < 0 or mode != "constant":
            pin(given[d].dim, f"{call.where} pads it with itself")
        if not grows(given[d].dim):
            given[d] = plain(call.result.shape[d])
            continue
        ends = [((Variable(n, "padding", data=True),),) if n else () for n in (before, after)]
        given[d] = Axis((*ends[0], *given[d].dim, *ends[1]), zero=given[d].zero)
    zero = mode != "constant" or not value
    return keeping(tuple(given), mean=zero, zero=zero)


def _split_sizes(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[int]:
    names = ("split_size_or_sections", "split_size", "split_sizes")
    given = args[1] if len(args) > 1 else next((kwargs[n] for n in names if n in kwargs), -1)
    return numbers([given])


def _of_parts(call: Call, labels: list[Axes]) -> list[Dim]:
    dim = call.get(2, "dim", 0) % len(labels[0])
    return [axes[dim].dim for axes in labels]


NUMBERS.update(split=_split_sizes, split_with_sizes=_split_sizes)
SIZED.update(split=_of_parts, split_with_sizes=_of_parts)
