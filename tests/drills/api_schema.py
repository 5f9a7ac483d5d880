"""Hold the HTTP API against its own description: what schemathesis makes of it, over a real run and library.

The application that ``esper serve-metrics`` serves answers from a library and a run that have just been made,
and from a second run that trains meanwhile, pauses, goes on and goes back as requests ask it to. No answer of
500 is allowed, none that the description does not know, nothing accepted that it forbids. Exits 1 otherwise.

    python -m drills.api_schema [--examples 100] [--seed 0]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from servers.api import served_in_a_thread

from esper.assembly.catalogue import LibraryCatalogue
from esper.assembly.storage import build_library
from esper.assembly.training import build_training
from esper.nissa.api.application import create_app
from esper.nissa.api.monitor import Monitor
from esper.nissa.control import ask
from esper.nissa.runs import RunStore
from esper_cli.config import compose

GROWING = (
    "+experiment=smoke",
    "karn.paths=[blueprints/low_rank.yaml]",
    "tamiyo=eager",
    "tamiyo.first_epoch=2",
    "tamiyo.min_confidence=0.0",
    "tamiyo.detector.window=3",
    "tolaria.epochs=8",
)
PAGED = tuple(
    f"GET /api/v1/{path}"
    for path in ("adaptations", "runs", "kernels", "compilations", "runs/{run_id}/history")
)
_ALLOWING = 'checks.positive_data_acceptance.expected-statuses = ["2xx", "3xx", 400, 404]'
"""Where a cursor is taken: what looks like one may be of another list."""

EXCLUDED = ("GET /api/v1/events",)
"""Its answer has no end; tests/integration/test_api_events.py has it."""


@dataclass(frozen=True)
class Served:
    """Where the API is, and what there is in it."""

    url: str
    ended: str
    alive: str
    kernel: str


class _Enough(Exception):
    """Ends a run from within."""


@contextlib.contextmanager
def served(folder: Path) -> Iterator[Served]:
    """The API over a run that has ended, one that trains, and the library of both, all in ``folder``."""
    overrides = [*GROWING, f"runs={folder / 'runs'}", f"urza.url=sqlite:///{folder / 'kernels.db'}"]
    ended = build_training(compose(overrides))
    ended.run()
    endless = compose([*overrides, "tolaria.epochs=1000000"])
    with training(endless) as alive, serving(compose(overrides)) as url:
        kernel = ended.trainer.orchestrator.seeds.reports[0].kernel_id
        yield Served(url, ended.info.run_id, alive, kernel)


@contextlib.contextmanager
def training(cfg: DictConfig) -> Iterator[str]:
    """A run that trains in a thread, paused at first; its id."""
    over, begun = threading.Event(), threading.Event()

    def listen(event: str, fields: Mapping[str, Any]) -> None:
        if event == "control":
            begun.set()
        if over.is_set() and event in ("step", "epoch"):
            raise _Enough

    run = build_training(cfg, listeners=[listen])
    ask(run.info.folder, "pause")

    def train() -> None:
        with contextlib.suppress(_Enough):
            run.run()

    thread = threading.Thread(target=train)
    thread.start()
    try:
        assert begun.wait(60)
        yield run.info.run_id
    finally:
        over.set()
        ask(run.info.folder, "resume")
        thread.join(60)
        assert not thread.is_alive()


@contextlib.contextmanager
def serving(cfg: DictConfig) -> Iterator[str]:
    """The application of ``cfg`` on a free port; its URL."""
    with build_library(cfg) as library:
        catalogue = LibraryCatalogue(library)
        store = RunStore(Path(cfg.runs), keep_packets=False)
        app = create_app(Monitor(store, catalogue.compilations, tiers=catalogue.tiers), catalogue)
        with served_in_a_thread(app) as server:
            yield server.url


def judge(
    there: Served, run_id: str, folder: Path, *, examples: int, seed: int, phases: str = "coverage,fuzzing"
) -> dict[str, Any]:
    """What schemathesis found, asking of ``run_id``: its exit code, what was answered, what it said."""
    config, report = folder / "schemathesis.toml", folder / f"{run_id}.ndjson"
    config.write_text(
        f'[parameters]\nrun_id = "{run_id}"\nkernel_id = "{there.kernel}"\nfile = "index.html"\n'
        + "".join(f"[[operations]]\ninclude-name = {json.dumps(name)}\n{_ALLOWING}\n" for name in PAGED)
    )
    command = [str(Path(sys.executable).with_name("st")), "--config-file", str(config), "--no-color", "run"]
    command += [f"{there.url}/api/v1/openapi.json", "--max-examples", str(examples), "--seed", str(seed)]
    command += ["--phases", phases, "--continue-on-failure", "--request-timeout", "30"]
    command += ["--suppress-health-check", "all", "--report-ndjson-path", str(report)]
    for excluded in EXCLUDED:
        command += ["--exclude-name", excluded]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, cwd=folder, check=False)
    return {"code": done.returncode, "statuses": _statuses(report), "said": done.stdout + done.stderr}


def _statuses(report: Path) -> dict[str, int]:
    """How often each status was answered."""
    found = Counter(re.findall(r'"status_code":(\d+)', report.read_text()))
    return dict(sorted(found.items()))


def main() -> int:
    """Judge the API over both runs, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--examples", type=int, default=100, help="random requests for each operation")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    worst = 0
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ESPER_HOME"] = folder
        with served(Path(folder)) as there:
            for kind, run_id in {"ended": there.ended, "training": there.alive}.items():
                found = judge(there, run_id, Path(folder), examples=asked.examples, seed=asked.seed)
                print(json.dumps({"run": kind, "code": found["code"], "statuses": found["statuses"]}))
                if found["code"] or found["statuses"].get("500"):
                    print(found["said"])
                    worst = 1
    return worst


if __name__ == "__main__":
    sys.exit(main())
