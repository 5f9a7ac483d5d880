"""What a step of training costs with telemetry to Redis, JSON lines and TensorBoard.

The steps are those of ``esper train``, with one thread. Epochs that take seconds together are told to all of
these, and as many to nobody, in turn; sinks hold still in between, so that what they do late counts as told.

- The account: what the training thread spends in the calls that tell, beyond what the same calls take when
  nobody is told, and the sinks on their own threads, a step. By CPU time: where others take a part of it, the
  intervals of sinks and signals are stretched by as much, and come as often in the time that training has.
  What is there without sinks as well stands beside it: gathering health, and the lines of the journal.
- Epochs side by side: what the account lacks, such as the wait for the interpreter's lock and cold caches.
  Median of the pairs, with 95 % of medians of as many drawn from them.

Goal: at most 1 % of a step by the account, and of epochs side by side by the wall, where the upper end of the
interval has to be below, and the lower end above to miss it. Starts a server of its own.

Run: python benchmarks/telemetry_cost.py [--experiment NAME] [--pairs N] [--sinks NAME,NAME] [OVERRIDE ...]
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from esper.assembly.telemetry import prepare_sink
from esper.assembly.training import build_training
from esper.nissa.journal import Journal
from esper.nissa.telemetry import writer
from esper.nissa.telemetry.messages import Message, Sink
from esper.nissa.telemetry.telemetry import Telemetry
from esper.security.privacy import leaving
from esper.tolaria import events
from esper.tolaria.events import Recorder
from esper.tolaria.trainer import Trainer
from esper_cli.config import compose

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from servers.redis import RedisServer

MOST_COST = 1.0  # percent of a step
SECONDS = 3.0  # of CPU in a period: some looks of a sink long
DRAWS = 5000
PARTS = ("steps", "epochs", "journal")
"""Of what the training thread does: signals, how sinks fare, and all other events."""


class Gated:
    """A sink that holds still while the gate is not set."""

    def __init__(self, sink: Sink, gate: threading.Event) -> None:
        self.name, self.position, self.close = sink.name, sink.position, sink.close
        self._sink, self._gate = sink, gate

    def write(self, batch: Sequence[Message]) -> None:
        """As the sink, later."""
        self._gate.wait()
        self._sink.write(batch)

    def idle(self) -> None:
        """As the sink, later."""
        self._gate.wait()
        self._sink.idle()


class Clocks(NamedTuple):
    """Seconds by the wall, of the training thread, and of all threads of the process."""

    wall: float
    thread: float
    process: float

    @classmethod
    def now(cls) -> Clocks:
        """What they show."""
        return cls(time.perf_counter(), time.thread_time(), time.process_time())

    def since(self, began: Clocks) -> Clocks:
        """What has gone by."""
        return Clocks(*(now - then for now, then in zip(self, began, strict=True)))


class Switch(Recorder):
    """Tells all sinks or none, and sums up what its calls take meanwhile.

    What nobody is told is journaled as well, but elsewhere: sinks would read it when they go on.
    """

    def __init__(self, told: Journal, untold: Journal, telemetry: Telemetry, gate: threading.Event) -> None:
        super().__init__(told, (), telemetry)
        self._journals = {True: told, False: untold}
        self._both = telemetry, gate
        self.spent = {told: dict.fromkeys(PARTS, 0.0) for told in (True, False)}
        """CPU seconds of the training thread, by whether sinks are told; with those of asking the clock."""

    def tell(self, told: bool) -> None:
        """Tell all sinks from now on, or none."""
        telemetry, gate = self._both
        self.journal, self.telemetry = self._journals[told], telemetry if told else None
        if told:
            gate.set()
        else:
            gate.clear()

    def emit(self, event: str, **fields: Any) -> None:
        """As every recorder."""
        part = {"step": "steps", "telemetry": "epochs"}.get(event, "journal")
        self._timed(part, lambda: super(Switch, self).emit(event, **fields))

    def health(self, *place: Any) -> None:
        """As every recorder."""
        self._timed("steps", lambda: super(Switch, self).health(*place))

    def _timed(self, part: str, call: Callable[[], None]) -> None:
        spent = self.spent[self.telemetry is not None]
        began, before = time.thread_time(), sum(spent.values())
        call()
        inside = sum(spent.values()) - before  # of a call in this one
        spent[part] += time.thread_time() - began - inside


class Steps:
    """Stands for the trainer's step, and times it."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer, self._step = trainer, trainer.step
        self.count = len(trainer.batches)
        self.each: dict[bool, list[float]] = {True: [], False: []}
        """CPU seconds of steps, by whether they are watched."""
        self.began = self.ended = Clocks.now()
        """Of the steps of the newest epoch."""

    def __call__(self, *batch: Any) -> torch.Tensor:
        """One step."""
        assert self._trainer.so_far is not None
        place = self._trainer.so_far.steps
        if place == 0:
            self.began = Clocks.now()
        began = time.thread_time()
        loss = self._step(*batch)
        self.each[place % self._trainer.settings.observe_every == 0].append(time.thread_time() - began)
        self.ended = Clocks.now()
        return loss


def epoch(trainer: Trainer) -> Clocks:
    """What the next one takes."""
    began, done = Clocks.now(), trainer.progress.epochs_done
    trainer.run_epoch(done)
    trainer.progress.epochs_done = done + 1
    return Clocks.now().since(began)


class Periods:
    """Epochs that are told, and as many that are not, in turn."""

    def __init__(self, trainer: Trainer, switch: Switch) -> None:
        self._trainer, self._switch = trainer, switch
        self.steps = trainer.step = Steps(trainer)
        self.untold: list[Clocks] = []
        """What a step takes in each epoch that nobody is told of."""
        self.pairs: list[tuple[Clocks, Clocks]] = []
        """Each period that was told, and the one beside it that was not."""
        self.epochs = math.ceil(SECONDS / epoch(trainer).thread)
        """Of a period."""

    def run(self, pairs: int) -> None:
        """So many of both; which is the first changes from pair to pair."""
        for pair in range(pairs):
            spent = {told: self._period(told) for told in (bool(pair % 2), not pair % 2)}
            self.pairs.append((spent[True], spent[False]))

    def _period(self, told: bool) -> Clocks:
        self._switch.tell(told)
        began = Clocks.now()
        for _ in range(self.epochs):
            epoch(self._trainer)
            if not told:
                spent = self.steps.ended.since(self.steps.began)
                self.untold.append(Clocks(*(seconds / self.steps.count for seconds in spent)))
        return Clocks.now().since(began)


def thread_seconds() -> dict[str, float]:
    """CPU seconds of the thread of each sink, by name."""
    sinks = [thread for thread in threading.enumerate() if thread.name.startswith("telemetry ")]
    return {each.name: time.clock_gettime(time.pthread_getcpuclockid(each.ident)) for each in sinks}


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, and the ends of the middle 95 % of medians of as many drawn from ``values``."""
    draws = np.random.default_rng(0).choice(np.asarray(values), (DRAWS, len(values)))
    low, high = np.percentile(np.median(draws, axis=1), (2.5, 97.5))
    return statistics.median(values), float(low), float(high)


def account(periods: Periods, spent: Mapping[str, float]) -> float:
    """Print what is spent a step and where; what telling takes, in percent of a step."""
    wall, cpu, _ = (statistics.median(each) for each in zip(*periods.untold, strict=True))
    each, told = periods.steps.each, periods.epochs * len(periods.pairs) * periods.steps.count
    gathering = statistics.median(each[True]) - statistics.median(each[False])
    gathering *= len(each[True]) / (len(each[True]) + len(each[False]))
    rows = {name: seconds / told for name, seconds in spent.items()}
    journal = rows.pop("journal")
    rows["together"] = sum(rows.values())
    print(f"  a step: {1e3 * wall:.1f} ms by the wall, {1e3 * cpu:.2f} ms of CPU")
    for name, seconds in {
        "gathering health, told or not": gathering,
        "journal, told or not": journal,
        **rows,
    }.items():
        print(f"    {name:30} CPU {1e6 * seconds:6.1f} us, {100 * seconds / cpu:.2f} %")
    return 100 * rows["together"] / cpu


def side_by_side(periods: Periods) -> tuple[float, float]:
    """Print what told epochs take more; by the wall, from and to how many percent."""
    intervals = []
    print(f"  more in epochs that are told, {len(periods.pairs)} pairs of {periods.epochs}")
    for index, clock in enumerate(("by the wall", "CPU of the training thread", "CPU of all threads")):
        middle, low, high = interval(
            [100 * (told[index] / other[index] - 1) for told, other in periods.pairs]
        )
        print(f"    {clock:30} {middle:+.2f} % [{low:+.2f}, {high:+.2f}]")
        intervals.append((low, high))
    return intervals[0]


def trained(
    folder: Path, experiment: str, names: Sequence[str], pairs: int, overrides: Sequence[str]
) -> tuple[Periods, dict[str, float]]:
    """Train for so many pairs of periods; they, and CPU seconds of what tells, by its name."""
    places = [f"runs={folder}", f"security.path={folder}/keys.json", "urza=memory", "tamiyo=never"]
    chosen = [f"+experiment={experiment}", f"nissa/sinks=[{','.join(names)}]", "tolaria.epochs=100000"]
    cfg = compose([*chosen, *places, *overrides])
    makers = [prepare_sink(cfg, name) for name in names]
    every, cfg.nissa.sinks = cfg.nissa.signals_every, {}  # the trainer's own sinks would not hold still
    trainer = build_training(cfg).trainer
    epoch(trainer)  # with what is done once
    spent = epoch(trainer)
    stretch = spent.wall / spent.thread
    writer.POLL_SECONDS *= stretch
    events.COUNTS_EVERY *= stretch
    print(f"  {stretch:.1f} s by the wall for each of CPU; intervals are stretched by as much")
    gate, journal = threading.Event(), trainer.recorder.journal
    sinks = [Gated(make(journal.path.parent), gate) for make in makers]
    telemetry = Telemetry(
        sinks, journal.path, lambda: journal.end, allow=leaving, signals_every=every * stretch
    )
    elsewhere = Journal(journal.path.with_name("untold.jsonl"))
    switch = trainer.recorder = Switch(journal, elsewhere, telemetry, gate)
    switch.tell(True)
    with closing(elsewhere), closing(switch):
        periods = Periods(trainer, switch)
        before = thread_seconds()
        switch.spent = {told: dict.fromkeys(PARTS, 0.0) for told in (True, False)}
        periods.run(pairs)
        told, untold = switch.spent[True], switch.spent[False]
        costs = {f"training thread, {part}": told[part] - untold[part] for part in ("steps", "epochs")}
        costs["journal"] = told["journal"]
        costs |= {f"thread {name}": after - before[name] for name, after in thread_seconds().items()}
        switch.tell(True)
    counts = telemetry.counts().values()
    assert all(sink.errors == sink.dropped == sink.behind == 0 for sink in counts), counts
    return periods, costs


def main() -> None:
    """Measure, print, and exit with 1 if the goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--experiment", default="resnet")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--sinks", default="redis,jsonl,tensorboard")
    parser.add_argument("overrides", nargs="*")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print(f"what telemetry costs a step of {asked.experiment}; load of this machine {os.getloadavg()[0]:.1f}")
    with closing(RedisServer()) as server, tempfile.TemporaryDirectory() as name:
        server.start()
        os.environ["ESPER_REDIS_URL"] = server.url
        names = asked.sinks.split(",")
        periods, spent = trained(Path(name), asked.experiment, names, asked.pairs, asked.overrides)
    cost = account(periods, spent)
    low, high = side_by_side(periods)
    account_says = "reached" if cost <= MOST_COST else "MISSED"
    wall_says = "reached" if high <= MOST_COST else "MISSED" if low > MOST_COST else "not decided"
    print(f"  goal: at most {MOST_COST:.0f} %: by the account {account_says}, side by side {wall_says}")
    raise SystemExit("MISSED" in (account_says, wall_says))


if __name__ == "__main__":
    main()
