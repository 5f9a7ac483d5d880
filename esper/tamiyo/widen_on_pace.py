"""Widen the host when training slows down, as long as it has not solved its training data."""

from __future__ import annotations

import math
from dataclasses import dataclass

from esper.messages import AdaptationDecision, SystemStatePacket
from esper.tamiyo.plateau import Trend, fit_trend
from esper.tamiyo.shares import check_shares
from esper.tamiyo.widening import Widening

FEWEST = 3
"""Epochs that a trend needs, so that its fit has an error."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast the training loss falls: its fall as a share of it, over a whole run at this pace.

    ``slow`` is the probability that the true pace is below the one that was asked about; ``epochs`` of them
    were looked at.
    """

    value: float
    slow: float
    epochs: int


class WidenOnPace:
    """Every width grows as ``widening`` says once the training loss falls too slowly for what a run costs.

    A loss that follows a power law of the steps falls by exponent / share of the run that is done, so that
    ``min_pace`` over a whole run means growth after exponent / ``min_pace`` of it: later for a network that
    still learns, sooner for one that has converged, and in the same way for short and long runs, whether they
    are counted in epochs or in FLOPs. The training loss is looked at, because capacity is what it shows, and
    because it is far less noisy than the held-out one while the rate is high.

    Nothing grows once the training loss is below ``solved`` (nats): more capacity has nothing to add to
    training data that are solved. Nor before the pace is slow with at least ``min_confidence``, after
    ``latest`` of the run, more than ``max_growths`` times, or while the learning rate is below
    ``min_rate_share`` of its peak. The pace is that of the last ``window_share`` of the run, or three epochs,
    since the last growth. A setting out of its bounds is a ValueError.
    """

    needs_kernels = False
    needs_widths = True

    def __init__(
        self,
        widening: Widening,
        *,
        min_pace: float = 1.0,
        min_confidence: float = 0.5,
        window_share: float = 0.05,
        solved: float = 0.1,
        latest: float = 0.5,
        max_growths: int = 3,
        min_rate_share: float = 0.9,
    ) -> None:
        check_shares(
            min_confidence=min_confidence,
            window_share=window_share,
            latest=latest,
            min_rate_share=min_rate_share,
        )
        if not (min_pace > 0 and solved >= 0 and max_growths >= 0):
            raise ValueError(
                f"min_pace must be above 0, solved and max_growths at least 0, "
                f"not {min_pace}, {solved} and {max_growths}"
            )
        self.widening = widening
        self.min_pace = min_pace
        self.min_confidence = min_confidence
        self.window_share = window_share
        self.solved = solved
        self.latest = latest
        self.max_growths = max_growths
        self.min_rate_share = min_rate_share

    def decide(self, packet: SystemStatePacket) -> AdaptationDecision | None:
        """A ``modify_architecture`` decision when training is slow and there is time left, or ``None``."""
        if not self._may_grow(packet):
            return None
        pace = self.pace(packet)
        if pace is None or pace.slow < self.min_confidence:
            return None
        return AdaptationDecision(
            adaptation_type="modify_architecture",
            target_component="host",
            parameters=self.widening.parameters(packet),
            confidence=pace.slow,
            expected_impact=0.0,
            reason=(
                f"at the pace of {pace.epochs} epochs the training loss would fall by {pace.value:.2f} of "
                f"itself over a run (less than {self.min_pace:g} has p={pace.slow:.2f}); "
                f"it is {packet.loss:.3g}, not solved; every width grows "
                f"by a factor of {self.widening.factor:g}"
            ),
            evidence={
                "progress": packet.progress,
                "pace": pace.value,
                "slow": pace.slow,
                "loss": packet.loss,
                "parameters_at_least": self.widening.cost(packet),
            },
            alternatives=({"target_component": "nothing", "score": 1 - pace.slow},),
        )

    def _may_grow(self, packet: SystemStatePacket) -> bool:
        last = packet.refusals[-1].epoch if packet.refusals else -FEWEST
        return (
            bool(packet.widths)
            and packet.progress <= self.latest
            and packet.rate_share >= self.min_rate_share
            and len(packet.growths) < self.max_growths
            and packet.epoch - last >= FEWEST
            and packet.loss >= self.solved
        )

    def pace(self, packet: SystemStatePacket) -> Pace | None:
        """The pace since the last growth, or None while there are too few epochs to tell."""
        left = packet.total_epochs - len(packet.history)
        if left <= 0:
            return None
        share = (1 - packet.progress) / left  # of the run, an epoch of the network as it stands
        window = max(FEWEST, math.ceil(self.window_share / share))
        # The epoch right after a growth is one of new parts that find their place.
        since = packet.growths[-1].epoch + 2 if packet.growths else 1
        losses = [record.train_loss for record in packet.history[-window:] if record.epoch >= since]
        if len(losses) < window:
            return None
        trend: Trend = fit_trend(losses, self.min_pace * share)
        return Pace(trend.improvement / share, trend.stalled, window)
