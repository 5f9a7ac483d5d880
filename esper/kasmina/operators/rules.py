"""Rules of functions that sum over a width against a parameter: linear layers, convolutions, products."""

from __future__ import annotations

from torch import Tensor, nn

from esper.kasmina.operators.calls import Axes, Axis, Call, Unruled, Writers, plain, rule
from esper.kasmina.operators.labels import Dim, Variable, pin, size_of


def joined(*sets: Writers | None) -> Writers | None:
    """The union, or None where one of them is."""
    known = [s for s in sets if s is not None]
    return Writers().union(*known) if len(known) == len(sets) else None


def bare(axis: Axis) -> Axis:
    """The same dimension, of which nothing more is known."""
    return Axis(axis.dim)


def biased(call: Call, out: Axis, bias: Tensor | None) -> Axis:
    """``out`` after a bias was added along it."""
    if bias is None:
        return out
    axis = call.axes(bias)[0]
    call.trace.unify(out.dim, axis.dim, call.where)
    if axis.source is None:
        return Axis(out.dim)
    return Axis(out.dim, joined(out.mean, axis.mean), joined(out.zero, axis.zero))


@rule("linear")
def linear(call: Call) -> Axes:
    """(..., in) with a weight (out, in) to (..., out)."""
    x, weight, bias = call.get(0, "input"), call.get(1, "weight"), call.get(2, "bias")
    given, rows = call.axes(x), call.axes(weight)
    if len(rows) != 2:
        raise Unruled
    call.read(given[-1], rows[1])
    out = biased(call, call.write(rows[0]), bias)
    if isinstance(call.owner, nn.Linear):
        call.attribute("out_features", rows[0].dim)
        call.attribute("in_features", rows[1].dim)
    return (*map(bare, given[:-1]), out)


@rule("embedding")
def embedding(call: Call) -> Axes:
    """Indices (...) into a weight (entries, features) to (..., features)."""
    index, weight = call.get(0, "input"), call.get(1, "weight")
    entries, features = call.axes(weight)
    pin(entries.dim, f"it counts the entries of {call.where}")
    if call.get(3, "max_norm") is not None:
        pin(features.dim, f"{call.where} limits the norm over it")
    call.attribute("embedding_dim", features.dim)
    return (*map(bare, call.axes(index)), call.write(features))


def _groups(size: int, groups: int, group: Variable) -> tuple[Dim, Variable]:
    """A dimension of ``groups`` times the rest; the rest is pinned where it is one."""
    if size % groups:
        raise Unruled
    each = Variable(size // groups, "each group has one" if size == groups else None, hint="per_group")
    return ((group, each),), each


@rule("conv1d", "conv2d", "conv3d")
def convolution(call: Call) -> Axes:
    """(N, in, *) with a weight (out, in / groups, *) to (N, out, *)."""
    x, weight, bias = call.get(0, "input"), call.get(1, "weight"), call.get(2, "bias")
    groups = call.get(6, "groups", 1)
    given, rows = call.axes(x), call.axes(weight)
    spatial = len(rows) - 2
    channel = len(given) - spatial - 1
    for axis in rows[2:]:
        pin(axis.dim, f"it is the kernel's size in {call.where}")
    out = call.write(rows[0])
    if groups == 1:
        call.read(given[channel], rows[1])
    else:
        group = Variable(groups, hint="groups")
        inside, each = _groups(x.shape[channel], groups, group)
        outside, _ = _groups(weight.shape[0], groups, group)
        call.trace.unify(given[channel].dim, inside, call.where)
        call.trace.unify(rows[0].dim, outside, call.where)
        call.read(Axis(((each,),), zero=given[channel].zero), rows[1])
        out = Axis(out.dim, None, out.zero)
        call.attribute("groups", ((group,),))
    out = biased(call, out, bias)
    call.attribute("out_channels", rows[0].dim)
    call.attribute("in_channels", given[channel].dim)
    leading = map(bare, given[:channel])
    return (*leading, out, *(plain(size) for size in call.result.shape[channel + 1 :]))


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def transposed_convolution(call: Call) -> Axes:
    """(N, in, *) with a weight (in, out / groups, *) to (N, out, *)."""
    x, weight, bias = call.get(0, "input"), call.get(1, "weight"), call.get(2, "bias")
    groups = call.get(6, "groups", 1)
    given, rows = call.axes(x), call.axes(weight)
    channel = len(given) - (len(rows) - 2) - 1
    for axis in rows[2:]:
        pin(axis.dim, f"it is the kernel's size in {call.where}")
    if groups == 1:
        call.read(given[channel], rows[0])
        out = call.write(rows[1])
    else:
        group = Variable(groups, hint="groups")
        inside, each = _groups(x.shape[channel], groups, group)
        outside, _ = _groups(weight.shape[1] * groups, groups, group)
        call.trace.unify(given[channel].dim, inside, call.where)
        call.trace.unify(((outside[0][1],),), rows[1].dim, call.where)
        call.write(rows[1])
        call.write(rows[0])
        call.trace.unify(rows[0].dim, inside, call.where)
        call.read(Axis(((each,),), zero=given[channel].zero), Axis(((each,),), source=rows[0].source))
        out = Axis(outside)
        call.attribute("groups", ((group,),))
    out = biased(call, out, bias)
    call.attribute("out_channels", out.dim)
    call.attribute("in_channels", given[channel].dim)
    leading = map(bare, given[:channel])
    return (*leading, out, *(plain(size) for size in call.result.shape[channel + 1 :]))


@rule("matmul", "rmatmul", "imatmul", "bmm", "mm", "mv", "dot")
def matmul(call: Call) -> Axes:
    """(..., m, k) times (..., k, n) to (..., m, n), also without m or n."""
    x, y = call.args[0], call.get(1, "other", call.kwargs.get("mat2"))
    if call.name == "rmatmul":
        x, y = y, x
    a, b = call.axes(x), call.axes(y)
    call.read(a[-1], b[max(-2, -len(b))])
    left = [_product_axis(call, axis) for axis in a[-2:-1]] if len(a) > 1 else []
    right = [_product_axis(call, b[-1])] if len(b) > 1 else []
    size = max(len(a), len(b)) - 2
    batch = _batch(call, a[:-2], b[:-2]) if size > 0 else ()
    return (*batch, *left, *right)


def _product_axis(call: Call, axis: Axis) -> Axis:
    """An axis that is not summed over: each position stays a sum of what it was, times something."""
    return call.write(axis) if axis.source is not None else Axis(axis.dim, axis.mean, axis.zero)


def _batch(call: Call, a: Axes, b: Axes) -> Axes:
    """Broadcast leading axes of a product of matrices."""
    size = max(len(a), len(b))
    out: list[Axis] = []
    for i in range(-size, 0):
        present = [axes[i] for axes in (a, b) if len(axes) >= -i]
        target = call.result.shape[: call.result.ndim - (call.result.ndim - size)][i]
        out.append(merged(call, present, target))
    return tuple(out)


def merged(call: Call, present: list[Axis], target: int) -> Axis:
    """One axis of a broadcast: those of the result's size are one; a single position must stay single."""
    whole = [axis for axis in present if size_of(axis.dim) == target]
    for axis in present:
        if size_of(axis.dim) != target:
            pin(axis.dim, f"{call.where} broadcasts its single position")
    for axis in whole[1:]:
        call.trace.unify(whole[0].dim, axis.dim, call.where)
    return Axis(whole[0].dim)


@rule("einsum")
def einsum(call: Call) -> Axes:
    """An equation of plain letters, each one width; what is summed is summed between two operands."""
    equation, operands = call.args[0], call.args[1:]
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = tuple(operands[0])
    if not isinstance(equation, str) or "->" not in equation or "." in equation:
        raise Unruled
    inputs, output = equation.replace(" ", "").split("->")
    letters: dict[str, list[Axis]] = {}
    for term, operand in zip(inputs.split(","), operands, strict=True):
        if len(set(term)) != len(term):
            raise Unruled
        for letter, axis in zip(term, call.axes(operand), strict=True):
            letters.setdefault(letter, []).append(axis)
    axes: dict[str, Axis] = {}
    for letter, found in letters.items():
        for axis in found[1:]:
            call.trace.unify(found[0].dim, axis.dim, call.where)
        if letter in output:
            axes[letter] = _product_axis(call, found[0]) if len(found) == 1 else Axis(found[0].dim)
        elif len(found) == 2:
            call.read(*found)
        else:
            pin(found[0].dim, f"{call.where} sums over it")
    return tuple(axes[letter] for letter in output)
