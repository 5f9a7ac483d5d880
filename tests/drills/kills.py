"""Kill ``esper train`` at random moments, go on with ``--resume auto``, and look at what is left each time.

Two kills of five come while a checkpoint is written. A run is killed again and again until it ends, then the
next begins, until there were as many kills as asked for. After each the newest checkpoint that the journal
tells of must be there, and whatever stands under the name of a checkpoint must be whole, to its last byte;
the process after it must go on from the newest; at the end of each run its weights must be those of the run
that nobody killed. Exits 1 otherwise.

Each process is forked from one that has imported PyTorch, so that kills fall into the training and not into
the start of Python; all else is the command as it is.

    python tests/drills/kills.py [--kills 200] [--seed 0] [--minutes 10]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from esper.assembly import training
from esper.assembly.keys import build_envelope
from esper.errors import CheckpointError
from esper.nissa.journal import JOURNAL_NAME
from esper.nissa.journal_reader import read_journal
from esper.nissa.runs import RunStatus, RunStore
from esper.tolaria.checkpoints import CheckpointFolder
from esper_cli import app

EXPERIMENT = (
    "+experiment=smoke",
    "karn.paths=[blueprints/low_rank.yaml]",
    "tamiyo.first_epoch=2",
    "tamiyo.min_confidence=0.0",
    "tamiyo.detector.window=3",
    "tolaria.checkpoint_every=5",
    "tolaria.keep_checkpoints=3",
)
WITHIN = 30.0
WRITE = 0.004
"""Seconds that a checkpoint of this network takes to write: half the kills in the training fall there."""
assert training  # imported here, so that a forked process has it


@dataclass
class Outcome:
    """What was seen. ``resumes`` holds seconds from the start of a process to its ``run_started``."""

    kills: int = 0
    runs: int = 0
    resumes: list[float] = field(default_factory=list)
    killed_before_it_went_on: int = 0
    acknowledged: int = 0
    lost: int = 0
    torn: int = 0
    from_another: int = 0
    failed: int = 0
    other_weights: int = 0

    @property
    def good(self) -> bool:
        """Whether nothing was lost, torn, or different, and nothing took too long."""
        wrong = self.lost + self.torn + self.from_another + self.failed + self.other_weights
        return wrong == 0 and max(self.resumes, default=0.0) < WITHIN

    def to_json(self) -> str:
        """One line."""
        seconds = sorted(self.resumes)
        told = {
            "kills": self.kills,
            "runs to their end": self.runs,
            "resumes": len(seconds),
            "seconds to resume, median": round(seconds[len(seconds) // 2], 2) if seconds else None,
            "slowest": round(seconds[-1], 2) if seconds else None,
            "killed before it went on": self.killed_before_it_went_on,
            "checkpoints acknowledged": self.acknowledged,
            "lost": self.lost,
            "torn": self.torn,
            "resumed from another than the newest": self.from_another,
            "failed": self.failed,
            "other weights": self.other_weights,
        }
        return json.dumps(told)


class Attempt:
    """One process of ``esper train`` with ``arguments``."""

    def __init__(self, folder: Path, arguments: list[str]) -> None:
        self.began = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            with (folder / "log").open("ab", buffering=0) as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
            os._exit(app.run(["train", "--quiet", *arguments, f"runs={folder / 'runs'}"]))

    def ended(self, within: float = 0.0) -> int | None:
        """The exit code, if it comes in so many seconds."""
        until = time.monotonic() + within
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() >= until:
                return None
            time.sleep(0.002)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


class Drill:
    """Runs below ``folder`` that are killed ``kills`` times in all, or as often as so many minutes allow."""

    def __init__(self, folder: Path, kills: int, seed: int, minutes: float = math.inf) -> None:
        self.folder, self.kills, self.until = folder, kills, time.monotonic() + 60 * minutes
        self.chance = random.Random(seed)
        self.seen = Outcome()
        self.told: set[tuple[str, str]] = set()
        began = time.monotonic()
        code = Attempt(folder / "whole", [*EXPERIMENT]).ended(300)
        assert code == 0, (folder / "whole" / "log").read_text()
        self.process = time.monotonic() - began
        whole = self._run(folder / "whole")
        self.training, self.weights = whole.seconds, whole.summary["weights_sha256"]

    def go(self) -> Outcome:
        """Kill until there were enough."""
        number = 0
        while not self._enough():
            folder = self.folder / str(number)
            folder.mkdir()
            self._one_run(folder)
            number += 1
        return self.seen

    def _enough(self) -> bool:
        return self.seen.kills >= self.kills or time.monotonic() > self.until

    def _one_run(self, folder: Path) -> None:
        code = None
        while code is None and not self._finished(folder):  # a kill may fall after the end of the run
            newest = self._look(folder)
            before = len(self._starts(folder))
            attempt = Attempt(folder, [*EXPERIMENT] if newest is None else ["--resume", "auto"])
            code = self._wait(attempt, folder, before)
            started = self._starts(folder)[before:]
            if newest is not None and started:
                self.seen.from_another += started[0]["resumed_from_step"] != newest
            elif newest is not None:
                self.seen.killed_before_it_went_on += 1
        self._look(folder)
        if code:
            self.seen.failed += 1
            print((folder / "log").read_text(), file=sys.stderr)
            return
        self.seen.runs += 1
        self.seen.other_weights += self._run(folder).summary["weights_sha256"] != self.weights

    def _wait(self, attempt: Attempt, folder: Path, before: int) -> int | None:
        """Kill it at some moment; its exit code, if it comes to its end first, or all kills are spent."""
        if self._enough():
            code = attempt.ended(300)
            assert code is not None, "it hangs"
            return code
        if self.chance.random() < 0.2:  # anywhere, its start and its end too
            code = attempt.ended(self.chance.random() * self.process)
        else:  # while it trains
            while len(self._starts(folder)) == before:
                code = attempt.ended(0.005)
                if code is not None:
                    return code
            if before:
                self.seen.resumes.append(time.monotonic() - attempt.began)
            code = attempt.ended(self.chance.random() * self.training / 3)
            if code is None and self.chance.random() < 0.5:
                code = self._at_a_write(attempt, folder)
        if code is None:
            attempt.kill()
            self.seen.kills += 1
        return code

    def _at_a_write(self, attempt: Attempt, folder: Path) -> int | None:
        """Wait until the next checkpoint is being written; the exit code, if the end comes first."""
        before = set((folder / "runs").glob("2*/checkpoints/*step*"))
        while not set((folder / "runs").glob("2*/checkpoints/*step*")) - before:
            code = attempt.ended()
            if code is not None:
                return code
        return attempt.ended(self.chance.random() * WRITE)

    def _look(self, folder: Path) -> int | None:
        """Count what a kill has left behind; the step of the newest checkpoint, if there is one."""
        good = []
        for checkpoints in self._checkpoints(folder):
            for found in checkpoints.all():
                try:
                    checkpoints.verify(found)
                    good.append(found)
                except CheckpointError:
                    self.seen.torn += 1
        told = [event["path"] for event in self._events(folder) if event["event"] == "checkpoint"]
        self.told |= {(folder.name, name) for name in told}
        self.seen.acknowledged = len(self.told)
        self.seen.lost += bool(told) and told[-1] not in {found.name for found in good}
        if not good:  # killed before its first checkpoint: the next attempt begins anew
            shutil.rmtree(folder / "runs", ignore_errors=True)
        return good[0].step if good else None

    def _checkpoints(self, folder: Path) -> Iterator[CheckpointFolder]:
        for path in (folder / "runs").glob("2*/config.yaml"):
            yield CheckpointFolder(
                path.parent / "checkpoints", build_envelope(DictConfig(OmegaConf.load(path)))
            )

    def _run(self, folder: Path) -> Any:
        (view,) = RunStore(folder / "runs").views()
        assert view.status is RunStatus.FINISHED, (folder / "log").read_text()[-2000:]
        return view

    def _finished(self, folder: Path) -> bool:
        return any(view.status is RunStatus.FINISHED for view in RunStore(folder / "runs").views())

    def _events(self, folder: Path) -> Iterator[dict[str, Any]]:
        for path in (folder / "runs").glob(f"2*/{JOURNAL_NAME}"):
            yield from read_journal(path)[0]

    def _starts(self, folder: Path) -> list[dict[str, Any]]:
        return [event for event in self._events(folder) if event["event"] == "run_started"]


def main(given: list[str] | None = None) -> int:
    """Kill, and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=math.inf, help="after which no more are killed")
    arguments = parser.parse_args(given)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ESPER_HOME"] = str(Path(folder, "home"))
        Path(folder, "whole").mkdir()
        seen = Drill(Path(folder), arguments.kills, arguments.seed, arguments.minutes).go()
    print(seen.to_json())
    return 0 if seen.good else 1


if __name__ == "__main__":
    sys.exit(main())
