"""Shares of a run, and of other things: their bounds, and which of a schedule is due."""

from __future__ import annotations

from collections.abc import Sequence

from esper.messages import SystemStatePacket
from esper.tamiyo.record import on_trial


def check_shares(**shares: float) -> None:
    """ValueError for the first setting that is not in [0, 1], by its name."""
    for name, value in shares.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be between 0 and 1, not {value}")


def schedule_of(at: Sequence[float]) -> tuple[float, ...]:
    """``at`` in order; ValueError when there is none, or one that is not in [0, 1)."""
    shares = tuple(sorted(float(share) for share in at))
    if not shares or not all(0 <= share < 1 for share in shares):
        raise ValueError(f"at must be shares of the run, each at least 0 and below 1, not {list(at)}")
    return shares


def share_due(at: Sequence[float], packet: SystemStatePacket) -> float | None:
    """The first of ``at`` (in order) that is reached and has had no decision; None when there is none."""
    decided = on_trial(packet) + len(packet.trials) + len(packet.refusals)
    reached = [share for share in at if share <= packet.progress] if packet.history else []
    return reached[decided] if decided < len(reached) else None
