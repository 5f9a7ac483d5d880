"""Follow the widths of a network through one run of an example.

Every call of a torch function is seen by a ``TorchFunctionMode``; its rule (``rules*.py``) says how the
labels of its results follow from those of its operands. Control flow is that of the run. A function without
a rule pins every width that flows into it: nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.overrides import TorchFunctionMode

from esper.errors import GraftError
from esper.kasmina.layer import SeededLayer
from esper.kasmina.operators.labels import Dim, data, fresh, pin, unify
from esper.kasmina.operators.running import (
    does_not_run,
    name_of,
    named_modules,
    named_tensors,
    own,
    plain_name,
    tensors_in,
    undisturbed,
)
from esper.kasmina.probing import call_with

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


_METADATA = """
size dim numel nelement ndimension stride storage_offset is_contiguous is_floating_point is_complex get_device
len element_size data_ptr has_names result_type can_cast is_tensor is_same_size is_inference is_signed hash
dim_order sym_size broadcast_shapes repr format register_hook is_pinned is_shared untyped_storage
"""
METADATA = frozenset(_METADATA.split())
"""Functions that look at a tensor's form and not at its values."""


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


def trace(model: nn.Module, example: Any) -> Trace:
    """Run ``example`` in eval mode and label what it passes through; the model is left as it was.

    Raises:
        GraftError: the example does not run through the network.
    """
    found = Trace(model, named_modules(model), named_tensors(model))
    for name, tensor in found.tensors.items():
        axes = tuple(
            Axis(fresh(size), Writers({(name, i)}), Writers({(name, i)}), (name, i))
            for i, size in enumerate(tensor.shape)
        )
        found.put(tensor, axes)
        found.places[name] = axes
    for module in found.modules.values():
        found.know(
            *tensors_in({k: v for k, v in vars(module).items() if k not in ("_modules", "_parameters")})
        )
    given = own(example)
    found.know(*tensors_in(given))
    try:
        with undisturbed(model, training=False), _hooked(found), _Tracer(found):
            output = call_with(model, given)
    except GraftError:
        raise
    except Exception as error:
        raise does_not_run(error, "eval") from error
    for tensor in tensors_in(output):
        for axis in found.axes_of(tensor):
            pin(axis.dim, "it is an output of the network")
    return found


@contextmanager
def _hooked(found: Trace) -> Iterator[None]:
    """Keep ``found.stack`` the modules that are running, and look at what modules out of sight give.

    The hooks are those of all modules, since a script module takes none of its own; they pass over modules
    of other networks, which other threads may run.
    """
    names = {id(module): name for name, module in found.modules.items()}

    def enter(module: nn.Module, _: Any) -> None:
        if id(module) in names:
            found.stack.append((names[id(module)], module))

    def leave(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if isinstance(module, SeededLayer) and module.host in found.modules.values():
            _note_layer(found, module, (args, kwargs), output)
        elif id(module) in names:
            while found.stack.pop()[1] is not module:
                pass
            _note_unseen(found, names[id(module)], (args, kwargs), output)

    handles = (
        hooks.register_module_forward_pre_hook(enter),
        hooks.register_module_forward_hook(leave, with_kwargs=True, always_call=True),
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
            # torch 2.13 leaves this entry behind, and then warns at each call of a compiled network.
            hooks._global_forward_hooks_with_kwargs.pop(handle.id, None)


def _note_unseen(found: Trace, name: str, given: Any, output: Any) -> None:
    """A module gave tensors that no traced function made: what went in cannot be followed."""
    if any(id(tensor) not in found.labels for tensor in tensors_in(output)):
        for tensor in tensors_in(given):
            for axis in found.axes_of(tensor):
                pin(axis.dim, f"it passes through {plain_name(name)}, which cannot be looked into")


def _note_layer(found: Trace, layer: SeededLayer, given: Any, output: Any) -> None:
    """A layer that holds a kernel pins what it touches; others are resized with their host."""
    outputs, inputs = tensors_in(output), tensors_in(given)
    if not outputs or not inputs:
        return
    read, made = found.axes_of(inputs[0]), found.axes_of(outputs[0])
    held = [seed.index for seed in layer.seed_list if seed.kernel is not None]
    if held:
        for axis in (*read, *made):
            pin(axis.dim, f"seed {held[0]} of {layer.name} holds a kernel")
    where = layer.geometry.axis
    found.layers.append((layer, read[where].dim, made[where].dim))


class _Tracer(TorchFunctionMode):
    """Applies the rules, call by call."""

    def __init__(self, found: Trace) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = name_of(func)
        before = [t for t in tensors_in((args, kwargs)) if id(t) in self.found.labels]
        operands = [] if name in METADATA else [self.found.axes_of(t) for t in before]
        result = func(*args, **kwargs)
        made = tensors_in(result)
        if name in METADATA or (not made and getattr(func, "__name__", "") == "__get__"):
            return result
        for tensor in made:
            self.found.kept.append(tensor)
        path, owner = self.found.stack[-1] if self.found.stack else ("", self.found.model)
        where = f"{name} in {plain_name(path)}"
        call = Call(self.found, name, where, owner, tuple(args), dict(kwargs), result)
        labels = self._apply(call, made, operands)
        for tensor, axes in zip(made, labels, strict=True):
            self.found.put(tensor, axes)
        if made:
            self._note(call, labels)
        return result

    def _apply(self, call: Call, made: Sequence[Tensor], operands: Sequence[Axes]) -> list[Axes]:
        """The labels of the results, by the rule or, without one, as data."""
        try:
            if call.name not in RULES or not made:
                raise Unruled
            ruled = RULES[call.name](call)
            labels = [ruled] if isinstance(ruled, tuple) else ruled
            if [len(axes) for axes in labels] != [t.ndim for t in made]:
                raise Unruled
        except (Unruled, AttributeError, IndexError, KeyError, TypeError, ValueError):
            # The latter mean arguments in a form that the rule does not know.
            for axes in operands:
                for axis in axes:
                    why = "passes through" if made else "has its values read by"
                    pin(axis.dim, f"it {why} {call.where}, which has no rule")
            labels = [tuple(Axis(data(size)) for size in t.shape) for t in made]
        return labels

    def _note(self, call: Call, labels: list[Axes]) -> None:
        numbers: list[tuple[int, Dim]] = []
        if call.name in NUMBERS:
            values = NUMBERS[call.name](call.args, call.kwargs)
            numbers = list(zip(values, SIZED[call.name](call, labels), strict=False))
        owners = tuple(module for _, module in reversed(self.found.stack))
        step = Step(call.name, call.where, owners, tuple(numbers), tuple(labels))
        self.found.steps.append(step)


def plain(size: int) -> Axis:
    """An axis of data."""
    return Axis(data(size))
