"""The seed orchestrator: finds a kernel for a decision, and grafts it."""

from __future__ import annotations

from dataclasses import asdict

from torch import nn
from torch.optim import Optimizer

from esper.errors import GraftError, LibraryError
from esper.kasmina import SeededLayer
from esper.kasmina.graft import kernel_dtype
from esper.kasmina.seed import Evidence
from esper.messages import (
    INVENTED,
    AdaptationDecision,
    FieldReport,
    KernelMetadata,
    Slot,
    SystemStatePacket,
)
from esper.tolaria.choice import begin_trial, dormant_slots, likely_wanted, untried_kernels
from esper.tolaria.distributed import ALONE, Group
from esper.tolaria.evaluation import HeldOut
from esper.tolaria.events import Recorder
from esper.tolaria.kernel_start import SteepestStart
from esper.tolaria.lifecycle import SeedLifecycle
from esper.tolaria.shared import Kernels, Rebuild
from esper.tolaria.trial import Outcome, Trial, TrialPlan
from esper.urza.ranking import TrialContext, Wanted

NEXT_IN_RANK = 3
"""How many kernels after the best one are fetched in the background, for when that fails."""

AHEAD = 8
"""How many kernels are fetched in the background for the decisions to come."""


class SeedOrchestrator:
    """Carries out decisions to graft; ``seeds`` leads what it grafts from then on.

    ``run`` is the id and the task that trials are filed under. ``start`` sets weights of grafted kernels;
    None leaves them as they come from the library. See ``SeedLifecycle`` for the rest.
    """

    def __init__(
        self,
        model: nn.Module,
        library: Kernels,
        optimizer: Optimizer,
        held_out: HeldOut,
        recorder: Recorder,
        plan: TrialPlan,
        *,
        rebuild: Rebuild,
        run: tuple[str, str],
        kernel_lr_scale: float = 1.0,
        start: SteepestStart | None = None,
        group: Group = ALONE,
    ) -> None:
        self.library = library
        self.recorder = recorder
        self.run_id, self.task = run
        self.start = start
        self.seeds = SeedLifecycle(
            model,
            optimizer,
            held_out,
            recorder,
            plan,
            rebuild=rebuild,
            file=self._file,
            kernel_lr_scale=kernel_lr_scale,
            group=group,
        )
        self.layers = self.seeds.layers
        self._ahead: tuple[tuple[Wanted, ...], int] = ((), 0)

    def apply(self, decision: AdaptationDecision, packet: SystemStatePacket) -> Outcome:
        """Find, rank, fetch, graft; a decision that cannot be carried out is refused with its reason.

        A kernel that cannot be loaded, or does not fit, is passed over for the next in rank: one that is
        damaged must not end all growth.
        """
        if decision.adaptation_type != "add_seed":
            return Outcome("refused", f"this version carries out add_seed, not {decision.adaptation_type}")
        if decision.target_component not in self.layers:
            return Outcome("refused", f"no seeded layer is called {decision.target_component}")
        try:
            slot, untried = self._find(decision)
        except GraftError as error:
            return Outcome("refused", str(error))
        self.library.prefetch(untried[1 : 1 + NEXT_IN_RANK])
        passed_over: list[str] = []
        for chosen in untried:
            try:
                trial, module = self._prepare(decision, chosen, slot, packet)
                self.seeds.graft(trial, module)
            except (LibraryError, GraftError) as error:
                passed_over.append(f"{chosen.kernel_id}: {error}")
                self.recorder.emit("message", text=f"passed over {passed_over[-1]}")
                continue
            evidence: Evidence = {
                "kernel_id": chosen.kernel_id,
                "candidates": len(untried),
                **self._started(trial),
            }
            self.seeds.tell_grafted(trial, evidence)
            self._tell_lineage(chosen)
            place = f"{chosen.name}, number {len(passed_over) + 1} of {len(untried)} for {slot}"
            start = f"; {evidence['start']}" if "start" in evidence else ""
            reason = "; passed over ".join([place, *passed_over]) + start
            return Outcome("grafted", reason, chosen.kernel_id)
        more = f"; {len(untried) - 1} more failed too" if len(untried) > 1 else ""
        return Outcome("refused", f"{passed_over[0]}{more}", untried[0].kernel_id)

    def look_ahead(self) -> None:
        """Have the kernels that may be wanted next fetched in the background, unless a seed is on trial."""
        if self.seeds.on_trial():
            return
        ahead = likely_wanted(self.layers, self.task, AHEAD), len(self.seeds.reports)
        if ahead != self._ahead:  # with the same slots and reports they would be the same kernels again
            self._ahead = ahead
            self.library.prefetch_best(ahead[0])

    def untried_inventions(self) -> tuple[Slot, ...]:
        """The slots of dormant seeds for which the library has an invented kernel not tried in this run."""
        tried = {report.kernel_id for report in self.seeds.reports}
        tried |= {trial.kernel_id for trial in self.seeds.trials.values()}
        return tuple(
            slot
            for slot in dict(dormant_slots(self.layers))
            if {each.kernel_id for each in self._invented(slot, len(tried) + 1)} - tried
        )

    def _invented(self, slot: Slot, limit: int) -> list[KernelMetadata]:
        return self.library.find(slot, tags=(INVENTED,), limit=limit)

    def _find(self, decision: AdaptationDecision) -> tuple[Slot, list[KernelMetadata]]:
        """The slot to fill and the kernels to choose from, best first; GraftError when there is none."""
        wanted = decision.parameters
        layer = self.layers[decision.target_component]
        slot = layer.slot(wanted["site"], wanted["seed_idx"])
        dtype = kernel_dtype(layer)
        return slot, untried_kernels(self.library, slot, dtype, self._context(layer), wanted)

    def _context(self, layer: SeededLayer) -> TrialContext:
        return TrialContext(layer.kind, self.task)

    def _prepare(
        self, decision: AdaptationDecision, metadata: KernelMetadata, slot: Slot, packet: SystemStatePacket
    ) -> tuple[Trial, nn.Module]:
        kernel = self.library.fetch(metadata.kernel_id)
        context = self._context(self.layers[decision.target_component])
        return begin_trial(decision, packet, slot, context, kernel), kernel.module

    def _started(self, trial: Trial) -> Evidence:
        """Set the kernel's weights, where that is asked for, and what of it the journal is to say."""
        if self.start is None:
            return {}
        try:
            set_to = self.start(self.layers[trial.layer], trial.seed_idx, trial.started_epoch + 1)
        except GraftError as error:
            text = f"gradmax left the weights as they were: {error}"
            self.recorder.emit("message", text=f"{trial.name}: {text}")
            return {"start": text}
        finally:
            self.seeds.contain_faults()  # of kernels elsewhere, which ran as well
        slopes = {"slope_before": set_to.before, "slope": set_to.after}
        return {"start": f"gradmax set {set_to.weight}", **slopes}

    def _tell_lineage(self, metadata: KernelMetadata) -> None:
        """What an invented kernel was made of, for the journal: it may have been invented in another run."""
        if INVENTED in metadata.tags:
            for record in self.library.inventions(metadata.kernel_id):
                self.recorder.emit("lineage", record=asdict(record))

    def _file(self, report: FieldReport) -> None:
        self.library.record_trial(report, self.run_id)
