"""Follow the widths of a network through one run of an example.

Every call of a torch function is seen by a ``TorchFunctionMode``; its rule (``rules*.py``) says how the
labels of its results follow from those of its operands. Control flow is that of the run. A function without
a rule pins every width that flows into it: nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.overrides import TorchFunctionMode

from esper.errors import GraftError
from esper.kasmina.layer import SeededLayer
from esper.kasmina.operators.calls import (
    NUMBERS,
    RULES,
    SIZED,
    Axes,
    Axis,
    Call,
    Step,
    Trace,
    Unruled,
    Writers,
    plain,
)
from esper.kasmina.operators.labels import Dim, fresh, pin
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

_METADATA = """
size dim numel nelement ndimension stride storage_offset is_contiguous is_floating_point is_complex get_device
len element_size data_ptr has_names result_type can_cast is_tensor is_same_size is_inference is_signed hash
dim_order sym_size broadcast_shapes repr format register_hook is_pinned is_shared untyped_storage
"""
METADATA = frozenset(_METADATA.split())
"""Functions that look at a tensor's form and not at its values."""


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
            labels = [tuple(plain(size) for size in t.shape) for t in made]
        return labels

    def _note(self, call: Call, labels: list[Axes]) -> None:
        numbers: list[tuple[int, Dim]] = []
        if call.name in NUMBERS:
            values = NUMBERS[call.name](call.args, call.kwargs)
            numbers = list(zip(values, SIZED[call.name](call, labels), strict=False))
        owners = tuple(module for _, module in reversed(self.found.stack))
        step = Step(call.name, call.where, owners, tuple(numbers), tuple(labels))
        self.found.steps.append(step)
