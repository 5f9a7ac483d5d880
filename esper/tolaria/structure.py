"""Growth of the host's own shape: carried out in place, measured at its birth, made again on resuming."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from esper.errors import GraftError
from esper.kasmina.operators import Growth, carry, find_widths, replay, uncarry, widen
from esper.messages import AdaptationDecision, GrowthReport, WidthMetrics
from esper.tolaria.evaluation import Evaluation, HeldOut
from esper.tolaria.events import Recorder
from esper.tolaria.trial import Outcome

BIRTH_TOLERANCE = 1e-3
"""Nats by which one held-out sample's loss may differ at birth: rounding, of sums in another order."""


class Structure:
    """Widens the host, and the optimizer's state with it.

    ``example`` is a small batch of inputs that the network is traced with, ``seed`` fixes the weights of new
    units. ``version`` grows with each change.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        held_out: HeldOut,
        recorder: Recorder,
        *,
        example: Tensor,
        seed: int,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.held_out = held_out
        self.recorder = recorder
        self.example = example
        self.seed = seed
        self.records: list[Mapping[str, Any]] = []
        self.reports: list[GrowthReport] = []
        self.version = 0

    def widths(self) -> dict[str, WidthMetrics]:
        """The widths that can grow as the network stands."""
        return {
            name: WidthMetrics(width.size, width.granularity, width.parameters_per_unit)
            for name, width in find_widths(self.model, self.example).items()
            if width.growable
        }

    def apply(self, decision: AdaptationDecision, epoch: int) -> Outcome:
        """Widen as ``decision`` says; what cannot grow, or would change the function, is refused."""
        wanted = decision.parameters
        if wanted.get("operator") != "widen":
            return Outcome("refused", f"no operator is called {wanted.get('operator')!r}; there is: widen")
        before = self.held_out.evaluate()
        sizes = {name: width.size for name, width in find_widths(self.model, self.example).items()}
        try:
            growth = widen(self.model, wanted["sizes"], example=self.example, generator=self._generator())
            self._carry(growth)
        except GraftError as error:
            return Outcome("refused", str(error))
        after = self.held_out.evaluate()
        changed = float((after.losses - before.losses).abs().max())
        if not changed <= BIRTH_TOLERANCE:
            uncarry(self.optimizer, growth)
            growth.undo()
            return Outcome(
                "refused", f"widening changed a held-out loss by {changed:.2g} nats; it was undone"
            )
        grown = {name: (sizes[name], units) for name, units in wanted["sizes"].items()}
        self._keep(growth, grown, epoch, before, after)
        widths = ", ".join(f"{name} {old}->{new}" for name, (old, new) in grown.items())
        return Outcome("grown", f"{widths}; held-out losses moved by at most {changed:.1g} nats")

    def _carry(self, growth: Growth) -> None:
        try:
            carry(self.optimizer, growth)
        except GraftError:
            growth.undo()
            raise

    def _keep(
        self,
        growth: Growth,
        sizes: Mapping[str, tuple[int, int]],
        epoch: int,
        before: Evaluation,
        after: Evaluation,
    ) -> None:
        self.version += 1
        self.records.append(growth.record)
        report = GrowthReport(
            epoch=epoch,
            operator=growth.operator,
            target=growth.target,
            sizes=sizes,
            parameters=growth.parameters_added,
            loss_before=before.loss,
            loss_after=after.loss,
            accuracy_before=before.accuracy,
            accuracy_after=after.accuracy,
        )
        self.reports.append(report)
        self.recorder.emit("growth", report=asdict(report))

    def _generator(self) -> torch.Generator:
        """Of the run's seed and the number of growths, whatever else drew from other generators."""
        return torch.Generator().manual_seed(self.seed * 1_000_003 + len(self.records))

    # Checkpoints

    def state(self) -> dict[str, Any]:
        """Plain data from which ``restore`` gives a fresh host the same shape."""
        return {
            "records": [dict(record) for record in self.records],
            "reports": [asdict(report) for report in self.reports],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Grow the fresh host as ``state`` says; its values are to be loaded afterwards.

        Raises GraftError when the host is not the one that grew.
        """
        regrow(self.model, state, self.example)
        self.records = list(state["records"])
        self.reports = [_report_from(report) for report in state["reports"]]
        self.version += 1


def regrow(model: nn.Module, state: Mapping[str, Any], example: Tensor) -> None:
    """Give a fresh ``model`` the shape that a checkpoint's ``structure`` records; GraftError if it cannot."""
    for record in state["records"]:
        replay(model, record, example=example)


def _report_from(state: Mapping[str, Any]) -> GrowthReport:
    sizes = {name: (old, new) for name, (old, new) in state["sizes"].items()}
    return GrowthReport(**{**state, "sizes": sizes})
