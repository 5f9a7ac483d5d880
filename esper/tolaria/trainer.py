"""The training loop: one line an act, everything else elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from torch.optim import Optimizer

from esper.data.batches import Batches
from esper.errors import EsperError
from esper.kasmina import observe
from esper.messages import SystemStatePacket, WidthMetrics
from esper.tamiyo.emergency import EmergencyPolicy
from esper.tamiyo.policy import Policy
from esper.tolaria.adaptation import apply, decide, record
from esper.tolaria.averaging import share, usual_part
from esper.tolaria.budget import Budget, Cost
from esper.tolaria.compiled import Backend, CompiledForward
from esper.tolaria.control import RollbackAsked, RunControl
from esper.tolaria.distributed import ALONE, Group
from esper.tolaria.evaluation import Flops, HeldOut
from esper.tolaria.events import Recorder
from esper.tolaria.measuring import measure
from esper.tolaria.orchestrator import SeedOrchestrator
from esper.tolaria.precision import Half, Precision
from esper.tolaria.progress import EpochSoFar, Progress
from esper.tolaria.recovery import Unstable, check_epoch, recover
from esper.tolaria.saving import Saving
from esper.tolaria.schedule import HoldThenCosine
from esper.tolaria.shared import SharedCheckpoints
from esper.tolaria.stability import Limits, StepWatch
from esper.tolaria.step import Step
from esper.tolaria.structure import Structure
from esper.tolaria.training_state import capture, put_back


@dataclass(frozen=True, slots=True)
class TrainerSettings:
    """``observe_every``: health is gathered on one step in so many; ``max_grad_norm`` None does not clip.
    The host and each kernel are clipped apart, so that a kernel in isolation leaves the host's step alone.

    ``precision`` is that of the forward pass, where torch deems it safe. With ``flops`` the run ends before
    the step that, with the held-out evaluation after it, would take more than that many; ``epochs`` does not
    count, and the learning rate follows the share of the FLOPs that is spent.

    ``compile`` says what compiles the forward pass. The gradient of a batch is gathered from ``accumulate``
    parts of it, one after another.

    A checkpoint is written at the end of each epoch, and after every ``checkpoint_every``-th step, if any.
    """

    epochs: int
    flops: float | None = None
    observe_every: int = 8
    max_grad_norm: float | None = None
    precision: Half | None = None
    checkpoint_every: int | None = None
    accumulate: int = 1
    compile: Backend | None = None


@dataclass(frozen=True)
class Network:
    """What training changes: a wrapped model, and what holds on to it or to its parameters."""

    model: nn.Module
    held_out: HeldOut
    optimizer: Optimizer
    orchestrator: SeedOrchestrator
    structure: Structure


class Trainer:
    """Trains a wrapped model, and lets the policy grow it. Built by ``esper.assembly``."""

    def __init__(
        self,
        *,
        network: Network,
        rebuild: Callable[[], Network],
        batches: Batches,
        schedule: HoldThenCosine,
        policy: Policy,
        limits: Limits,
        emergencies: EmergencyPolicy,
        checkpoints: SharedCheckpoints,
        recorder: Recorder,
        settings: TrainerSettings,
        invents: bool = False,
        group: Group = ALONE,
        control: RunControl | None = None,
    ) -> None:
        """``rebuild`` makes the network anew, as it was before training, for a rollback to fill.

        With ``invents`` the packet has the slots of inventions that were not tried, asked for once an epoch.
        """
        self._rebuild = rebuild
        self.batches = batches
        self.schedule = schedule
        self.policy = policy
        self.limits = limits
        self.emergencies = emergencies
        self.watch = StepWatch(limits, batches.y.device)
        self.checkpoints = checkpoints
        self.recorder = recorder
        self.settings = settings
        self.budget = Budget(settings.epochs, settings.flops)
        self.invents = invents
        self.group = group
        self.control = control or RunControl()
        self.progress = Progress()
        self.saving = Saving(self)
        self.so_far: EpochSoFar | None = None
        """Of an epoch under way; None between two."""
        self._told_tiers: Mapping[str, object] = {}
        self._adopt(network)

    def _adopt(self, network: Network) -> None:
        """Train this network from now on."""
        self.model, self.optimizer = network.model, network.optimizer
        self.held_out = network.held_out
        self.orchestrator, self.structure = network.orchestrator, network.structure
        self.seeds = self.orchestrator.seeds
        self.precision = Precision(self.settings.precision, self.model, self.batches.y.device)
        self.step = Step(
            self.model,
            self.optimizer,
            self.seeds,
            self.group,
            accumulate=self.settings.accumulate,
            max_grad_norm=self.settings.max_grad_norm,
            precision=self.precision,
            average=self.held_out.average,
            forward=self._forward(),
            before_update=self.saving.hold,
        )
        self.cost = Cost(self.held_out, self.batches, lambda: self._version)
        self._widths: tuple[tuple[int, int], dict[str, WidthMetrics]] | None = None

    def _forward(self) -> CompiledForward | None:
        if self.settings.compile is None:
            return None
        batch = min(self.batches.batch_size, len(self.batches.y))
        return CompiledForward(
            self.model,
            self.settings.compile,
            usual=usual_part(batch, self.group, self.settings.accumulate),
            layers=self.seeds.layers.values(),
            shape=lambda: self.structure.version,
        )

    def fit(self) -> None:
        """Train until the last epoch is done.

        Training that becomes unstable goes back to a checkpoint and on from there. Raises Instability when
        that did not help, StorageError when nothing can be written any more, and ConfigError when the FLOPs
        do not suffice for a step; whatever ends it, the newest checkpoint is the last that was begun.
        """
        try:
            self._fit()
        except BaseException:
            with contextlib.suppress(EsperError):  # the first error is the one to pass on
                self._wind_up()
            raise
        self._wind_up()

    def _wind_up(self) -> None:
        self.saving.settle()
        self.control.refuse_rest(self)

    def _fit(self) -> None:
        if self.held_out.average is not None:
            self.held_out.average.follow()
        if self.progress.global_step == 0:
            self.budget.check(self.cost)
            self.saving.begin()
        while self.so_far is not None or not self.finished:
            try:
                self._live_epoch()
            except Unstable as found:
                recover(self, found.symptom)
            except RollbackAsked as asked:
                self.control.rolled_back(asked, self)

    def _live_epoch(self) -> None:
        packet = self.run_epoch(self.progress.epochs_done)
        check_epoch(packet, self.progress.watched(packet.epoch, self.limits), self.limits)
        decision = decide(self, packet)
        outcome = apply(self, decision, packet)
        record(self, packet.epoch, decision, outcome)
        self.progress.epochs_done += 1
        self.saving.begin()

    @property
    def finished(self) -> bool:
        """Whether the last epoch is done, or the FLOPs do not suffice for one more step."""
        return self.budget.finished(self.progress, self.cost)

    @property
    def total_epochs(self) -> int:
        """Epochs that the run will have had; under a budget of FLOPs as the network stands."""
        return self.budget.total_epochs(self.progress, self.cost)

    def done(self, epochs: float) -> float:
        """The share of the run that is done after so many epochs, in [0, 1]."""
        return self.budget.share(self.progress, self.cost, epochs)

    def run_epoch(self, epoch: int) -> SystemStatePacket:
        """Train one epoch, judge the trials that are due, and measure what a policy may know."""
        started = self._worked()
        self.seeds.begin_epoch(epoch)
        if self.so_far is None:
            self.structure.begin_epoch()
            self.so_far = EpochSoFar.begun(self.batches.y.device)
        before = self.progress.samples
        loss = self._train(epoch, self.so_far)
        self.so_far = None
        seconds = self._worked() - started
        self.seeds.end_epoch()
        packet = measure(self, epoch, loss)
        self.progress.flops += self.cost.take_evaluations()
        self.progress.seconds += self._worked() - started
        # What is in earlier lines already; journals would grow as a square, and so would the time to tell.
        packet_json = replace(packet, history=(), trials=(), refusals=(), growths=()).to_json()
        for repeated in ("history", "trials", "refusals", "growths"):
            del packet_json[repeated]
        self.recorder.emit(
            "epoch",
            packet=packet_json,
            seconds=seconds,
            samples_per_second=(self.progress.samples - before) / seconds,
            training_flops=self.progress.flops,
        )
        tiers = self.orchestrator.library.tier_counts()
        if tiers != self._told_tiers:
            self.recorder.emit("cache", tiers=tiers)
            self._told_tiers = tiers
        return packet

    def _worked(self) -> float:
        """A clock that stands still while the run is paused, in seconds."""
        return time.perf_counter() - self.control.waited

    def _train(self, epoch: int, so_far: EpochSoFar) -> float:
        """What is left of an epoch; its mean loss. Reads the device at watched steps and at the end."""
        self.model.train()
        steps = len(self.batches)
        for step in range(so_far.steps, steps):
            watched = step % self.settings.observe_every == 0
            self.control.between_steps(self, watched)
            samples = len(self.batches.chosen(epoch, step))
            cost = samples * self.flops().training  # may run the model, so unobserved
            if step and self.budget.overspent(self.progress.flops, cost, self.cost):
                break
            if (epoch, step) in self.progress.skipped or not samples:
                so_far.steps += 1
                continue
            done = self.done(epoch + step / steps)
            self.progress.flops += cost
            if watched:
                observe(self.model, True)
            self._set_rates(done)
            place = (epoch, step, self.progress.global_step)
            x, y = self.batches.batch(epoch, step, share(samples, self.group))
            loss = self.step(x, y, samples)
            self.watch.note(place, loss, (p for g in self.optimizer.param_groups for p in g["params"]))
            self.progress.global_step += 1
            if watched:
                observe(self.model, False)
            so_far.add(loss, samples)
            self.progress.samples += samples
            if watched or self.watch.full:
                self.look()
            if watched:
                self.recorder.emit("step", epoch=epoch, step=step, steps=steps, loss=loss.item())
                self.recorder.health(epoch, step, self.model)
                self.saving.tell()
            every = self.settings.checkpoint_every
            if every is not None and self.progress.global_step % every == 0:
                self.saving.begin()
        self.look()
        self.saving.hold()
        return float(so_far.loss) / max(so_far.samples, 1)

    def _set_rates(self, done: float) -> None:
        self.schedule.apply(self.optimizer, done, self.progress.grown_at)
        factor = self.progress.rate_factor
        if factor != 1:
            for group in self.optimizer.param_groups:
                group["lr"] *= factor

    def look(self) -> None:
        """Raise Unstable if a step since the last look was."""
        if symptom := self.watch.look():
            raise Unstable(symptom)

    def flops(self) -> Flops:
        """FLOPs per sample of the network as it stands."""
        return self.cost.flops()

    def growable_widths(self) -> dict[str, WidthMetrics]:
        """The widths of the host that can grow, found again after each change of the network."""
        if self._widths is None or self._widths[0] != self._version:
            self._widths = (self._version, self.structure.widths())
        return self._widths[1]

    @property
    def _version(self) -> tuple[int, int]:
        """Another one after each change of a seed or of the host's shape."""
        return self.seeds.version, self.structure.version

    # Checkpoints

    def state(self) -> dict[str, Any]:
        """All that the rest of the run depends on: tensors and plain data. All processes call it."""
        return capture(self)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Put back what ``state`` returned, into a trainer built from the same configuration.

        Raises CheckpointError when the network is another one.
        """
        put_back(self, state)
        self.saving.step = self.progress.global_step

    def renew(self, state: Mapping[str, Any]) -> None:
        """As ``restore``, in a run that goes on: into a network that is built anew."""
        self._adopt(self._rebuild())
        self.restore(state)
