"""Where to grow and with what: candidates of a packet, scored, best first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from esper.messages import Blend, FieldReport, SeedState, Site, SystemStatePacket


@dataclass(frozen=True, slots=True)
class Candidate:
    """One dormant seed that could receive a kernel.

    ``gradient_share`` is the seed's share of the squared loss gradient over all candidates: to first order,
    the share of the loss that a change of unit size at this chunk could remove (Evci et al. 2022, GradMax,
    section 3). ``record`` is the share of trials in this layer that were kept, with one of each assumed.
    """

    layer: str
    seed_idx: int
    site: Site
    gradient_share: float
    record: float

    @property
    def score(self) -> float:
        """What candidates are ranked by."""
        return self.gradient_share * self.record


class SeedStrategy:
    """Ranks dormant seeds, and says how a kernel is to be grafted into the chosen one.

    ``tags`` maps a layer kind to the kernel tags to ask for (any of them; none asks for every kernel).
    ``alpha_blend``, above 0 and at most 1, is the blend reached at the end of the trial. A setting
    that no seed can follow, and that would end the run at its first graft, is a ValueError.
    """

    def __init__(
        self,
        *,
        site: Site = "parallel",
        blend: Blend = "residual",
        alpha_blend: float = 1.0,
        tags: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        if site not in get_args(Site) or blend not in get_args(Blend):
            raise ValueError(f"site is one of {get_args(Site)}, blend of {get_args(Blend)}: {site}, {blend}")
        if not 0 < alpha_blend <= 1:
            raise ValueError(f"alpha_blend must be above 0 and at most 1, not {alpha_blend}")
        self.site: Site = site
        self.blend: Blend = blend
        self.alpha_blend = alpha_blend
        self.tags = {kind: list(names) for kind, names in (tags or {}).items()}

    def candidates(self, packet: SystemStatePacket) -> list[Candidate]:
        """Every dormant seed of the packet, best first; ties in the order of names and seeds.

        The gradient of a layer that was not observed counts as 0.
        """
        records = _records(packet.trials)
        found: list[tuple[str, int, Site, float]] = []
        for name, metrics in packet.layer_metrics.items():
            site: Site = self.site if metrics.parallel_slots else "series"
            # A layer that the sampled steps never called has no signals.
            norms = [s.gradient_norm for s in metrics.signals] or [0.0] * len(metrics.seed_states)
            for idx, (state, norm) in enumerate(zip(metrics.seed_states, norms, strict=True)):
                if state is SeedState.DORMANT:
                    found.append((name, idx, site, norm**2))
        total = sum(power for *_, power in found) or 1.0
        ranked = [
            Candidate(name, idx, site, power / total, records.get(name, 0.5))
            for name, idx, site, power in found
        ]
        ranked.sort(key=lambda c: (-c.score, c.layer, c.seed_idx))
        return ranked

    def parameters(self, candidate: Candidate, packet: SystemStatePacket) -> dict[str, object]:
        """The ``parameters`` of an ``add_seed`` decision for ``candidate``."""
        kind = packet.layer_metrics[candidate.layer].kind
        return {
            "kernel_id": None,
            "seed_idx": candidate.seed_idx,
            "alpha_blend": self.alpha_blend,
            "site": candidate.site,
            "blend": self.blend,
            "tags": self.tags.get(kind, []),
            "avoid": sorted(
                {t.kernel_id for t in packet.trials if t.layer == candidate.layer and t.verdict != "kept"}
            ),
        }


def _records(trials: Sequence[FieldReport]) -> dict[str, float]:
    """Layer -> (kept + 1) / (trials + 2)."""
    counts: dict[str, tuple[int, int]] = {}
    for trial in trials:
        kept, total = counts.get(trial.layer, (0, 0))
        counts[trial.layer] = (kept + (trial.verdict == "kept"), total + 1)
    return {layer: (kept + 1) / (total + 2) for layer, (kept, total) in counts.items()}
