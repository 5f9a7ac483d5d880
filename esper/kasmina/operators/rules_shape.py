"""Rules of functions that move, cut, join or fold dimensions."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from esper.kasmina.operators.labels import (
    DATA,
    Dim,
    Segment,
    Variable,
    expand,
    factor,
    fresh,
    pin,
    size_of,
)
from esper.kasmina.operators.rules import joined
from esper.kasmina.operators.rules_pointwise import keeping, operand
from esper.kasmina.operators.tracing import NUMBERS, SIZED, Axes, Axis, Call, Unruled, plain, rule


def _numbers(values: Iterable[Any]) -> list[int]:
    flat: list[int] = []
    for value in values:
        flat += _numbers(value) if isinstance(value, list | tuple) else [value]
    return [v if isinstance(v, int) else -1 for v in flat]


@rule("view", "reshape", "unflatten", "flatten", "ravel", "view_as", "reshape_as")
def reshape(call: Call) -> Axes:
    """Any folding of neighbouring dimensions."""
    given = operand(call)
    if not isinstance(call.result, Tensor) or call.result.numel() == 0:
        raise Unruled
    return refold(call, given, tuple(call.result.shape))


def refold(call: Call, given: Axes, shape: tuple[int, ...]) -> Axes:
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
    zero = joined(*(axis.zero for axis in inside if _grows(axis.dim)))
    dim = _product([axis.dim for axis in inside])
    return [Axis(part, zero=zero) for part in _cut(call, dim, outside)]


def _single(dim: Dim) -> bool:
    return all(v.size == 1 and v.reason is not None for segment in expand(dim) for v in segment)


def _grows(dim: Dim) -> bool:
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
        order = [d % n for d in _numbers(dims)]
    else:
        source = [d % n for d in _numbers([call.get(1, "source")])]
        target = [d % n for d in _numbers([call.get(2, "destination")])]
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
    dims = range(len(given)) if dim is None else [d % len(given) for d in _numbers([dim])]
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
            out.append(Axis(whole, zero=joined(*(a.zero for a in present if _grows(a.dim)))))
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


def divided(call: Call, axis: Axis, parts: int) -> Axis:
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
    half = divided(call, axes[dim], 2)
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
        parts = [divided(call, axis, len(sizes))] * len(sizes)
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


@rule("select", "narrow", "index_select", "take_along_dim", "gather")
def select(call: Call) -> Axes:
    """Some positions along one dimension."""
    given, name = operand(call), call.name
    if name in ("gather", "take_along_dim"):
        raise Unruled
    dim = call.get(1, "dim") % len(given)
    pin(given[dim].dim, f"{call.where} selects from it")
    kept = () if name == "select" else (plain(call.result.shape[dim]),)
    return (*given[:dim], *kept, *given[dim + 1 :])


@rule("getitem")
def getitem(call: Call) -> Axes:
    """Numbers, slices, None, Ellipsis and at most one tensor."""
    given, index = list(operand(call)), call.args[1]
    items = list(index) if isinstance(index, tuple) else [index]
    tensors = [item for item in items if isinstance(item, Tensor)]
    if len(tensors) > 1 or any(isinstance(item, list | bool) for item in items):
        raise Unruled
    if tensors and tensors[0].dtype.is_floating_point is False and str(tensors[0].dtype) == "torch.bool":
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
    for d in _numbers(dims):
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
        if not _grows(given[d].dim):
            given[d] = plain(call.result.shape[d])
            continue
        ends = [((Variable(n, "padding", data=True),),) if n else () for n in (before, after)]
        given[d] = Axis((*ends[0], *given[d].dim, *ends[1]), zero=given[d].zero)
    zero = mode != "constant" or not value
    return keeping(tuple(given), mean=zero, zero=zero)


@rule(
    "interpolate",
    "upsample",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
    "unfold_images",
    "lp_pool2d",
)
def averaging(call: Call) -> Axes:
    """(N, C, *) to (N, C, *'): each channel alike, linear."""
    return _spatial(call, call.result, mean=True)


@rule(
    "max_pool1d",
    "max_pool2d",
    "max_pool3d",
    "adaptive_max_pool1d",
    "adaptive_max_pool2d",
    "adaptive_max_pool3d",
    "boolean_dispatch",
    "fn",
    "max_pool1d_with_indices",
    "max_pool2d_with_indices",
    "max_pool3d_with_indices",
    "adaptive_max_pool2d_with_indices",
)
def pooling(call: Call) -> Axes | list[Axes]:
    """(N, C, *) to (N, C, *'): each channel alike, not linear."""
    if isinstance(call.result, Tensor):
        return _spatial(call, call.result, mean=False)
    return [_spatial(call, result, mean=False) for result in call.result]


def _spatial(call: Call, result: Tensor, *, mean: bool) -> Axes:
    given = operand(call)
    count = {"1": 1, "2": 2, "3": 3}.get(next((c for c in call.name if c.isdigit()), ""), result.ndim - 2)
    for axis in given[-count:]:
        pin(axis.dim, f"{call.where} treats it as positions")
    stay = keeping(given[:-count], mean=mean, zero=True)
    return (*stay, *(plain(size) for size in result.shape[-count:]))


@rule("pixel_shuffle")
def pixel_shuffle(call: Call) -> Axes:
    """(N, C r r, H, W) to (N, C, H r, W r)."""
    given, r = operand(call), call.get(1, "upscale_factor")
    part = fresh(call.result.shape[-3])
    whole: Segment = (*part[0], Variable(r * r, DATA, data=True))
    call.trace.unify(given[-3].dim, (whole,), call.where)
    return (*given[:-3], Axis(part, zero=given[-3].zero), *(plain(n) for n in call.result.shape[-2:]))


def _sizes(call_args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[int]:
    given = call_args[1:] or (kwargs.get("shape", kwargs.get("size", ())),)
    return _numbers(given)


def _unflatten_sizes(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[int]:
    return _numbers([args[2] if len(args) > 2 else kwargs.get("sizes", ())])


def _split_sizes(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[int]:
    names = ("split_size_or_sections", "split_size", "split_sizes")
    given = args[1] if len(args) > 1 else next((kwargs[n] for n in names if n in kwargs), -1)
    return _numbers([given])


def _of_result(_: Call, labels: list[Axes]) -> list[Dim]:
    return [axis.dim for axis in labels[0]]


def _of_unflatten(call: Call, labels: list[Axes]) -> list[Dim]:
    start = call.get(1, "dim") % len(operand(call))
    return [axis.dim for axis in labels[0][start:]]


def _of_parts(call: Call, labels: list[Axes]) -> list[Dim]:
    dim = call.get(2, "dim", 0) % len(labels[0])
    return [axes[dim].dim for axes in labels]


NUMBERS.update(view=_sizes, reshape=_sizes, expand=_sizes, broadcast_to=_sizes)
NUMBERS.update(unflatten=_unflatten_sizes, split=_split_sizes, split_with_sizes=_split_sizes)
SIZED.update(view=_of_result, reshape=_of_result, expand=_of_result, broadcast_to=_of_result)
SIZED.update(unflatten=_of_unflatten, split=_of_parts, split_with_sizes=_of_parts)
