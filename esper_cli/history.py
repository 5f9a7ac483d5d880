"""The history of a run, as ``esper runs show`` prints it: how it ended, its decisions, its seeds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from esper.messages import FieldReport, InventionRecord
from esper.nissa.calibration import calibration, growth_impact
from esper.nissa.run_records import Adaptation
from esper.nissa.runs import RunView
from esper_cli.progress import describe
from esper_cli.report import grouped, print_adaptations, sizes
from esper_cli.terminal import counted, percent, print_lines, table


def print_history(view: RunView) -> None:
    """Print a run: how it stands and why, its adaptations with their evidence, its seeds and its size."""
    print_lines(
        f"{view.run_id}: {view.status}",
        _what_it_is(view),
        f"in {view.folder}",
        *why_it_ended(view),
        "",
    )
    print_adaptations(view)
    number = 1
    for alike in grouped(view.adaptations):
        _print_decision(number, alike)
        print_lines(*_afterwards(view, alike[0]))
        number += len(alike)
    print_lines(*_calibration_words(view), *_invention_lines(view))
    _print_seeds(view)
    if view.fault_counts:
        faults = ", ".join(f"{number} {kind}" for kind, number in view.fault_counts.items())
        print_lines("", f"kernel faults, contained: {faults}")
    print_lines(*_rollback_lines(view))
    print_lines("", sizes(view))


def _rollback_lines(view: RunView) -> list[str]:
    """Each way back from instability, in the words that were shown when it happened."""
    lines = [str(describe("rollback", asdict(rollback))) for rollback in view.rollbacks]
    return ["", *lines] if lines else []


def _what_it_is(view: RunView) -> str:
    if view.started_at is None:
        return "training never began: its journal has no event"
    resumed = f", resumed {counted(view.resumes, 'time')}" if view.resumes else ""
    return (
        f"{view.experiment or 'no experiment'} on {view.task}, seed {view.seed}, "
        f"started {view.started_at:%Y-%m-%d %H:%M:%S} UTC, "
        f"{len(view.epochs)} of {counted(view.total_epochs, 'epoch')}{resumed}"
    )


def why_it_ended(view: RunView) -> list[str]:
    """Why a run did not finish, and how to go on."""
    if view.error:
        return [f"it failed: {view.error}"]
    if view.status == "paused":
        return [f"it waits, as it was asked to; it goes on with: esper runs resume {view.run_id}"]
    # Of a run on another machine there is no folder here, only its word.
    here = view.folder.exists()
    saved = _has_checkpoint(view.folder / "checkpoints") if here else view.checkpoint is not None
    go_on = f"go on with: esper train --resume {view.run_id}" if saved else "nothing was saved"
    words = {
        "interrupted": "it was interrupted, by Ctrl-C or SIGTERM",
        "stopped": "its process ended without a word: killed, out of memory, or the power failed",
    }
    return [f"{words[view.status]}; {go_on}"] if view.status in words else []


def _has_checkpoint(folder: Path) -> bool:
    return (folder / "latest.json").exists() or any(folder.glob("step-*/manifest.json"))


def _print_decision(number: int, alike: Sequence[Adaptation]) -> None:
    """The first of ``alike``, which have one reason, and how many followed."""
    decision, status = alike[0].decision, alike[0].status
    more = f", and {len(alike) - 1} more up to epoch {alike[-1].epoch + 1}" if len(alike) > 1 else ""
    kind = str(decision.get("adaptation_type", "")).replace("_", " ")
    seed = decision.get("parameters", {}).get("seed_idx")
    place = f"{decision.get('target_component')}" + ("" if seed is None else f" seed {seed}")
    evidence = ", ".join(f"{key} {_short(value)}" for key, value in decision.get("evidence", {}).items())
    others = [
        " ".join(str(_short(value)) for value in alternative.values())
        for alternative in decision.get("alternatives", ())[:3]
    ]
    print_lines(
        "",
        f"decision {number} ({status}{more}): {kind} at {place}, "
        f"confidence {decision.get('confidence', 0.0):.2f}, "
        f"expected impact {percent(decision.get('expected_impact', 0.0))}",
        f"  reason: {decision.get('reason', '')}",
        *([f"  {status}: {alike[0].reason}"] if alike[0].reason else []),
        *([f"  evidence: {evidence}"] if evidence else []),
        *([f"  next best: {'; '.join(others)}"] if others else []),
    )


def _afterwards(view: RunView, adaptation: Adaptation) -> list[str]:
    """What the held-out loss did after the host's own shape grew."""
    if adaptation.status != "grown":
        return []
    found = growth_impact({item.epoch: item.held_out_loss for item in view.epochs}, adaptation.epoch)
    if found is None:
        return []
    epochs = "epoch" if found.epochs == 1 else f"{found.epochs} epochs"
    return [
        f"  afterwards: the held-out loss changed by {-100 * found.after:+.1f} % in the next {epochs}, "
        f"and by {-100 * found.before:+.1f} % in as many before"
    ]


def _calibration_words(view: RunView) -> list[str]:
    """What was expected of the finished trials and what they brought; nothing when there are none."""
    found = calibration(view.trials)
    if found is None:
        return []
    trials = "1 finished trial" if found.trials == 1 else f"{found.trials} finished trials"
    lines = [
        "",
        f"calibration over {trials}: expected impact {100 * found.expected:.2f} %, "
        f"realised {100 * found.realised:.2f} %, mean error {100 * found.error:+.2f} points",
    ]
    if found.brier is not None and found.confidence is not None:
        lines.append(
            f"  confidence {found.confidence:.2f} on average, {found.kept / found.trials:.2f} were kept; "
            f"Brier score {found.brier:.3f} (0 is perfect, one half always scores 0.250)"
        )
    return lines


def _invention_lines(view: RunView) -> list[str]:
    """The invented kernels that the run tried: of what, why, and predicted against measured."""
    tried = {item.kernel_id: item for item in view.adaptations if item.performed and item.kernel_id}
    made = [record for record in view.inventions.values() if record.run_id == view.run_id]
    lines = []
    for record in view.inventions.values():
        if record.kernel_id not in tried:
            continue
        trials = [trial for trial in view.trials if trial.kernel_id == record.kernel_id]
        parents = " and ".join(record.parents) or "the catalogue"
        lines += [
            f"invented {record.kernel_id} ({record.blueprint_name} for {record.slot}), from {parents}",
            f"  why: {record.reason}",
            f"  predicted {_predicted(record)}; {'; '.join(map(_measured, trials)) or 'still on trial'}",
        ]
    if made:
        stored = sum(record.kernel_id is not None for record in made)
        of_these = sum(record.kernel_id in tried for record in made)
        lines.append(f"{stored} kernels were invented during this run, {of_these} of them tried in it")
    if view.inventing_error is not None:
        lines.append(f"inventing ended before the run: {view.inventing_error}")
    return ["", *lines] if lines else []


def _predicted(record: InventionRecord) -> str:
    if record.predicted_impact is None or record.uncertainty is None:
        return "nothing: there were too few trials"
    return f"{record.predicted_impact:+.4f} ± {record.uncertainty:.4f} nats"


def _measured(trial: FieldReport) -> str:
    return f"measured {trial.gain:+.4f} ± {trial.gain_error:.4f} nats, {trial.verdict}"


def _print_seeds(view: RunView) -> None:
    rows = table(("layer", "seeds"))
    for layer, seeds in view.seeds.items():
        states = Counter(str(seed.state).lower().replace("_", " ") for seed in seeds)
        rows.add_row(layer, ", ".join(f"{number} {state}" for state, number in states.items()))
    if view.seeds:
        print_lines("", rows)


def _short(value: Any) -> Any:
    return f"{value:.4g}" if isinstance(value, float) else value
