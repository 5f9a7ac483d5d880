"""Run a grown network once more beside its trace: every call must give what the labels foretell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode

from esper.errors import GraftError
from esper.kasmina.operators.birth import Sizes
from esper.kasmina.operators.calls import NUMBERS, Step, Trace
from esper.kasmina.operators.labels import Dim, free, new_size, size_of
from esper.kasmina.operators.running import name_of, own, tensors_in, undisturbed
from esper.kasmina.operators.tracing import METADATA
from esper.kasmina.operators.widths import name_widths
from esper.kasmina.probing import call_with


class Misfit(Exception):
    """The grown network does not run as foretold."""


class Stale(Misfit):
    """A call at ``position`` names the size ``given`` of ``dim``, which was ``old`` and is ``new`` now."""

    def __init__(self, position: int, step: Step, given: int, dim: Dim, new: int) -> None:
        super().__init__(f"{step.where} names the size {given}, not {new}")
        self.position, self.step, self.given, self.dim, self.new = position, step, given, dim, new
        self.old = size_of(dim)


class _Follower(TorchFunctionMode):
    def __init__(self, steps: list[Step], sizes: Sizes) -> None:
        super().__init__()
        self.steps, self.sizes, self.position = steps, sizes, 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = name_of(func)
        if name in NUMBERS and self.position < len(self.steps):
            self._check_numbers(self.steps[self.position], name, NUMBERS[name](args, kwargs))
        result = func(*args, **kwargs)
        made = tensors_in(result)
        if name in METADATA or not made:
            return result
        if self.position >= len(self.steps) or self.steps[self.position].name != name:
            raise Misfit(f"the grown network takes another path, at {name}")
        step = self.steps[self.position]
        for tensor, axes in zip(made, step.results, strict=True):
            shape = tuple(new_size(axis.dim, self.sizes) for axis in axes)
            if tuple(tensor.shape) != shape:
                raise Misfit(f"{step.where} gives {tuple(tensor.shape)}, not {shape}")
        self.position += 1
        return result

    def _check_numbers(self, step: Step, name: str, given: list[int]) -> None:
        if step.name != name or len(given) != len(step.numbers):
            return
        for value, (_, dim) in zip(given, step.numbers, strict=True):
            expected = new_size(dim, self.sizes)
            if value not in (-1, expected):
                raise Stale(self.position, step, value, dim, expected)


def follow(found: Trace, sizes: Sizes, example: Any) -> None:
    """Run ``example`` through the grown network.

    Raises:
        Misfit: a call gives another shape than foretold, or fails.
    """
    follower, given = _Follower(found.steps, sizes), own(example)
    try:
        with undisturbed(found.model, training=False), follower:
            call_with(found.model, given)
    except Misfit:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        raise Misfit(f"{type(error).__name__}: {lines[0]}") from error
    if follower.position != len(found.steps):
        raise Misfit("the grown network takes a shorter path")


Setting = tuple[nn.Module, str, Any]
"""A module's attribute, and the value that it had."""


def settle(found: Trace, sizes: Sizes, example: Any, settings: list[Setting]) -> None:
    """Follow the network, and set the attributes that hold sizes which its calls still name.

    An attribute is set when it, alone among those of that size, makes the call name the new size. What was
    set is added to ``settings``.

    Raises:
        GraftError: a call names an old size, and it cannot be told which attribute it has it from; or the
            network does not run as foretold.
    """
    while True:
        try:
            follow(found, sizes, example)
        except Stale as stale:
            if stale.given != stale.old:
                raise _follows_another(found, stale) from stale
            settings.append(_settle_one(found, sizes, example, stale))
        except Misfit as error:
            raise GraftError(
                f"the grown network does not fit: {error}", hint="grow another width of this network"
            ) from error
        else:
            return


def _follows_another(found: Trace, stale: Stale) -> GraftError:
    """The error of a call that works a size out from a width that grows, for a width that does not."""
    there = {v for axes in stale.step.results for axis in axes for v in free(axis.dim)}
    names = [name for name, named in name_widths(found).items() if named.variable in there]
    return GraftError(
        f"{stale.step.where} takes the size {stale.given} of what is {stale.new} wide from another width",
        hint=f"grow it together with {' or '.join(names) or 'another width'}",
    )


def _settle_one(found: Trace, sizes: Sizes, example: Any, stale: Stale) -> Setting:
    for owner in stale.step.owners:
        able: list[tuple[str, Any, Any]] = []
        for name, value in list(vars(owner).items()):
            replaced = _replaced(value, stale.old, stale.new)
            if replaced is None:
                continue
            setattr(owner, name, replaced)
            if _passes(found, sizes, example, stale.position):
                able.append((name, value, replaced))
            setattr(owner, name, value)
        if len(able) == 1:
            name, value, replaced = able[0]
            setattr(owner, name, replaced)
            return owner, name, value
        if able:
            break
    raise GraftError(
        f"{stale.step.where} names the size {stale.old}, and it cannot be told which attribute holds it",
        hint="let that module read the size from its tensors",
    )


def _replaced(value: Any, old: int, new: int) -> Any:
    """``value`` with ``old`` replaced, or None when it does not hold it exactly once."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return new if value == old else None
    if type(value) in (tuple, list) and all(type(v) is int for v in value) and value.count(old) == 1:
        return type(value)(new if v == old else v for v in value)
    return None


def _passes(found: Trace, sizes: Sizes, example: Any, position: int) -> bool:
    """Whether the run gets past the call at ``position``."""
    try:
        follow(found, sizes, example)
    except Stale as stale:
        return stale.position > position
    except Misfit:
        return False
    return True
