"""Train with each two of the ways in which a step can be computed, and with growth, and go on from a stop.

Each run must learn, hold nothing that is not finite, grow without changing what it computes, show that what
was asked for happened, and end with the same weights, by hash, when it is stopped on the way. Two settings
that do the same job make no pair. Exits 1 unless all do.

    python tests/drills/pairs.py
"""

from __future__ import annotations

import itertools
import json
import math
import shutil
import sys
import tempfile
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch

from esper.assembly.training import build_training
from esper.nissa.journal import JOURNAL_NAME
from esper.nissa.journal_reader import read_journal
from esper.tolaria.stability import first_non_finite
from esper_cli.config import compose

BASE = (
    "+experiment=smoke",
    "urza=memory",
    "model.hidden=[8,8]",
    "tamiyo=never",
    "tolaria.epochs=4",
    "tolaria.batch_size=256",
    "tolaria.learning_rate=0.2",
    "tolaria.observe_every=4",
    "tolaria.checkpoint_every=1",
    "tolaria.keep_checkpoints=1000",
)

WAYS = {
    "bf16": ("tolaria.precision=bf16",),
    "fp16": ("tolaria.precision=fp16",),
    "accumulate": ("tolaria.accumulate=2",),
    "clip": ("tolaria.max_grad_norm=0.2",),
    "ema": ("tolaria.ema=0.9",),
    "compile": ("tolaria.compile=aot_eager",),
    "kernels": ("tamiyo=schedule", "tamiyo.at=[0.1]", "karn.paths=[blueprints/low_rank.yaml]"),
    "widening": ("tamiyo=widen", "tamiyo.widening.factor=1.5", "tamiyo.at=[0.2,0.5]"),
}

EXCLUSIVE = ({"bf16", "fp16"}, {"kernels", "widening"})

STOPS = (7, 13)
"""Steps after which a run is stopped: in the second and the third of its four epochs of five steps."""


def pairs() -> Iterator[tuple[str, str]]:
    """Each two ways that can be taken together."""
    for pair in itertools.combinations(WAYS, 2):
        if set(pair) not in EXCLUSIVE:
            yield pair


def train(ways: Collection[str], runs: Path, *, resume: str | None = None) -> tuple[Any, dict[str, Any]]:
    """The trainer and the summary of a run that is computed in these ``ways``."""
    overrides = {o.partition("=")[0]: o for o in (*BASE, *(o for way in ways for o in WAYS[way]))}
    run = build_training(compose([*overrides.values(), f"runs={runs}"]), resume=resume)
    return run.trainer, run.run()


def check(ways: Collection[str], runs: Path, stops: Collection[int] = STOPS) -> list[str]:
    """What is wrong with a run that is computed in these ``ways``; nothing, if all is well."""
    trainer, summary = train(ways, runs / "whole")
    wrong = [*_unlearned(trainer), *(way for way in ways if not _happened(way, trainer, summary))]
    events, _ = read_journal(Path(summary["folder"]) / JOURNAL_NAME)
    for report in (e["report"] for e in events if e["event"] == "growth"):
        if abs(report["loss_after"] - report["loss_before"]) > 1e-5:
            wrong.append(f"growth from {report['loss_before']} to {report['loss_after']}")
    for step in stops:
        if _resumed(ways, summary, step, runs / str(step)) != _end(trainer, summary):
            wrong.append(f"stopped after step {step}")
    return wrong


def _unlearned(trainer: Any) -> Iterator[str]:
    losses = [record.loss for record in trainer.progress.history]
    if not losses[-1] < losses[0] - 0.2:
        yield f"losses {losses}"
    if broken := first_non_finite(trainer.model):
        yield f"not finite: {broken}"


def _happened(way: str, trainer: Any, summary: dict[str, Any]) -> bool:
    """Whether the run shows that it was computed so."""
    if way == "fp16":
        return bool(trainer.state()["scaler"]["_growth_tracker"] == summary["steps"])
    if way == "ema":
        state = trainer.state()
        averages = state["average"]["values"].items()
        return all(name in state["model"] for name, _ in averages) and not any(
            torch.equal(value, state["model"][name]) for name, value in averages
        )
    if way == "compile":
        return bool(trainer.step.compilations >= 1)
    if way == "kernels":
        return [report["verdict"] in ("kept", "culled") for report in summary["adaptations"]] == [True]
    if way == "widening":
        return bool(summary["end"]["parameters"] > 2 * summary["start"]["parameters"])
    return math.isfinite(summary["test"]["loss"])  # that its numbers are others is what a run alone shows


def _end(trainer: Any, summary: dict[str, Any]) -> tuple[str, Any]:
    """What a run ends with: the digest of its weights, and what its scaler knows."""
    return summary["weights_sha256"], trainer.precision.state()


def _resumed(ways: Collection[str], summary: dict[str, Any], step: int, runs: Path) -> tuple[str, Any]:
    """What the run ends with when it is stopped after ``step``."""
    source = Path(summary["folder"])
    folder = runs / source.name
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("summary.json", "plot.png", "step-*"))
    for path in source.glob(f"checkpoints/step-{step:09d}*"):
        shutil.copytree(path, folder / "checkpoints" / path.name)
    return _end(*train(ways, runs, resume=source.name))


def main() -> int:
    """Train with each pair, and say what came of it."""
    began, failed, done = time.perf_counter(), 0, 0
    for pair in pairs():
        with tempfile.TemporaryDirectory() as folder:
            wrong = check(pair, Path(folder))
        failed += bool(wrong)
        done += 1
        print(f"{' with '.join(pair):24} {'; '.join(wrong) or 'well'}", flush=True)
    seconds = round(time.perf_counter() - began)
    print(json.dumps({"pairs": done, "failed": failed, "stops each": len(STOPS), "seconds": seconds}))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
