"""What a rule sees of one call of a torch function, and what a trace keeps of what it says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from esper.kasmina.layer import SeededLayer
from esper.kasmina.operators.labels import Dim, data, pin, unify

Place = tuple[str, int]
"""A dimension of a parameter or buffer: its name and the dimension."""
Writers = frozenset[Place]


@dataclass(frozen=True)
class Axis:
    """One dimension of a traced tensor.

    Attributes:
        dim: what it counts.
        mean: where rows must be the mean of the old rows so that new positions hold the mean of the old ones,
            for every input; None when that cannot be had.
        zero: where rows must be zero so that new positions hold zero; empty when they do in any case.
        source: the parameter's dimension that this is, seen through views only.
    """

    dim: Dim
    mean: Writers | None = None
    zero: Writers | None = None
    source: Place | None = None

    @property
    def silent(self) -> bool:
        """Whether new positions hold zero at birth in any case."""
        return self.zero is not None and not self.zero


Axes = tuple[Axis, ...]


@dataclass(frozen=True)
class Reading:
    """A dimension that is summed over: new entries along ``dim`` must be zero unless what is read is."""

    dim: Dim
    silent: bool


@dataclass(frozen=True)
class Norm:
    """A layer norm or RMS norm over a width; its statistics demand something of the writers."""

    name: str
    module: nn.Module
    demand: Literal["mean", "zero"]
    dim: Dim
    writers: Writers
    eps: float


@dataclass(frozen=True)
class Attribute:
    """A module's attribute that holds the size of ``dim``, as a number or a tuple of one."""

    module: nn.Module
    name: str
    dim: Dim


@dataclass(frozen=True)
class Step:
    """One call: its function, the numbers in its arguments that are sizes, and the labels of its results."""

    name: str
    where: str
    owners: tuple[nn.Module, ...]
    numbers: tuple[tuple[int, Dim], ...]
    results: tuple[Axes, ...]


@dataclass(frozen=True)
class Call:
    """What a rule sees of one call."""

    trace: Trace
    name: str
    where: str
    owner: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any

    def get(self, position: int, name: str, default: Any = None) -> Any:
        """The argument at ``position`` or of ``name``."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)

    def axes(self, tensor: Tensor) -> Axes:
        """The labels of an operand."""
        return self.trace.axes_of(tensor)

    def read(self, activation: Axis, weight: Axis) -> None:
        """Note that ``activation`` is summed over against ``weight``, a parameter's dimension."""
        self.trace.unify(activation.dim, weight.dim, self.where)
        sources = [axis for axis in (activation, weight) if axis.source is not None]
        if len(sources) != 1:
            what = "two parameters" if sources else "two outputs of layers"
            pin(weight.dim, f"{self.where} sums over it between {what}")
            return
        source = sources[0]
        other = weight if source is activation else activation
        assert source.source is not None
        self.trace.readings.setdefault(source.source, []).append(Reading(source.dim, other.silent))

    def write(self, weight: Axis) -> Axis:
        """The axis of an output whose positions the rows of ``weight`` make."""
        if weight.source is None:
            return Axis(weight.dim)
        self.trace.writes.setdefault(weight.source, None)
        return Axis(weight.dim, weight.mean, weight.zero)

    def fill(self, tensor: Tensor | None, value: float, dim: int = 0) -> None:
        """New entries of ``tensor`` along ``dim`` take ``value``."""
        if tensor is not None and (source := self.axes(tensor)[dim].source) is not None:
            self.trace.fills[source] = value

    def attribute(self, name: str, dim: Dim, module: nn.Module | None = None) -> None:
        """Say that ``name`` of the owner is the size of ``dim``."""
        module = module or self.owner
        self.trace.attributes[id(module), name] = Attribute(module, name, dim)


class Unruled(Exception):
    """A rule does not cover this use of its function."""


Rule = Callable[[Call], "Axes | list[Axes]"]
RULES: dict[str, Rule] = {}
NUMBERS: dict[str, Callable[[tuple[Any, ...], dict[str, Any]], list[int]]] = {}
"""For functions whose arguments hold sizes as literal numbers: those numbers, -1 where torch works it out."""
SIZED: dict[str, Callable[[Call, list[Axes]], list[Dim]]] = {}
"""For the same functions: what each of those numbers is the size of."""


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register the decorated function as the rule of the torch functions ``names``."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


@dataclass
class Trace:
    """What one run of an example found out."""

    model: nn.Module
    modules: dict[str, nn.Module] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    labels: dict[int, Axes] = field(default_factory=dict)
    places: dict[str, Axes] = field(default_factory=dict)
    readings: dict[Place, list[Reading]] = field(default_factory=dict)
    writes: dict[Place, None] = field(default_factory=dict)
    fills: dict[Place, float] = field(default_factory=dict)
    norms: list[Norm] = field(default_factory=list)
    attributes: dict[tuple[int, str], Attribute] = field(default_factory=dict)
    layers: list[tuple[SeededLayer, Dim, Dim]] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    tainted: dict[int, tuple[Dim, str]] = field(default_factory=dict)
    stack: list[tuple[str, nn.Module]] = field(default_factory=list)
    kept: list[Tensor] = field(default_factory=list)
    used: set[int] = field(default_factory=set)

    def axes_of(self, tensor: Tensor) -> Axes:
        """The labels of ``tensor``; one of unknown origin may come from anything that was seen so far."""
        self.used.add(id(tensor))
        if (taint := self.tainted.get(id(tensor))) is not None:
            pin(*taint)
        if id(tensor) not in self.labels:
            for axes in list(self.labels.values()):
                for axis in axes:
                    pin(axis.dim, "a tensor is used that no torch function made, and may come from it")
            self.know(tensor)
        return self.labels[id(tensor)]

    def know(self, *tensors: Tensor) -> None:
        """Label ``tensors`` as data."""
        for tensor in tensors:
            if id(tensor) not in self.labels:
                self.put(tensor, tuple(plain(size) for size in tensor.shape))

    def put(self, tensor: Tensor, axes: Axes) -> None:
        """Label ``tensor``, and keep it so that its id is not used again."""
        self.labels[id(tensor)] = axes
        self.kept.append(tensor)

    def unify(self, a: Dim, b: Dim, where: str) -> None:
        """Make two dimensions one."""
        unify(a, b, where)

    def width_of(self, place: Place) -> Dim:
        """What a dimension of a parameter counts."""
        return self.places[place[0]][place[1]].dim


def plain(size: int) -> Axis:
    """An axis of data."""
    return Axis(data(size))
