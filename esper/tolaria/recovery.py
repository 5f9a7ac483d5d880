"""The way back from instability: what caused it, what is decided, and a run that goes on from before it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from esper.data.batches import Batches
from esper.data.losses import mean_loss
from esper.errors import CheckpointError, Instability
from esper.kasmina import SeededLayer, seed_off
from esper.messages import AdaptationDecision, Cause, Emergency, SeedState, Symptom, SystemStatePacket
from esper.tolaria.evaluation import evaluating
from esper.tolaria.progress import Adapted, Easing, Rollback
from esper.tolaria.stability import Limits, divergence, first_non_finite, is_spike
from esper.tolaria.trial import SeedKey

if TYPE_CHECKING:
    from esper.tolaria.lifecycle import SeedLifecycle
    from esper.tolaria.trainer import Trainer

_HINT = "start again, or go on with --resume, with a lower tolaria.learning_rate"


class Unstable(Exception):
    """Raised out of an epoch at the first look that shows a symptom; the loop catches it."""

    def __init__(self, symptom: Symptom) -> None:
        super().__init__(symptom.detail)
        self.symptom = symptom


def check_values(model: nn.Module, epoch: int, global_step: int) -> None:
    """Raise Unstable when a parameter or a buffer is not finite: it must get into no checkpoint."""
    if broken := first_non_finite(model):
        detail = f"{broken} holds a non-finite value"
        raise Unstable(Symptom("non-finite value", epoch, None, global_step, detail))


def check_epoch(packet: SystemStatePacket, adapted: Sequence[Adapted], limits: Limits) -> None:
    """Raise Unstable when the losses of an epoch are not finite, or ran away after an adaptation."""
    if not (math.isfinite(packet.loss) and math.isfinite(packet.held_out_loss)):
        detail = f"training loss {packet.loss}, held-out loss {packet.held_out_loss}"
        raise Unstable(Symptom("non-finite loss", packet.epoch, None, packet.global_step, detail))
    found = divergence(packet.history, [(each.epoch, each.target) for each in adapted], limits)
    if found is not None:
        raise Unstable(Symptom("divergence", packet.epoch, None, packet.global_step, found[1]))


def recover(trainer: Trainer, symptom: Symptom) -> None:
    """Bring ``trainer`` back to before the cause of ``symptom``, and note what is to differ this time.

    Raises Instability when it has come to this often enough, and when no checkpoint is left.
    """
    began = time.perf_counter()
    trainer.saving.settle()
    before, progress = trainer.seeds, trainer.progress
    watched = progress.watched(symptom.epoch, trainer.limits)
    place = _go_back(trainer, symptom, symptom.global_step)
    cause, blamed = _cause(trainer, symptom, watched)
    target = blamed.target if blamed else ""
    emergency = Emergency(symptom, cause, target, progress.earlier_rollbacks(cause, target, symptom.epoch))
    decision = trainer.emergencies.decide(emergency)
    if decision is None:
        raise _end(symptom, emergency)
    if blamed is not None and blamed.step < trainer.progress.global_step:
        place = _go_back(trainer, symptom, blamed.step)
    note = Rollback(cause, target, symptom.epoch, symptom.global_step, trainer.progress.global_step)
    trainer.progress.carry_on_from(progress, note)
    _carry_out(trainer, decision, target)
    told = {"kind": symptom.kind, "detail": symptom.detail, "skipped": decision.parameters["skip"]}
    told["decision"] = decision.to_json()
    go_on(trainer, place, before, note, told, began, f"{symptom.kind}, caused by {target or cause}")


def go_on(
    trainer: Trainer,
    place: str,
    before: SeedLifecycle,
    note: Rollback,
    told: Mapping[str, Any],
    began: float,
    reason: str,
) -> None:
    """Train on from the checkpoint ``place``, which ``trainer`` was put back to, and take out what is newer.

    ``before`` led the seeds until then; ``began`` is when ``time.perf_counter`` said that it was noticed.
    """
    changed = _changed(trainer.seeds.layers, before.layers)
    trainer.recorder.emit(
        "rollback",
        **asdict(note),
        **told,
        to_epoch=trainer.progress.epochs_done,
        seconds=time.perf_counter() - began,
        seeds=changed,
    )
    trainer.seeds.reset(changed, before, f"rolled back: {reason}", trainer.progress.epochs_done)
    trainer.checkpoints.forget_after(place)
    trainer.saving.begin()


def _changed(layers: Mapping[str, SeededLayer], before: Mapping[str, SeededLayer]) -> list[SeedKey]:
    """The seeds that hold a kernel here or in ``before``, and not the same one in the same state."""
    here, there = _holding(layers), _holding(before)
    return sorted(key for key in here.keys() | there.keys() if here.get(key) != there.get(key))


def _holding(layers: Mapping[str, SeededLayer]) -> dict[SeedKey, tuple[str, SeedState]]:
    return {
        (name, seed.index): (seed.kernel_id, seed.state)
        for name, layer in layers.items()
        for seed in layer.seed_list
        if seed.kernel_id is not None
    }


def embargo(trainer: Trainer, targets: Iterable[str]) -> None:
    """Let ``targets`` not grow again for as long as a seed rests: the same would come of it."""
    progress = trainer.progress
    until = progress.epochs_done + max(1, trainer.seeds.plan.embargo_epochs)
    progress.embargoed = (*progress.embargoed, *((target, until) for target in targets))


def _go_back(trainer: Trainer, symptom: Symptom, step: int) -> str:
    """Put ``trainer`` where it was at ``step`` optimizer steps or before; the name of the checkpoint."""
    try:
        name, state, passed_over = trainer.checkpoints.load_before(step)
    except CheckpointError as error:
        raise Instability(
            f"training is unstable ({symptom.kind}: {symptom.detail}), and cannot go back: {error.message}",
            hint=_HINT,
        ) from error
    for each in passed_over:
        trainer.recorder.emit("message", text=f"passed over: {each.message}")
    trainer.renew(state)
    return name


def _cause(trainer: Trainer, symptom: Symptom, watched: Sequence[Adapted]) -> tuple[Cause, Adapted | None]:
    """What the restored network says: a batch that is bad for it, as others are not, or what came since."""
    if symptom.step is not None and symptom.kind != "divergence" and _is_bad_batch(trainer, symptom):
        return "batch", None
    return ("adaptation", watched[-1]) if watched else ("training", None)


def _is_bad_batch(trainer: Trainer, symptom: Symptom) -> bool:
    assert symptom.step is not None
    batches = trainer.batches
    x, _ = batches.batch(symptom.epoch, symptom.step)
    if x.is_floating_point() and not bool(torch.isfinite(x).all()):
        return True
    other = (symptom.step + 1) % len(batches)
    return _is_bad(trainer, symptom.epoch, symptom.step) and not _is_bad(trainer, symptom.epoch, other)


@torch.no_grad()
def _is_bad(trainer: Trainer, epoch: int, step: int) -> bool:
    """Whether the loss of a batch stands out, with kernels on trial left aside."""
    x, y = trainer.batches.batch(epoch, step)
    seeds = trainer.seeds
    on_trial = [seeds.layers[t.layer].seed(t.seed_idx) for t in seeds.trials.values()]
    with evaluating(trainer.model), seed_off(*on_trial):
        loss = float(mean_loss(trainer.model(x), y))
    seeds.contain_faults()
    loss = trainer.group.broadcast(loss)  # all processes are to come to one cause
    return not math.isfinite(loss) or is_spike(loss, trainer.watch.past.losses, trainer.limits)


def _carry_out(trainer: Trainer, decision: AdaptationDecision, target: str) -> None:
    """Note in the progress what a rollback changes: data left out, rates, what is not to grow again soon."""
    progress, wanted = trainer.progress, decision.parameters
    if wanted["skip"] is not None:
        progress.skipped = (*progress.skipped, tuple(wanted["skip"]))
        progress.left_out = (*progress.left_out, *_not_finite(trainer.batches, *wanted["skip"]))
        trainer.batches.leave_out(progress.left_out)
    if wanted["lasting"]:
        progress.rate = max(progress.rate * wanted["rate"], wanted["least_rate"])
    else:
        steps = progress.global_step, progress.global_step + len(trainer.batches)
        progress.easing = Easing(wanted["rate"], *steps)
    if target:
        embargo(trainer, [target])


def _not_finite(batches: Batches, epoch: int, step: int) -> list[int]:
    """The samples of a batch that are not finite in the data set itself: they would come in every epoch."""
    chosen = batches.chosen(epoch, step)
    samples = batches.x[chosen]
    if not samples.is_floating_point():
        return []
    finite = torch.isfinite(samples).flatten(1).all(1)
    return [int(each) for each in chosen[~finite]]


def _end(symptom: Symptom, emergency: Emergency) -> Instability:
    """Why it ends here, and what may help."""
    where = f"in epoch {symptom.epoch + 1}" + ("" if symptom.step is None else f", step {symptom.step + 1}")
    hints = {
        "batch": "look at the data; esper runs show lists the batches that were left out",
        "adaptation": "leave that layer out with kasmina.exclude, or train with tamiyo=never",
        "training": _HINT,
    }
    times = f"{emergency.earlier} rollback" + ("" if emergency.earlier == 1 else "s")
    return Instability(
        f"training is unstable {where} ({symptom.kind}: {symptom.detail}); "
        f"the cause is {emergency.target or _CAUSES[emergency.cause]}, and {times} did not help",
        hint=hints[emergency.cause],
    )


_CAUSES = {"batch": "the data", "adaptation": "an adaptation", "training": "the training itself"}
