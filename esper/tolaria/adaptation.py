"""What becomes of a packet: a decision, what it changes, and what is remembered of it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from esper.messages import AdaptationDecision, Refusal, SystemStatePacket
from esper.tolaria.distributed import check_alike, copy_weights, from_first
from esper.tolaria.progress import Adapted
from esper.tolaria.trial import Outcome

if TYPE_CHECKING:
    from esper.tolaria.trainer import Trainer


def decide(trainer: Trainer, packet: SystemStatePacket) -> AdaptationDecision | None:
    """What the policy wants changed after ``packet``, if anything; of many processes the first decides."""
    return from_first(trainer.group, lambda: trainer.policy.decide(packet))


def apply(trainer: Trainer, decision: AdaptationDecision | None, packet: SystemStatePacket) -> Outcome | None:
    """Graft or grow as ``decision`` says, alike in all processes; what cannot be done is refused."""
    outcome = _carry_out(trainer, decision, packet)
    when = f"after epoch {packet.epoch + 1}"
    if outcome is not None and outcome.status != "refused":
        copy_weights(trainer.model, trainer.group, when)  # of what draws numbers each drew its own
    check_alike(trainer.model, trainer.group, when)
    if trainer.held_out.average is not None:
        trainer.held_out.average.follow()
    return outcome


def _carry_out(
    trainer: Trainer, decision: AdaptationDecision | None, packet: SystemStatePacket
) -> Outcome | None:
    orchestrator, progress = trainer.orchestrator, trainer.progress
    if decision is None:
        if trainer.policy.needs_kernels:
            orchestrator.look_ahead()
        return None
    until = dict(progress.embargoed).get(_target(decision), 0)
    if packet.epoch < until:
        return Outcome("refused", f"it was rolled back, and is not tried again before epoch {until + 1}")
    if decision.adaptation_type == "modify_architecture":
        outcome = trainer.structure.apply(decision, packet.epoch)
        progress.flops += trainer.cost.take_evaluations()
    else:
        outcome = orchestrator.apply(decision, packet)
        if orchestrator.start is not None:
            progress.flops += orchestrator.start.take_flops()
    return outcome


def record(
    trainer: Trainer, epoch: int, decision: AdaptationDecision | None, outcome: Outcome | None
) -> None:
    """Journal the decision, with the kernel that the orchestrator picked for it."""
    if decision is None or outcome is None:
        return
    progress = trainer.progress
    if outcome.status == "refused":
        seed_idx = decision.parameters.get("seed_idx", -1)
        refusal = Refusal(epoch, decision.target_component, seed_idx, outcome.reason)
        progress.refusals = progress.refusals.plus(refusal)
    else:
        progress.grown_at = trainer.done(epoch + 1)
        progress.adapted += (Adapted(epoch, _target(decision), trainer.saving.step),)
    chosen = {**decision.parameters, "kernel_id": outcome.kernel_id}
    decided = replace(decision, parameters=chosen).to_json()
    trainer.recorder.emit("decision", epoch=epoch, decision=decided, outcome=outcome.to_json())


def _target(decision: AdaptationDecision) -> str:
    """What a decision changes, by the name that an embargo knows it by."""
    wanted = decision.parameters
    if decision.adaptation_type == "modify_architecture":
        return f"{wanted.get('operator', '')} {decision.target_component}"
    return f"{decision.target_component}#{wanted.get('seed_idx', '')}"
