"""Growth of the host's own shape: carried out in place, measured at its birth, made again on resuming."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from esper.errors import GraftError
from esper.kasmina.operators import (
    Growth,
    Start,
    begin_anew,
    carry,
    deepen,
    find_widths,
    replay,
    uncarry,
    widen,
)
from esper.kasmina.operators.rates import BlockRates, Rates
from esper.messages import AdaptationDecision, GrowthReport, WidthMetrics
from esper.tolaria.append_only import AppendOnly, restored
from esper.tolaria.evaluation import Evaluation, HeldOut
from esper.tolaria.events import Recorder
from esper.tolaria.trial import Outcome
from esper.tolaria.weight_average import grown

BIRTH_TOLERANCE = 1e-3
"""Nats by which one held-out sample's loss may differ at birth: rounding, of sums in another order."""

Operator = Callable[[nn.Module, Mapping[str, Any], Tensor, torch.Generator], Growth]
"""Grows a model in place as the ``parameters`` of a decision say; GraftError when it cannot."""


def _widen(
    model: nn.Module, wanted: Mapping[str, Any], example: Tensor, generator: torch.Generator
) -> Growth:
    start = _one_of(wanted, "start", get_args(Start))
    return widen(model, _needed(wanted, "sizes"), example=example, generator=generator, start=start)


def _deepen(
    model: nn.Module, wanted: Mapping[str, Any], example: Tensor, generator: torch.Generator
) -> Growth:
    made = {"like": wanted.get("like", "residual"), "hidden": wanted.get("hidden")}
    return deepen(model, _needed(wanted, "target"), example=example, generator=generator, **made)


def _one_of(wanted: Mapping[str, Any], name: str, known: Sequence[str]) -> Any:
    """The word that ``wanted`` has for ``name``, the first of ``known`` unless it has one."""
    word = wanted.get(name, known[0])
    if word not in known:
        raise GraftError(f"{name} is {word!r}, and not one of: {', '.join(known)}")
    return word


def _needed(wanted: Mapping[str, Any], name: str) -> Any:
    if name not in wanted:
        raise GraftError(f"a decision to {wanted['operator']} needs the parameter {name!r}")
    return wanted[name]


OPERATORS: Mapping[str, Operator] = {"widen": _widen, "deepen": _deepen}
"""The ``operator`` of a ``modify_architecture`` decision, and what carries it out."""


Moments = Literal["carry", "reset"]
"""What the optimizer knows after a growth: what it knew, padded, or nothing."""


class Structure:
    """Grows the host's own shape, and the optimizer's state with it.

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
        self.matched: list[int] = []  # those of ``records`` whose new entries have rates of their own
        self.reports: AppendOnly[GrowthReport] = AppendOnly()
        self.block_rates = BlockRates(optimizer)
        self.version = 0

    def begin_epoch(self) -> None:
        """Set the rates of grown parts for an epoch, by the weights as they are."""
        self.block_rates.measure()

    def widths(self) -> dict[str, WidthMetrics]:
        """The widths that can grow as the network stands."""
        return {
            name: WidthMetrics(width.size, width.granularity, width.parameters_per_unit)
            for name, width in find_widths(self.model, self.example).items()
            if width.growable
        }

    def apply(self, decision: AdaptationDecision, epoch: int) -> Outcome:
        """Grow as ``decision`` says; what cannot grow, or would change the function, is refused."""
        wanted = decision.parameters
        operator = OPERATORS.get(wanted.get("operator", ""))
        if operator is None:
            known = ", ".join(OPERATORS)
            return Outcome("refused", f"no operator is called {wanted.get('operator')!r}; there are: {known}")
        average = self.held_out.average
        before, means = self.held_out.evaluate(), None if average is None else average.means()
        sizes = self._sizes() if "sizes" in wanted else {}
        try:
            moments = _one_of(wanted, "moments", get_args(Moments))
            matched = _one_of(wanted, "rates", get_args(Rates)) == "matched"
            growth = grown(average, lambda: operator(self.model, wanted, self.example, self._generator()))
            self._carry(growth, matched=matched)
        except GraftError as error:
            return Outcome("refused", str(error))
        after = self.held_out.evaluate()
        changed = float((after.losses - before.losses).abs().max())
        if not changed <= BIRTH_TOLERANCE:
            uncarry(self.optimizer, growth)
            growth.undo()
            if average is not None and means is not None:
                average.put_back(means)
            moved = f"{growth.operator} changed a held-out loss by {changed:.2g} nats"
            return Outcome("refused", f"{moved}; it was undone")
        if moments == "reset":
            begin_anew(self.optimizer)
        self._follow(growth, matched=matched)
        report = self._keep(growth, sizes, epoch, before, after)
        return Outcome("grown", f"{_words(report)}; held-out losses moved by at most {changed:.1g} nats")

    def _sizes(self) -> dict[str, int]:
        return {name: width.size for name, width in find_widths(self.model, self.example).items()}

    def _carry(self, growth: Growth, *, matched: bool) -> None:
        try:
            if matched:
                self.block_rates.check(growth)
            carry(self.optimizer, growth)
        except GraftError:
            growth.undo()
            raise

    def _follow(self, growth: Growth, *, matched: bool) -> None:
        """Let the rates of grown parts know of a growth that is kept; ``records`` gets it next."""
        self.block_rates.follow(growth, matched=matched)
        if matched:
            self.matched.append(len(self.records))

    def _keep(
        self,
        growth: Growth,
        sizes: Mapping[str, int],
        epoch: int,
        before: Evaluation,
        after: Evaluation,
    ) -> GrowthReport:
        self.version += 1
        self.records.append(growth.record)
        report = GrowthReport(
            epoch=epoch,
            operator=growth.operator,
            target=growth.target,
            sizes={name: (sizes[name], new) for name, new in growth.record.get("sizes", {}).items()},
            parameters=growth.parameters_added,
            loss_before=before.loss,
            loss_after=after.loss,
            accuracy_before=before.accuracy,
            accuracy_after=after.accuracy,
            like=growth.record.get("like", ""),
            hidden=growth.record.get("hidden"),
        )
        self.reports = self.reports.plus(report)
        self.recorder.emit("growth", report=asdict(report))
        return report

    def _generator(self) -> torch.Generator:
        """Of the run's seed and the number of growths, whatever else drew from other generators."""
        return torch.Generator().manual_seed(self.seed * 1_000_003 + len(self.records))

    # Checkpoints

    def state(self) -> dict[str, Any]:
        """Plain data from which ``restore`` gives a fresh host the same shape."""
        return {
            "records": [dict(record) for record in self.records],
            "matched": list(self.matched),
            "reports": self.reports,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Grow the fresh host and the optimizer's groups as ``state`` says; values are loaded afterwards.

        Raises GraftError when the host is not the one that grew.
        """
        matched = state.get("matched", ())  # checkpoints of before there were such rates have none
        for record in state["records"]:
            growth = replay(self.model, record, example=self.example)
            carry(self.optimizer, growth)
            self._follow(growth, matched=len(self.records) in matched)
            self.records.append(record)
        self.reports = restored(state["reports"], _report_from)
        self.version += 1


def regrow(model: nn.Module, state: Mapping[str, Any], example: Tensor) -> None:
    """Give a fresh ``model`` the shape that a checkpoint's ``structure`` records; GraftError if it cannot."""
    for record in state["records"]:
        replay(model, record, example=example)


def _words(report: GrowthReport) -> str:
    """What grew, for people."""
    if report.sizes:
        return ", ".join(f"{name} {old}->{new}" for name, (old, new) in report.sizes.items())
    kind = "a copy" if report.like == "copy" else f"a residual block of {report.hidden} hidden features"
    return f"{report.target} is followed by {kind}, {report.parameters:,} parameters"


def _report_from(state: Mapping[str, Any]) -> GrowthReport:
    """The report whose ``asdict`` is ``state``; one of before there were new blocks has no word of them."""
    sizes = {name: (old, new) for name, (old, new) in state["sizes"].items()}
    return GrowthReport(**{**state, "sizes": sizes})
