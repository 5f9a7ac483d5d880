"""Stop a run of many processes after each of many steps, go on from there, and compare the weights.

As tests/drills/resume.py, with a host that drops units at random, so that each process draws numbers of its
own. Then the run goes on in one process, and in twice as many. Exits 1 unless all stops end with the weights
of the run that was not stopped, by hash and in every process.

    PYTHONPATH=tests python -m drills.processes [--processes 2] [--stops 100] [KEY=VALUE ...]
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from drills.resume import EXPERIMENT
from drills.together import run_together
from esper.assembly.training import build_training
from esper.tolaria.distributed import Group, digest, from_first
from esper.tolaria.run import Run
from esper_cli.config import compose

SAVED = ("tolaria.checkpoint_every=1", "tolaria.keep_checkpoints=10000")


def build(group: Group, runs: str, overrides: list[str], resume: str | None = None) -> Run:
    """The run of the drill, whose first layer drops units."""
    many = ["tolaria=ddp"] if group.size > 1 else ["tolaria.processes=null"]
    run = build_training(compose([*EXPERIMENT, *many, f"runs={runs}", *overrides]), resume=resume)

    def drop(module: nn.Module, _: Any, output: Tensor) -> Tensor:
        return F.dropout(output, 0.1, module.training)

    run.trainer.orchestrator.layers["hidden.0"].host.register_forward_hook(drop)
    return run


def train(
    group: Group, runs: str, overrides: list[str] | None = None, resume: str | None = None
) -> dict[str, Any]:
    """The summary of a run, or of one that goes on, with the weights of each process by hash."""
    run = build(group, runs, overrides or [], resume)
    summary = run.run()
    summary["adaptations"] = [[a["kernel_id"], a["verdict"]] for a in summary["adaptations"]]
    return {**summary, "digests": group.gather(digest(run.trainer.model))}


def copy_until(source: Path, runs: Path, step: int) -> str:
    """A copy below ``runs`` of the run in ``source``, as it was after ``step``; its id."""
    folder = runs / source.name
    shutil.rmtree(runs, ignore_errors=True)
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("summary.json", "plot.png", "step-*"))
    for path in source.glob("checkpoints/step-*"):
        if step - 3 <= int(path.name[5:14]) <= step:
            shutil.copytree(path, folder / "checkpoints" / path.name)
    return source.name


def stop_and_go_on(group: Group, runs: str, stops: int, *overrides: str) -> dict[str, Any]:
    """The summary of a whole run, and those of the same run stopped after each of ``stops`` steps."""
    whole = train(group, f"{runs}/whole", [*SAVED, *overrides])
    resumed = {}
    for step in sorted({round(n * whole["steps"] / stops) for n in range(stops)}):
        place = Path(runs, "resumed")
        run_id = from_first(group, lambda p=place, s=step: copy_until(Path(whole["folder"]), p, s))  # type: ignore[misc]
        resumed[step] = train(group, str(place), list(overrides), run_id)
    return {"whole": whole, "resumed": resumed}


def go_on(group: Group, source: str, runs: str, step: int, *overrides: str) -> dict[str, Any]:
    """The summary of the run in ``source``, stopped after ``step`` and gone on with by this group."""
    run_id = from_first(group, lambda: copy_until(Path(source), Path(runs), step))
    return train(group, runs, list(overrides), run_id)


def main() -> int:
    """Stop at evenly spread steps and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--stops", type=int, default=100)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="ways to compute a step")
    asked = parser.parse_args()
    given = asked.overrides
    with tempfile.TemporaryDirectory() as folder:
        found, *_ = run_together(
            asked.processes, "drills.processes:stop_and_go_on", folder, asked.stops, *given, timeout=3600
        )
        whole, resumed = found["whole"], found["resumed"]
        want = [whole["digests"][0]] * asked.processes
        same = sum(summary["digests"] == want for summary in resumed.values())
        half = whole["steps"] // 2
        others = {
            size: run_together(
                size, "drills.processes:go_on", whole["folder"], f"{folder}/{size}", half, *given, timeout=600
            )[0]["held_out"]["loss"]
            for size in (1, 2 * asked.processes)
        }
    print(
        json.dumps(
            {
                "processes": asked.processes,
                "with": given,
                "kernels kept or tried": whole["adaptations"],
                "stops": len(resumed),
                "same weights": same,
                "held-out loss": whole["held_out"]["loss"],
                **{f"held-out loss, gone on with on {size}": loss for size, loss in others.items()},
            }
        )
    )
    return 0 if same == len(resumed) == asked.stops else 1


if __name__ == "__main__":
    sys.exit(main())
