"""What a layer notes while it runs, on its device: counters of health and sums that betray faults."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from esper.messages import SeedState

FaultKind = Literal["raised", "non-finite", "shape", "dtype"]
Place = Literal["host", "output", "parallel input", "series input"]


@dataclass(frozen=True, slots=True)
class Fault:
    """One kernel that failed: where, which, how, and the state its seed was in."""

    layer: str
    seed_idx: int
    kernel_id: str
    kind: FaultKind
    message: str
    from_state: SeedState


@dataclass(slots=True)
class FaultProbe:
    """Running sums of one layer, on its device: non-finite, and so for good, once anything in them was.

    ``output`` sums what the kernels gave, and the two inputs the gradients that they sent back, each per
    feature; ``host`` sums the host's own output and the gradient that arrived at it, so that a diverging
    network is not blamed on its kernels. They are no buffers: data-parallel training would overwrite them
    with those of the first rank, and they are no part of the network's state.

    ``loss_scale`` is what the loss is multiplied by, and every gradient with it. Above 1 gradients that are
    not finite are left as they are and not noted.
    """

    sums: dict[Place, torch.Tensor] = field(default_factory=dict)
    loss_scale: float = 1.0

    @property
    def overflow_expected(self) -> bool:
        """Whether a gradient may be infinite because the loss is scaled up."""
        return self.loss_scale > 1.0

    def add(self, place: Place, sums: torch.Tensor) -> None:
        """Add ``sums``, of shape (features at that place,), or () for the host."""
        total = self.sums.get(place)
        if total is None or total.device != sums.device:
            self.sums[place] = sums.clone()
        else:
            total.add_(sums)


MEAN, VARIANCE, SQUARED_GRADIENT, LOWEST, HIGHEST = range(5)


class HealthCounters:
    """What one layer's output looked like since the last drain: vectors over its features, on its device."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget everything observed."""
        self.steps = 0
        self.gradient_steps = 0
        self._totals: torch.Tensor | None = None
        self._timings: list[tuple[int, Any]] = []

    def observe(self, output: torch.Tensor, axis: int, loss_scale: float = 1.0) -> None:
        """Note the statistics of ``output`` now, and of the gradient there once it is known."""
        dtype = torch.promote_types(output.dtype, torch.float32)
        values = output.detach().to(dtype).movedim(axis, -1)
        axes = list(range(values.ndim - 1))
        mean = values.mean(axes)
        # In two passes: var_mean needs one, and on a CPU 2 to 10 times as long for it.
        variance = (values - mean).square_().mean(axes)
        lowest, highest = _extremes(values, axes)
        totals = self._totals
        if totals is None or totals.device != values.device:
            self.steps = self.gradient_steps = 0
            totals = torch.stack([mean, variance, torch.zeros_like(mean), lowest, highest])
            self._totals = totals
        else:
            totals[MEAN].add_(mean)
            totals[VARIANCE].add_(variance)
            totals[LOWEST] = torch.minimum(totals[LOWEST], lowest)
            totals[HIGHEST] = torch.maximum(totals[HIGHEST], highest)
        self.steps += 1
        if output.requires_grad:

            def note(gradient: torch.Tensor) -> None:
                gradient = gradient.to(totals.dtype).movedim(axis, -1)
                if loss_scale != 1.0:  # an overflow is the scale's, and says nothing of the layer
                    gradient = torch.nan_to_num(gradient / loss_scale, nan=0.0, posinf=0.0, neginf=0.0)
                totals[SQUARED_GRADIENT].add_(gradient.square().sum(axes))
                self.gradient_steps += 1

            output.register_hook(note)  # type: ignore[no-untyped-call]  # torch's

    @contextmanager
    def timed(self, seed_idx: int, device: torch.device) -> Iterator[None]:
        """Time a kernel's call: with events on an accelerator, which are read at the drain only."""
        if device.type == "cuda":
            start, end = torch.Event(device, enable_timing=True), torch.Event(device, enable_timing=True)
            start.record()
            yield
            end.record()
            self._timings.append((seed_idx, (start, end)))
        else:
            began = time.perf_counter()
            yield
            self._timings.append((seed_idx, 1e3 * (time.perf_counter() - began)))

    def state(self) -> dict[str, Any]:
        """What was observed, for a checkpoint in the middle of an epoch."""
        timings = [(seed_idx, _milliseconds(timing)) for seed_idx, timing in self._timings]
        steps = (self.steps, self.gradient_steps)
        return {"steps": steps, "totals": self._totals, "timings": timings}

    def restore(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Put back what ``state`` returned."""
        self.steps, self.gradient_steps = state["steps"]
        self._totals = None if state["totals"] is None else state["totals"].to(device, copy=True)
        self._timings = list(state["timings"])

    def totals(self) -> torch.Tensor | None:
        """The counters as one tensor, (5, features), or None when nothing was observed."""
        return self._totals

    def latencies(self) -> dict[int, float]:
        """Mean milliseconds of each kernel that was timed; the device must have finished."""
        by_seed: dict[int, list[float]] = {}
        for seed_idx, timing in self._timings:
            by_seed.setdefault(seed_idx, []).append(_milliseconds(timing))
        return {seed_idx: sum(times) / len(times) for seed_idx, times in by_seed.items()}


def _extremes(values: torch.Tensor, axes: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """The lowest and the highest value of each feature, which are the last axis."""
    if not values.is_contiguous():
        return values.amin(axes), values.amax(axes)
    # Of long rows first: with few features a CPU takes 4 to 20 times as long over all axes at once.
    rows, features = values.flatten(1), values.shape[-1]
    return rows.amin(0).view(-1, features).amin(0), rows.amax(0).view(-1, features).amax(0)


def _milliseconds(timing: Any) -> float:
    return timing if isinstance(timing, float) else timing[0].elapsed_time(timing[1])
