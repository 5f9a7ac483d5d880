"""What to do when training has become unstable: a pure function of the emergency, as every decision is."""

from __future__ import annotations

from dataclasses import dataclass

from esper.errors import ConfigError
from esper.messages import AdaptationDecision, Emergency


@dataclass(frozen=True, slots=True)
class EmergencyPolicy:
    """At most ``rollbacks`` for one cause. Each multiplies the learning rate by ``rate``.

    For good, and down to ``least_rate``, where training itself is the cause; else the rate comes back within
    an epoch, as what caused it is gone.
    """

    rollbacks: int = 3
    rate: float = 0.5
    least_rate: float = 0.05

    def __post_init__(self) -> None:
        if self.rollbacks < 0:
            raise ConfigError(f"tolaria.recovery.rollbacks must be at least 0, not {self.rollbacks}")
        for name in ("rate", "least_rate"):
            value = getattr(self, name)
            if not 0 < value <= 1:
                raise ConfigError(f"tolaria.recovery.{name} must be above 0 and at most 1, not {value}")

    def decide(self, emergency: Emergency) -> AdaptationDecision | None:
        """A ``rollback`` decision, or None when rolling back has not helped often enough."""
        if emergency.earlier >= self.rollbacks:
            return None
        symptom, cause = emergency.symptom, emergency.cause
        skips = symptom.step is not None and cause != "adaptation"
        return AdaptationDecision(
            adaptation_type="rollback",
            target_component=emergency.target or cause,
            parameters={
                "skip": (symptom.epoch, symptom.step) if skips else None,
                "rate": self.rate,
                "least_rate": self.least_rate,
                "lasting": cause == "training",
            },
            confidence=1.0,
            expected_impact=0.0,
            reason=f"{symptom.kind}: {symptom.detail}",
            evidence={"earlier": emergency.earlier},
        )
