"""The life of grafted seeds: each is moved on, kept or taken out by what is measured of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

from torch import nn
from torch.optim import Optimizer

from esper.errors import GraftError
from esper.kasmina import (
    Fault,
    graft,
    pop_faults,
    repeat_faults,
    seed_off,
    seed_records,
    seeded_layers,
)
from esper.kasmina.operators.fold import fold
from esper.kasmina.seed import Evidence, Seed
from esper.messages import FieldReport, SeedState
from esper.tolaria.append_only import AppendOnly, restored
from esper.tolaria.distributed import Group
from esper.tolaria.evaluation import HeldOut
from esper.tolaria.events import Recorder
from esper.tolaria.kernel_parameters import KernelParameters
from esper.tolaria.shared import Rebuild
from esper.tolaria.trial import (
    SeedKey,
    Trial,
    TrialPlan,
    failure_report,
    field_report_from,
    judge,
    report,
    restore_trials,
)
from esper.tolaria.weight_average import grown


class SeedLifecycle:
    """Moves every seed that holds a kernel on by evidence, from its graft to the verdict and after.

    ``rebuild`` makes the module of a kernel from its blueprint when a checkpoint is restored.
    ``kernel_lr_scale`` is the peak learning rate of grafted parameters over that of the host. ``file`` is
    given each report, for more than this run to learn from. ``version`` grows with each change of a seed.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        held_out: HeldOut,
        recorder: Recorder,
        plan: TrialPlan,
        *,
        rebuild: Rebuild,
        file: Callable[[FieldReport], None],
        kernel_lr_scale: float,
        group: Group,
    ) -> None:
        self.model = model
        self.layers = seeded_layers(model)
        self.held_out = held_out
        self.recorder = recorder
        self.plan = plan
        self.rebuild = rebuild
        self.parameters = KernelParameters(optimizer, kernel_lr_scale)
        self.group = group
        self.trials: dict[SeedKey, Trial] = {}
        self.reports: AppendOnly[FieldReport] = AppendOnly()
        self.resting: dict[SeedKey, int] = {}
        self.epoch = 0
        self.version = 0
        self._file = file
        self._epoch_began = time.perf_counter()

    # A graft

    def graft(self, trial: Trial, kernel: nn.Module) -> None:
        """Put ``kernel`` into the seed of ``trial``, and its parameters into the optimizer; or GraftError."""
        graft(
            self.layers[trial.layer],
            trial.seed_idx,
            kernel,
            kernel_id=trial.kernel_id,
            site=trial.site,
            blend=trial.blend,
        )
        self.trials[trial.key] = trial
        self._train(trial)

    def tell_grafted(self, trial: Trial, evidence: Evidence) -> None:
        """Say that the seed of ``trial`` has germinated, once all that belongs to its start is done."""
        self._moved(trial, SeedState.DORMANT, SeedState.GERMINATED, evidence)

    def on_trial(self) -> list[Trial]:
        """The trials that have not ended."""
        return [trial for trial in self.trials.values() if not trial.finished]

    def _train(self, trial: Trial) -> None:
        kernel = self._seed(trial.key).kernel
        assert kernel is not None
        self.parameters.add(trial.name, kernel)

    # Every step

    def step(self) -> None:
        """Count one optimizer step for each trial; advance the blend, and states whose time has come."""
        for trial in self.on_trial():
            trial.steps += 1
            seed = self._seed(trial.key)
            if seed.state is SeedState.TRAINING and trial.steps >= self.plan.training_steps:
                self._move(trial, SeedState.BLENDING, {"steps": trial.steps})
            elif seed.state is SeedState.BLENDING:
                share = min(trial.steps / self.plan.blending_steps, 1.0)
                seed.set_alpha(trial.alpha_blend * share)
                if share == 1.0:
                    self._move(trial, SeedState.HOLDING, {"alpha_target": trial.alpha_blend})

    def contain_faults(self) -> None:
        """Take out every kernel that failed since the last call, before the optimizer can step on it.

        Call it after each backward pass and each evaluation. The layers have already put the default
        transform in place of what the kernels returned. All processes call it, and take out the same.
        """
        self.take_out(self.agreed(pop_faults(self.model)))

    def agreed(self, faults: list[Fault]) -> list[Fault]:
        """``faults`` of this process with those of the others, in one order; one for each seed."""
        if self.group.size == 1:
            return faults
        everyone = [fault for each in self.group.gather(faults) for fault in each]
        repeat_faults(self.model, everyone)
        first = {(fault.layer, fault.seed_idx): fault for fault in reversed(everyone)}
        return [first[key] for key in sorted(first)]

    def take_out(self, faults: list[Fault]) -> None:
        """Remove the kernels of ``faults``, whose seeds have failed, and report them."""
        for fault in faults:
            trial = self.trials[fault.layer, fault.seed_idx]
            self._seed(trial.key).remove_kernel()
            self._forget(trial)
            self.resting[trial.key] = self.epoch
            self.version += 1
            self.recorder.emit("fault", epoch=self.epoch, **asdict(fault))
            why = {"kind": fault.kind, "message": fault.message}
            self._tell(trial.key, fault.kernel_id, fault.from_state, SeedState.ERROR_RECOVERY, why)
            if not trial.finished:
                reason = f"{fault.kind}: {fault.message}"
                self._report(failure_report(trial, self.epoch, reason, self.plan))

    # Every epoch

    def begin_epoch(self, epoch: int) -> None:
        """Events belong to ``epoch`` from now on; kernels grafted since the last one begin to learn."""
        self.epoch = epoch
        self._epoch_began = time.perf_counter()
        for trial in self.on_trial():
            if self._seed(trial.key).state is SeedState.GERMINATED:
                self._move(
                    trial, SeedState.TRAINING, {"optimizer_parameters": self.parameters.count(trial.name)}
                )

    def end_epoch(self) -> None:
        """Wake seeds that have rested long enough, and judge the trials that have held long enough."""
        for key, until in list(self.resting.items()):
            if self.epoch >= until:
                del self.resting[key]
                self._wake(key)
        seconds = time.perf_counter() - self._epoch_began
        for trial in self.on_trial():
            trial.seconds += seconds
            holding = self._seed(trial.key).state is SeedState.HOLDING
            if holding and trial.steps >= self.plan.holding_steps:
                self._judge(trial)

    def _judge(self, trial: Trial) -> None:
        on = self.held_out.evaluate()
        with seed_off(self._seed(trial.key)):
            off = self.held_out.evaluate()
        self.contain_faults()
        if trial.key not in self.trials:
            return  # it failed on the held-out split, and is reported as that
        verdict = judge(on.losses, off.losses, self.plan)
        if verdict.kept:
            trial.finished = True
            self._move(trial, SeedState.FOSSILIZED, verdict.evidence())
            if self.plan.fold:
                self._fold(trial)
        else:
            self._cull(trial, {**verdict.evidence(), "reason": verdict.reason})
        self._report(report(trial, self.epoch, verdict, on if verdict.kept else off))

    def _fold(self, trial: Trial) -> None:
        """Fold a kept kernel into its host where the algebra allows it; else it stays, and why is told."""
        try:
            growth = grown(self.held_out.average, lambda: fold(self.layers[trial.layer], trial.seed_idx))
        except GraftError as error:
            self.recorder.emit("message", text=f"not folded: {error}")
            return
        self._forget(trial)
        evidence = {"folded_error": growth.record["error"]}
        self._moved(trial, SeedState.FOSSILIZED, SeedState.DORMANT, evidence)

    def _cull(self, trial: Trial, evidence: Evidence) -> None:
        until = self.epoch + self.plan.embargo_epochs
        self._move(trial, SeedState.CULLED, evidence)
        self._seed(trial.key).remove_kernel()
        self._forget(trial)
        self._move(trial, SeedState.EMBARGOED, {"until_epoch": until})
        self.resting[trial.key] = until

    # Shared

    def _seed(self, key: SeedKey) -> Seed:
        layer, idx = key
        return self.layers[layer].seed(idx)

    def _move(self, trial: Trial, to: SeedState, evidence: Evidence) -> None:
        seed = self._seed(trial.key)
        before = seed.state
        seed.transition(to, evidence)
        trial.steps = 0
        self._moved(trial, before, to, evidence)

    def _wake(self, key: SeedKey) -> None:
        seed = self._seed(key)
        before, evidence = seed.state, {"epoch": self.epoch}
        seed.transition(SeedState.DORMANT, evidence)
        self._tell(key, None, before, SeedState.DORMANT, evidence)

    def _moved(self, trial: Trial, before: SeedState, to: SeedState, evidence: Evidence) -> None:
        self.version += 1
        self._tell(trial.key, trial.kernel_id, before, to, evidence)

    def _tell(
        self, key: SeedKey, kernel_id: str | None, before: SeedState, to: SeedState, evidence: Evidence
    ) -> None:
        layer, seed_idx = key
        self.recorder.emit(
            "seed",
            epoch=self.epoch,
            layer=layer,
            seed_idx=seed_idx,
            kernel_id=kernel_id,
            from_state=before,
            to_state=to,
            evidence=dict(evidence),
        )

    def _forget(self, trial: Trial) -> None:
        del self.trials[trial.key]
        self.parameters.remove(trial.name)

    def _report(self, field_report: FieldReport) -> None:
        """Tell the journal, the policy (through the next packet) and the library, which ranks by it."""
        self.reports = self.reports.plus(field_report)
        self._file(field_report)
        self.recorder.emit("trial", report=asdict(field_report))

    # Rollbacks

    def reset(self, keys: Iterable[SeedKey], before: SeedLifecycle, reason: str, epoch: int) -> None:
        """Cull ``keys`` for ``reason`` and let them rest from ``epoch`` on, past the gates.

        ``before`` carried out what is undone; trials that had not ended in it are reported as failed.
        """
        self.epoch = epoch
        until = epoch + max(1, self.plan.embargo_epochs)
        for key in keys:
            was, then = before._seed(key), before.trials.get(key)
            if key in self.trials:
                self._forget(self.trials[key])
            seed = self._seed(key)
            seed.reset()
            seed.restore(SeedState.EMBARGOED, embargoed_until=until)
            self.resting[key] = until
            self._tell(key, was.kernel_id, was.state, SeedState.CULLED, {"reason": reason})
            self._tell(key, None, SeedState.CULLED, SeedState.EMBARGOED, {"until_epoch": until})
            if then is not None and not then.finished:
                self._report(failure_report(then, epoch, reason, self.plan))
        self.version += 1

    # Checkpoints

    def state(self) -> dict[str, Any]:
        """Plain data from which ``restore`` grafts the same kernels; the model's state has the weights."""
        return {
            "seeds": [{**asdict(r), "state": r.state.value} for r in seed_records(self.model)],
            "trials": [trial.state() for trial in self.trials.values()],
            "reports": self.reports,
            "resting": [(layer, idx, until) for (layer, idx), until in self.resting.items()],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Graft what ``state`` lists, rebuilt from blueprints: no library is needed."""
        self.trials = restore_trials(self.model, state, self.rebuild)
        for trial in self.trials.values():
            self._train(trial)
        self.reports = restored(state["reports"], field_report_from)
        self.resting = {(layer, idx): until for layer, idx, until in state["resting"]}
        self.version += 1
