"""What a rehearsal puts in the place of good parts: a kernel that fails, a library of it, a bad batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from esper.data.batches import Batches
from esper.messages import (
    AdaptationDecision,
    FieldReport,
    InventionRecord,
    KernelMetadata,
    Slot,
    SystemStatePacket,
)
from esper.urza.library import Kernel
from esper.urza.ranking import Wanted
from esper.urza.tiers import TierCounts

KernelFault = Literal["raise", "nan", "inf", "shape", "dtype"]
"""How a kernel fails: it raises, or gives what it must not."""


class FailingKernel(nn.Module):
    """Scales its input in evaluation and in its first training step; fails in every one after that."""

    def __init__(self, fault: KernelFault) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.fault = fault
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        """What a kernel of a series slot gives for ``x``, or what this one gives instead."""
        y: Tensor = x * self.scale
        self.calls += self.training
        if not self.training or self.calls < 2:
            return y
        if self.fault == "raise":
            raise RuntimeError("this kernel fails on purpose")
        if self.fault == "shape":
            return y[:, :-1]
        if self.fault == "dtype":
            return y.double()
        return y * float(self.fault)


class FailingLibrary:
    """A library that has one kernel for every series slot, and that one fails; nothing of it is kept."""

    def __init__(self, faults: Sequence[KernelFault]) -> None:
        self.faults = faults
        self.found = 0
        self.reports: list[FieldReport] = []

    def find(self, slot: Slot, **_: Any) -> list[KernelMetadata]:
        """The kernel, failing in the next of the ways."""
        fault = self.faults[self.found % len(self.faults)]
        self.found += 1
        return [KernelMetadata(fault, "failing", (slot.in_features,), (slot.out_features,), 0.0, 0.5, ())]

    def fetch(self, kernel_id: str) -> Kernel:
        """A new one of it."""
        metadata = KernelMetadata(kernel_id, "failing", (1,), (1,), 0.0, 0.5, ())
        fault: KernelFault = kernel_id  # type: ignore[assignment]  # as find named it
        return Kernel(metadata, "{}", FailingKernel(fault))

    def inventions(self, *_: Any, **__: Any) -> list[InventionRecord]:
        """None."""
        return []

    def prefetch(self, kernels: Iterable[KernelMetadata]) -> None:
        """Nothing is fetched ahead."""

    def prefetch_best(self, wanted: Sequence[Wanted]) -> None:
        """Nothing is fetched ahead."""

    def record_trial(self, report: FieldReport, *_: Any, **__: Any) -> None:
        """Keep the report for who asks for ``reports``."""
        self.reports.append(report)

    def tier_counts(self) -> dict[str, TierCounts]:
        """It has no tiers."""
        return {}

    def close(self) -> None:
        """It holds nothing."""


class GraftOnce:
    """A policy that asks for one kernel, in the first seed of the first layer, after the first epoch."""

    needs_kernels = False
    needs_widths = False

    def decide(self, packet: SystemStatePacket) -> AdaptationDecision | None:
        """An ``add_seed`` decision in the first epoch."""
        return graft_into(next(iter(packet.layer_metrics)), 0) if packet.epoch == 0 else None


def graft_into(layer: str, seed_idx: int) -> AdaptationDecision:
    """The decision to graft whatever the library has, in series, into a seed."""
    grafting = {"site": "series", "blend": "residual", "alpha_blend": 1.0}
    parameters = {"seed_idx": seed_idx, "tags": [], "avoid": [], **grafting}
    return AdaptationDecision("add_seed", layer, parameters, 1.0, 0.0, reason="a rehearsal")


class PoisonedBatches(Batches):
    """The batches of ``good``, but for one whose samples are not numbers."""

    def __init__(self, good: Batches, place: tuple[int, int]) -> None:
        super().__init__(good.x, good.y, good.batch_size, good.seed, augment=good.augment)
        self.place = place

    def batch(self, epoch: int, step: int, part: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Batch ``step`` of ``epoch``, or a ``part`` of it."""
        x, y = super().batch(epoch, step, part)
        return (x * float("nan"), y) if (epoch, step) == self.place else (x, y)
