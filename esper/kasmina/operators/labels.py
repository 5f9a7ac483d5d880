"""Labels of dimensions: which width a dimension counts, worked out by unification.

A dimension is a concatenation of segments, a segment a row-major product of variables::

    32 channels of one layer                 (a)
    two layers concatenated                  (a) | (b)
    channels flattened with a 4 x 4 image    (a, h, w)
    queries, keys and values of all heads    (3, heads, head size)

Variables that must agree are merged; one that turns out to be several is bound to their dimension. A pinned
variable cannot grow and knows why. Data (batch, positions, images) is pinned from the start.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable

Segment = tuple["Variable", ...]
Dim = tuple[Segment, ...]


class Variable:
    """One width, or a part of one: its size, what it is bound to, and why it is pinned."""

    __slots__ = ("data", "hint", "order", "reason", "size", "value")
    _orders = itertools.count()

    def __init__(self, size: int, reason: str | None = None, *, data: bool = False, hint: str = "") -> None:
        self.size, self.reason, self.data, self.hint = size, reason, data, hint
        self.value: Dim | None = None
        self.order = next(self._orders)

    def __repr__(self) -> str:
        return f"{self.hint or 'v'}{self.order}:{self.size}{'!' if self.reason else ''}"


DATA = "it is a size of the data, not of the network"


def fresh(size: int) -> Dim:
    """A dimension of one new variable."""
    return ((Variable(size),),)


def data(size: int) -> Dim:
    """A dimension that counts data."""
    return ((Variable(size, DATA, data=True),),)


def size_of(dim: Dim) -> int:
    """Number of positions along ``dim``."""
    return sum(math.prod(v.size for v in segment) for segment in dim)


def expand(dim: Dim) -> Dim:
    """``dim`` in unbound variables only; pinned factors of size 1 are left out."""
    return tuple(segment for original in dim for segment in _expand_segment(original))


def _expand_segment(segment: Segment) -> list[Segment]:
    products: list[Segment] = [()]
    for variable in segment:
        if variable.value is None:
            if variable.size != 1 or variable.reason is None:
                products = [(*p, variable) for p in products]
            continue
        parts = expand(variable.value)
        if len(parts) > 1:  # n * (a | b) is (a | b) n times
            products = [q for p in products for q in _copies(p)]
        products = [(*p, *part) for p in products for part in parts]
    return [p or (Variable(1, DATA, data=True),) for p in products]


def _copies(product: Segment) -> list[Segment]:
    for variable in product:
        pin_variable(variable, "as many parts lie side by side")
    return [() for _ in range(math.prod(v.size for v in product))]


def variables(dim: Dim) -> list[Variable]:
    """The unbound variables of ``dim``, pinned or not, in order, each once."""
    return list(dict.fromkeys(v for segment in expand(dim) for v in segment))


def free(dim: Dim) -> list[Variable]:
    """The variables of ``dim`` that can grow."""
    return [v for v in variables(dim) if v.reason is None]


def pin_variable(variable: Variable, reason: str, *, data: bool = False) -> None:
    """Say that ``variable`` cannot grow; the first reason stays."""
    if variable.value is not None:
        pin(variable.value, reason)
    elif variable.reason is None:
        variable.reason, variable.data = reason, data


def pin(dim: Dim, reason: str) -> None:
    """Say that nothing of ``dim`` can grow."""
    for segment in dim:
        for variable in segment:
            pin_variable(variable, reason)


def unify(a: Dim, b: Dim, where: str) -> None:
    """Make ``a`` and ``b`` one dimension; what cannot be matched is pinned, because of ``where``."""
    a, b = expand(a), expand(b)
    if a == b:
        return
    if size_of(a) != size_of(b):
        pin(a + b, f"sizes that differ meet in {where}")
    elif len(a) == 1 and len(a[0]) == 1:
        _bind(a[0][0], b, where)
    elif len(b) == 1 and len(b[0]) == 1:
        _bind(b[0][0], a, where)
    else:
        _align(list(a), list(b), where)


def _bind(variable: Variable, dim: Dim, where: str) -> None:
    """Bind the unbound ``variable`` to ``dim``, which has its size."""
    if variable in variables(dim):
        pin((*dim, (variable,)), f"a width would be a part of itself in {where}")
        return
    reason = variable.reason
    if reason is not None:
        for other in variables(dim):
            pin_variable(other, reason if not variable.data else f"{where} ties it to a size of the data")
    only = dim[0][0] if len(dim) == 1 and len(dim[0]) == 1 else None
    if only is not None and not only.hint:
        only.hint = variable.hint
    if only is not None:
        only.order = min(only.order, variable.order)
    variable.value = dim


def _align(a: list[Segment], b: list[Segment], where: str) -> None:
    """Match two lists of segments of the same total size from the left."""
    while a and b:
        sizes = math.prod(v.size for v in a[0]), math.prod(v.size for v in b[0])
        if sizes[0] == sizes[1]:
            _match(a.pop(0), b.pop(0), where)
            a, b = list(expand(tuple(a))), list(expand(tuple(b)))
            continue
        longer, shorter = (a, min(sizes)) if sizes[0] > sizes[1] else (b, min(sizes))
        parts = _divide(longer[0], shorter)
        if parts is None:
            pin((*a, *b), f"{where} cuts it across")
            return
        longer[:1] = parts
        a, b = list(expand(tuple(a))), list(expand(tuple(b)))
    pin((*a, *b), f"{where} cuts it across")


def _divide(segment: Segment, size: int) -> list[Segment] | None:
    """``segment`` as a segment of ``size`` and what follows, if it can be taken so."""
    if len(segment) == 1:
        variable = segment[0]
        rest = variable.size - size
        parts: list[Segment] = [(Variable(n, variable.reason, data=variable.data),) for n in (size, rest)]
        variable.value = tuple(parts)
        return parts
    leading, following = segment[0], segment[1:]
    if math.prod(v.size for v in following) > size:
        return None
    pin_variable(leading, "as many parts lie side by side")
    return [following] * leading.size


def _match(a: Segment, b: Segment, where: str) -> None:
    """Match two products of the same size, factor by factor from the left."""
    if len(a) == 1 or len(b) == 1:
        unify((a,), (b,), where)
        return
    left, right = list(a), list(b)
    while left and right:
        x, y = left[0], right[0]
        if x.size == y.size:
            unify(((left.pop(0),),), ((right.pop(0),),), where)
        elif 1 in (x.size, y.size):
            pin_variable((left if x.size == 1 else right).pop(0), f"{where} folds a single one of it")
        else:
            longer, size = (left, y.size) if x.size > y.size else (right, x.size)
            parts = factor(longer[0], size)
            if parts is None:
                pin((tuple(left), tuple(right)), f"{where} cuts it across")
                return
            longer[:1] = parts
        left = [v for v in left if v.value is None] if all(v.value is None for v in left) else _flat(left)
        right = [v for v in right if v.value is None] if all(v.value is None for v in right) else _flat(right)
    pin((tuple(left), tuple(right)) if left or right else (), f"{where} folds a single one of it")


def _flat(product: Iterable[Variable]) -> list[Variable]:
    """A product in unbound variables; a concatenation inside it stays one pinned number."""
    segments = expand((tuple(product),))
    if len(segments) == 1:
        return list(segments[0])
    pin(segments, "it is concatenated and then folded")
    return [Variable(size_of(segments), "it is concatenated and then folded")]


def factor(variable: Variable, size: int) -> list[Variable] | None:
    """``variable`` as a product of ``size`` and the rest, bound so; None when it does not divide."""
    if variable.size % size:
        return None
    parts = [Variable(n, variable.reason, data=variable.data) for n in (size, variable.size // size)]
    variable.value = (tuple(parts),)
    return parts


def new_size(dim: Dim, sizes: Callable[[Variable], int]) -> int:
    """The size of ``dim`` when each unbound variable has the size that ``sizes`` says."""
    return sum(math.prod(sizes(v) for v in segment) for segment in expand(dim))


def positions(
    dim: Dim, sizes: Callable[[Variable], int], within: Callable[[Variable], bool] = lambda _: True
) -> tuple[int, ...]:
    """Where entries that are old in every variable of ``within`` stand along the grown ``dim``.

    With the default, those are the old positions, in order.
    """
    found: list[int] = []
    start = 0
    for segment in expand(dim):
        ranges = [range(v.size if within(v) else sizes(v)) for v in segment]
        strides = [math.prod(sizes(v) for v in segment[i + 1 :]) for i in range(len(segment))]
        found += [
            start + sum(i * stride for i, stride in zip(index, strides, strict=True))
            for index in itertools.product(*ranges)
        ]
        start += math.prod(sizes(v) for v in segment)
    return tuple(found)


def twins(dim: Dim, sizes: Callable[[Variable], int], variable: Variable) -> list[tuple[int, int]]:
    """Along the grown ``dim``: each second new unit of ``variable`` and the new unit before it."""
    found: list[tuple[int, int]] = []
    start = 0
    for segment in expand(dim):
        shape = [sizes(v) for v in segment]
        strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
        for i, v in enumerate(segment):
            if v is not variable:
                continue
            others = [range(1) if j == i else range(size) for j, size in enumerate(shape)]
            for index in itertools.product(*others):
                place = start + sum(a * stride for a, stride in zip(index, strides, strict=True))
                found += [
                    (place + c * strides[i], place + (c - 1) * strides[i])
                    for c in range(v.size + 1, sizes(v), 2)
                ]
        start += math.prod(shape)
    return found
