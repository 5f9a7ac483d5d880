"""Journals of runs as long, as deep and as eventful as a test of the page needs."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esper.messages import AdaptationDecision, FieldReport, InventionRecord, Slot
from esper.nissa.journal import JOURNAL_NAME, Journal

if TYPE_CHECKING:
    from playwright.sync_api import Page

GROWN = "20260101-100000-grown-0001"
STOPPED = "20260101-110000-stopped-0002"
DEEP = "20260101-120000-deep-0003"
FAILED = "20260101-130000-failed-0004"
"""Runs that are made for the page: one with everything in it, and what its name says."""

WINDOW = {
    "viewport": {"width": 1360, "height": 1000},
    "reduced_motion": "reduce",
    "ignore_https_errors": True,
}

Open = Callable[..., "Page"]
"""Opens the page at a fragment; options are those of a browser's context."""

MakeRun = Callable[..., "MadeRun"]
"""Makes a run of the test's own, newer than all others; takes what a MadeRun takes, but the folder."""

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
"""With which Chromium starts without a screen, and asks nobody for anything by itself."""

SCRUB = """async (count) => {
  const bar = document.getElementById("scrub"), times = [];
  const frame = () => new Promise(requestAnimationFrame);
  for (let i = 0, last = await frame(); i < count; i += 1) {
    bar.value = Math.round((bar.max * i) / count);
    bar.dispatchEvent(new Event("input", { bubbles: true }));
    const now = await frame();
    times.push(now - last);
    last = now;
  }
  return times.sort((a, b) => a - b);
}"""
"""Moves through a whole run in so many frames; how long each took, in milliseconds, the shortest first."""

KERNELS: Sequence[str] = ("kernel_0f3a51c6d2e84b97", "kernel_bf68d9a368047ba1", "kernel_7e21c09a4d5f1138")
LIFE = ("GERMINATED", "TRAINING", "BLENDING", "HOLDING")


class MadeRun:
    """Writes a run that grows: each ``every`` epochs a seed is tried, and in turn kept, culled or failed.

    The journal stays open, so the run goes on until ``finish``, or ``close`` (which leaves it stopped).
    """

    def __init__(
        self,
        root: Path,
        run_id: str,
        *,
        layers: int = 6,
        seeds: int = 4,
        total: int = 60,
        every: int = 8,
        seed: int = 0,
        kernels: Sequence[str] = KERNELS,
        name: str = "",
    ) -> None:
        (root / run_id).mkdir(parents=True)
        self.journal = Journal(root / run_id / JOURNAL_NAME, fsync=False)
        self.run_id, self.total, self.every, self.seeds = run_id, total, every, seeds
        self.names = [f"{name}stage{i // 8 + 1}.{i % 8}" for i in range(layers)]
        self.sizes = {name: 400 + 90 * (i % 8) ** 2 + 150 * (i // 8) for i, name in enumerate(self.names)}
        self.states = {name: ["DORMANT"] * seeds for name in self.names}
        self.kernels = kernels
        self.random = random.Random(seed)
        self.epoch = 0
        self.tried: list[tuple[int, str, int, str]] = []
        self.changed = set(self.names)
        self.past: deque[tuple[dict[str, int], dict[str, list[str]], list[Any]]] = deque(maxlen=20)
        self.journal.write(
            "run_started",
            run_id=run_id,
            experiment=name or run_id.split("-")[2],
            task="fashion-12k/8500",
            seed=seed,
            resumed_from_epoch=None,
            parameters=sum(self.sizes.values()),
            flops_per_sample=1.5e6,
            total_epochs=total,
            layers={name: {"kind": "block", "seeds": seeds} for name in self.names},
        )

    def epochs(self, count: int) -> None:
        """Live through the next ``count`` epochs."""
        for _ in range(count):
            self._settle()
            self._epoch()
            if self.epoch % self.every == 0 and self.epoch < self.total:
                self._decide()
            self.past.append((dict(self.sizes), dict(self.states), list(self.tried)))

    def _epoch(self) -> None:
        share = self.epoch / self.total
        held_out = 0.32 + 1.7 * math.exp(-7 * share) + 0.05 * self.random.random() * (1.2 - share)
        metrics = {
            name: {
                "gradient_norm": 0.1,
                "activation_variance": 1.0,
                "seed_health": [1.0] * self.seeds,
                "kind": "block",
                "parameters": self.sizes[name],
                "seed_states": self.states[name],
            }
            for name in sorted(self.changed)
        }
        self.changed = set()
        self.journal.write(
            "epoch",
            seconds=1.5,
            samples_per_second=9000.0 + 500 * self.random.random(),
            training_flops=1e9 * (self.epoch + 1),
            packet={
                "epoch": self.epoch,
                "global_step": self.epoch * 10,
                "loss": held_out - 0.04 - 0.1 * share,
                "accuracy": 0.93 - 0.55 * math.exp(-6 * share) - 0.012 * self.random.random(),
                "held_out_loss": held_out,
                "total_epochs": self.total,
                "learning_rate": 0.05,
                "layer_metrics": metrics,
            },
        )
        asked = 12 * (self.epoch // self.every + 1)
        self.journal.write(
            "cache",
            tiers={
                "loaded": {"hits": asked // 3, "misses": asked // 2, "errors": 0, "state": None},
                "memory": {"hits": asked, "misses": asked // 6, "errors": 0, "state": None},
                "redis": {"hits": asked // 9, "misses": asked // 12, "errors": 3, "state": "closed"},
                "sql": {"hits": asked // 12, "misses": 0, "errors": 0, "state": None},
            },
        )
        self.epoch += 1

    def _decide(self) -> None:
        number = self.epoch // self.every
        layer = self.names[(number * 7) % len(self.names)]
        epoch = self.epoch - 1
        if number % 5 == 3:
            self._widen(epoch, layer)
            return
        free = [index for index, state in enumerate(self.states[layer]) if state == "DORMANT"]
        decision = AdaptationDecision(
            "add_seed",
            layer,
            {"seed_idx": free[0] if free else 0, "site": "series", "alpha_blend": 1.0},
            confidence=0.35 + 0.5 * self.random.random(),
            expected_impact=0.01 + 0.03 * self.random.random(),
            reason=f"held-out loss falls 0.84% an epoch (a fall under 5.00% has p=0.88); {layer} "
            "holds 31% of the gradient",
            evidence={"loss_stalled": 0.88, "error_stalled": 0.74, "plateau": 0.88, "gradient_share": 0.31},
            alternatives=tuple(
                {"target_component": name, "seed_idx": index, "score": round(0.31 / (index + 1.4), 4)}
                for index, name in enumerate(self.names[:4])
            ),
        )
        kernel = self.kernels[number % len(self.kernels)] if free else None
        reason = "residual_mlp, number 1 of 9 for channels 16->4" if free else "no seed of the layer is free"
        outcome = {"status": "grafted" if free else "refused", "kernel_id": kernel, "reason": reason}
        if free:
            self.tried.append((epoch, layer, free[0], str(kernel)))
            self._move(epoch, layer, free[0], str(kernel), "GERMINATED")
        self.journal.write("decision", epoch=epoch, decision=decision.to_json(), outcome=outcome)

    def _widen(self, epoch: int, layer: str) -> None:
        added = self.sizes[layer]
        self.sizes[layer] *= 2
        self.changed.add(layer)
        sizes = {f"{layer}.conv1": [16, 32]}
        decision = AdaptationDecision(
            "modify_architecture",
            layer,
            {"operator": "widen", "sizes": {f"{layer}.conv1": 32}},
            confidence=1.0,
            expected_impact=0.02,
            reason="the schedule widens at 50% of the run",
        )
        report = {
            "epoch": epoch,
            "operator": "widen",
            "target": layer,
            "sizes": sizes,
            "parameters": added,
            "loss_before": 0.48579,
            "loss_after": 0.48579,
            "accuracy_before": 0.81,
            "accuracy_after": 0.81,
        }
        self.journal.write("growth", report=report)
        outcome = {"status": "grown", "kernel_id": None, "reason": f"{layer}.conv1 16->32"}
        self.journal.write("decision", epoch=epoch, decision=decision.to_json(), outcome=outcome)

    def _settle(self) -> None:
        """Each seed that is tried goes a step further, and after the last there is a verdict."""
        for trial in list(self.tried):
            begun, layer, index, kernel = trial
            age = self.epoch - begun
            if age < len(LIFE):
                self._move(self.epoch, layer, index, kernel, LIFE[age])
                continue
            self.tried.remove(trial)
            verdict = ("kept", "culled", "kept", "failed")[(begun // self.every) % 4]
            if verdict == "failed":
                self.journal.write(
                    "fault",
                    epoch=self.epoch,
                    layer=layer,
                    seed_idx=index,
                    kernel_id=kernel,
                    kind="non_finite",
                    message="the kernel's output is not finite in 3 of 64 samples",
                )
            self._move(self.epoch, layer, index, kernel, "FOSSILIZED" if verdict == "kept" else "CULLED")
            if verdict == "kept":
                self.sizes[layer] += 220
            else:
                self._move(self.epoch, layer, index, kernel, "EMBARGOED")
            self.journal.write("trial", report=asdict(self._report(trial, verdict)))

    def _report(self, trial: tuple[int, str, int, str], verdict: Any) -> FieldReport:
        begun, layer, index, kernel = trial
        gain = 0.021 if verdict == "kept" else -0.004
        words = "lowers" if gain > 0 else "raises"
        return FieldReport(
            layer=layer,
            layer_kind="block",
            seed_idx=index,
            slot=Slot("channels", 16, 4),
            site="series",
            kernel_id=kernel,
            blueprint_id="blueprint_eddcac9d1871a25c",
            started_epoch=begun,
            ended_epoch=self.epoch,
            verdict=verdict,
            reason=f"the seed {words} the held-out loss by {abs(gain)} ± 0.0063 nats",
            expected_impact=0.02,
            gain=gain,
            gain_error=0.0063,
            threshold=0.0,
            loss_before=0.48,
            loss_after=0.48 - gain,
            accuracy_before=0.861,
            accuracy_after=0.868,
            parameters=220,
            confidence=0.6,
            seconds=6.2,
        )

    def _move(self, epoch: int, layer: str, index: int, kernel: str, to_state: str) -> None:
        from_state = self.states[layer][index]
        self.states[layer] = [*self.states[layer]]
        self.states[layer][index] = to_state
        self.changed.add(layer)
        self.journal.write(
            "seed",
            epoch=epoch,
            layer=layer,
            seed_idx=index,
            kernel_id=kernel,
            from_state=from_state,
            to_state=to_state,
            evidence={},
        )

    def rollback(self, to_epoch: int) -> None:
        """A loss that is not finite, and the way back to the end of the epoch before ``to_epoch``."""
        self.journal.write(
            "rollback",
            cause="batch",
            target="",
            kind="non-finite loss",
            detail="the training loss is nan",
            epoch=self.epoch,
            from_step=self.epoch * 10 + 4,
            to_step=to_epoch * 10,
            to_epoch=to_epoch,
            seconds=0.31,
            seeds=[],
            skipped=[self.epoch, 4],
        )
        while self.epoch > to_epoch:
            self.epoch -= 1
            self.past.pop()
        sizes, states, tried = self.past[-1]
        self.sizes, self.states, self.tried = dict(sizes), dict(states), list(tried)
        self.changed = set(self.names)

    def invent(self, name: str, *, failure: str | None = None) -> None:
        """A blueprint was invented beside the run, and compiled or not."""
        record = InventionRecord(
            f"graph_{name}", f"blueprint_{name}", name, Slot("channels", 16, 4), "block", "crossover", (),
            "two that were kept", 0.012, 0.006, self.run_id, "2026-11-28T10:00:00+00:00",
            None if failure else f"kernel_{name}", failure,
        )  # fmt: skip
        self.journal.write("invention", record=asdict(record))

    def finish(self) -> None:
        """The run's last word."""
        self.journal.write(
            "run_finished",
            summary={
                "start": {"parameters": 5142},
                "end": {"parameters": sum(self.sizes.values())},
                "test": {"loss": 0.3424, "accuracy": 0.8825},
                "held_out": {"loss": 0.31, "accuracy": 0.895},
            },
        )
        self.journal.close()

    def fail(self, error: str) -> None:
        """The run ends with an error."""
        self.journal.write("run_failed", error=error)
        self.journal.close()

    def close(self) -> None:
        """The process is gone without a last word."""
        self.journal.close()
