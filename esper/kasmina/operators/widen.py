"""Widen: more channels, units, heads or feed-forward width, in any network.

New units compute something from the start, and what reads them is zero or cancels, so the network's function
is the one before (Chen et al. 2016, "Net2Net", arXiv 1511.05641, keep the function by copies that share what
reads them instead; identical copies get identical gradients). Over a layer norm of d channels that grows to
d', new channels are the mean of the old ones for every input: the mean stays, the variance shrinks by d / d',
and weight and eps make up for it. Over an RMS norm they are zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from esper.errors import GraftError
from esper.kasmina.counters import HealthCounters
from esper.kasmina.layer import Geometry, SeededLayer, chunk_sizes
from esper.kasmina.operators.birth import Birth, Start
from esper.kasmina.operators.calls import Trace
from esper.kasmina.operators.following import Setting, settle
from esper.kasmina.operators.labels import Variable, new_size, size_of
from esper.kasmina.operators.operator import Growth, Resize, replays, resize, shrink
from esper.kasmina.operators.running import difference, run
from esper.kasmina.operators.tracing import trace
from esper.kasmina.operators.widths import Named, Width, demands_of, find_widths, name_widths


def widen(
    model: nn.Module,
    sizes: Mapping[str, int],
    *,
    example: Any,
    generator: torch.Generator | None = None,
    start: Start = "zeros",
) -> Growth:
    """Grow widths of ``model`` to ``sizes``, in place, without changing what it computes.

    Args:
        model: any network; it may hold seeded layers.
        sizes: the new size of each width, by the names of ``find_widths``.
        example: two samples or more: a tensor, a tuple of positional or a dict of keyword arguments.
        generator: draws the values of new units; torch's own by default.
        start: "zeros" or "pairs", see ``esper.kasmina.operators.birth.Birth``.

    Raises:
        GraftError: a width does not exist or cannot grow so, or the grown network does not give what it gave
            before, in eval and in train mode. The model is bit for bit as it was then.
    """
    found = trace(model, example)
    targets = _targets(found, sizes)
    before = {training: run(model, example, training=training) for training in (False, True)}
    change = _Change(found, targets)
    try:
        change.apply(generator, start)
        settle(found, change.sizes, example, change.settings)
        for training, outputs in before.items():
            if differs := difference(outputs, run(model, example, training=training)):
                mode = "train" if training else "eval"
                raise GraftError(
                    f"widening {_target(sizes)} changes {differs} in {mode} mode",
                    hint="grow another width of this network",
                )
    except BaseException:
        change.undo()
        raise
    record = {"sizes": dict(sizes)}
    return Growth("widen", _target(sizes), undo=change.undo, record=record, resized=change.resized)


def try_widths(model: nn.Module, example: Any) -> dict[str, Width]:
    """``find_widths``, with each width that looks growable grown by one step and taken back.

    A width that cannot grow alone (a module works a size out from another width) is no longer growable then,
    and says why. This costs about six runs of the example a width.

    Raises:
        GraftError: the example does not run through the network.
    """
    widths = find_widths(model, example)
    for name, width in widths.items():
        if width.growable:
            generator = torch.Generator().manual_seed(0)
            try:
                sizes = {name: width.size + width.granularity}
                widen(model, sizes, example=example, generator=generator).undo()
            except GraftError as error:
                widths[name] = replace(width, growable=False, reason=str(error))
    return widths


@replays("widen")
def replay_widen(model: nn.Module, record: Mapping[str, Any], *, example: Any) -> Growth:
    """Make the shapes again; the values are drawn anew and are to be loaded."""
    generator = torch.Generator().manual_seed(0)
    return widen(model, record["sizes"], example=example, generator=generator)


def _target(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name} to {size}" for name, size in sizes.items())


def _targets(found: Trace, sizes: Mapping[str, int]) -> dict[Variable, int]:
    """The new size of each variable that grows."""
    widths = name_widths(found)
    targets: dict[Variable, int] = {}
    for name, size in sizes.items():
        if name not in widths:
            known = ", ".join(n for n, w in widths.items() if w.width.growable)
            raise GraftError(f"no width {name!r}", hint=f"these can grow: {known or 'none'}")
        targets[widths[name].variable] = _checked(widths[name], size)
    if not targets:
        raise GraftError("no width to widen was named", hint="name one of find_widths")
    return targets


def _checked(named: Named, size: int) -> int:
    width = named.width
    if not width.growable:
        raise GraftError(f"{width.name} cannot grow: {width.reason}", hint="grow another width")
    if size <= width.size or (size - width.size) % width.granularity:
        steps = "" if width.granularity == 1 else f" in steps of {width.granularity}"
        raise GraftError(
            f"{width.name} cannot go from {width.size} to {size}", hint=f"it can only grow{steps}"
        )
    return size // width.granularity


@dataclass(eq=False)
class _Scaled:
    """A norm whose weight makes up for more channels."""

    change: Resize
    original: Tensor
    born: Tensor
    ratio: float

    def undo(self) -> None:
        """Old weights as trained, times what they were scaled by; exactly the original where untouched."""
        tensor = self.change.tensor
        with torch.no_grad():
            unscaled = torch.where(tensor == self.born, self.original, tensor / self.ratio)
            tensor.copy_(unscaled)


@dataclass(eq=False)
class _Change:
    """Everything that widening does to a model, so that it can be taken back."""

    found: Trace
    targets: dict[Variable, int]
    resized: list[Resize] = field(default_factory=list)
    settings: list[Setting] = field(default_factory=list)
    scaled: list[_Scaled] = field(default_factory=list)
    layers: list[tuple[SeededLayer, Geometry, HealthCounters]] = field(default_factory=list)

    def sizes(self, variable: Variable) -> int:
        """The size of a variable after growth."""
        return self.targets.get(variable, variable.size)

    def apply(self, generator: torch.Generator | None, start: Start) -> None:
        """Grow tensors, attributes, norms and seeded layers."""
        birth = Birth(self.found, self.sizes, demands_of(self.found), generator, start)
        norms = self._norms()
        for name, tensor in self.found.tensors.items():
            grown = birth.grown(name)
            if grown is not None:
                original = tensor.detach()
                self.resized.append(resize(tensor, *grown))
                if id(tensor) in norms:
                    self._scale(self.resized[-1], original, norms[id(tensor)])
        for attribute in self.found.attributes.values():
            size = new_size(attribute.dim, self.sizes)
            value = getattr(attribute.module, attribute.name, None)
            old = size_of(attribute.dim)
            if size != old and value in (old, (old,)):
                self._set(attribute.module, attribute.name, size if value == old else (size,))
        for layer, given, made in self.found.layers:
            self._refresh(layer, new_size(given, self.sizes), new_size(made, self.sizes))

    def _norms(self) -> dict[int, float]:
        """The factor of each growing norm by its weight's id; their eps is set."""
        factors: dict[int, float] = {}
        for norm in self.found.norms:
            ratio = size_of(norm.dim) / new_size(norm.dim, self.sizes)
            weight = norm.module.weight
            if ratio != 1 and id(weight) not in factors:
                factors[id(weight)] = ratio**0.5
                self._set(norm.module, "eps", norm.eps * ratio)
        return factors

    def _scale(self, change: Resize, original: Tensor, factor: float) -> None:
        with torch.no_grad():
            change.tensor.mul_(factor)
        born = change.shrink(change.tensor.detach())
        self.scaled.append(_Scaled(change, original, born, factor))

    def _set(self, module: nn.Module, name: str, value: Any) -> None:
        self.settings.append((module, name, getattr(module, name)))
        setattr(module, name, value)

    def _refresh(self, layer: SeededLayer, given: int, made: int) -> None:
        geometry = layer.geometry
        if (given, made) != (geometry.in_features, geometry.out_features):
            self.layers.append((layer, geometry, layer.health))
            layer.health = HealthCounters()  # what was observed so far was of the old sizes
            _set_geometry(layer, replace(geometry, in_features=given, out_features=made))

    def undo(self) -> None:
        """Take everything back, the last first."""
        for layer, geometry, health in reversed(self.layers):
            _set_geometry(layer, geometry)
            layer.health = health if not layer.health.steps else HealthCounters()
        for module, name, value in reversed(self.settings):
            setattr(module, name, value)
        for change in reversed(self.resized):
            shrink(change)
        for scaled in self.scaled:
            scaled.undo()


def _set_geometry(layer: SeededLayer, geometry: Geometry) -> None:
    """Give ``layer`` other sizes."""
    layer.geometry = geometry
    layer.out_sizes = chunk_sizes(geometry.out_features, len(layer.seed_list))
    layer.in_sizes = chunk_sizes(geometry.in_features, len(layer.seed_list))
    layer._index = None
