"""Time two ways of doing the same thing side by side: alternating rounds, the median of their ratios.

Times are of the process, not of the clock on the wall, so that others on the machine count less; what waits
for a server is timed by the wall.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

Step = Callable[[], object]


class Paired(NamedTuple):
    """Median milliseconds a step of either, the median ratio of rounds, and its middle half."""

    peer_ms: float
    ours_ms: float
    ratio: float
    low: float
    high: float

    def row(self, name: str, goal: float, note: str) -> str:
        """A line of a table, with whether the ratio meets ``goal``."""
        verdict = "meets" if self.ratio <= goal else "MISSES"
        return (
            f"{name:34}{self.peer_ms:9.3f}{self.ours_ms:12.3f}{self.ratio:8.4f}  "
            f"{self.low:.4f}-{self.high:.4f}  {verdict} {goal} ({note})"
        )


def paired(
    peer: Step, ours: Step, *, rounds: int, steps: int, clock: Callable[[], float] = time.process_time
) -> Paired:
    """``rounds`` rounds of ``steps`` calls of each, the order changing from round to round."""
    for step in (peer, ours) * 3:
        step()
    times: list[tuple[float, float]] = []
    for index in range(rounds):
        if index % 2:
            ours_s = _seconds(ours, steps, clock)
            peer_s = _seconds(peer, steps, clock)
        else:
            peer_s = _seconds(peer, steps, clock)
            ours_s = _seconds(ours, steps, clock)
        times.append((1e3 * peer_s / steps, 1e3 * ours_s / steps))
    ratios = sorted(ours_ms / peer_ms for peer_ms, ours_ms in times)
    low, _, high = statistics.quantiles(ratios, n=4)
    return Paired(
        statistics.median(peer_ms for peer_ms, _ in times),
        statistics.median(ours_ms for _, ours_ms in times),
        statistics.median(ratios),
        low,
        high,
    )


def _seconds(step: Step, steps: int, clock: Callable[[], float]) -> float:
    began = clock()
    for _ in range(steps):
        step()
    return clock() - began


def train_step(
    model: nn.Module, x: torch.Tensor, y: torch.Tensor, after_backward: Step | None = None
) -> Step:
    """One step of SGD with momentum on a fixed batch; ``after_backward`` runs between backward and step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    model.train()

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        if after_backward is not None:
            after_backward()
        optimizer.step()

    return step
