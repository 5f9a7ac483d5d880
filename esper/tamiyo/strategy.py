"""Where to grow and with what: candidates of a packet, scored, best first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from esper.messages import Blend, FieldReport, HealthSignal, SeedState, Site, SystemStatePacket
from esper.tamiyo.record import kept_share

Score = Literal["gradient", "fisher"]
"""What seeds are compared by: ``SeedStrategy`` says how each is computed."""

_WORDS: dict[Score, str] = {"gradient": "gradient", "fisher": "Fisher score"}


@dataclass(frozen=True, slots=True)
class Candidate:
    """One dormant seed that could receive a kernel.

    ``share`` is the seed's share of the strategy's score over all candidates. ``record`` is the share of
    trials in this layer that were kept, with one of each assumed; 1 where the strategy does not use it.
    """

    layer: str
    seed_idx: int
    site: Site
    share: float
    record: float

    @property
    def score(self) -> float:
        """What candidates are ranked by."""
        return self.share * self.record


class SeedStrategy:
    """Ranks dormant seeds, and says how a kernel is to be grafted into the chosen one.

    ``tags`` maps a layer kind to the kernel tags to ask for (any of them; none asks for every kernel).
    ``alpha_blend``, above 0 and at most 1, is the blend reached at the end of the trial.

    ``score`` is what seeds are compared by. ``gradient``: the squared loss gradient at the seed's chunk; to
    first order, its share is the share of the loss that a change of unit size there could remove (Evci et al.
    2022, GradMax, section 3). ``fisher``: that times the variance of the chunk's activations, the diagonal
    empirical Fisher information of a scale on the chunk if gradient and activation are independent (as in
    Fisher pruning: Theis et al. 2018, arXiv 1801.05787). With ``use_record`` it is multiplied by the layer's
    share of kept trials.

    A seed whose decision was refused is not asked for in the ``refusal_rest`` epochs after it, and never
    again after a second refusal. A setting that no seed can follow is a ValueError.
    """

    def __init__(
        self,
        *,
        site: Site = "parallel",
        blend: Blend = "residual",
        alpha_blend: float = 1.0,
        tags: Mapping[str, Sequence[str]] | None = None,
        score: Score = "gradient",
        use_record: bool = True,
        refusal_rest: int = 5,
    ) -> None:
        if site not in get_args(Site) or blend not in get_args(Blend):
            raise ValueError(f"site is one of {get_args(Site)}, blend of {get_args(Blend)}: {site}, {blend}")
        if not 0 < alpha_blend <= 1:
            raise ValueError(f"alpha_blend must be above 0 and at most 1, not {alpha_blend}")
        if score not in get_args(Score):
            raise ValueError(f"score is one of {get_args(Score)}, not {score}")
        if refusal_rest < 0:
            raise ValueError(f"refusal_rest must be at least 0, not {refusal_rest}")
        self.site: Site = site
        self.blend: Blend = blend
        self.alpha_blend = alpha_blend
        self.score: Score = score
        self.use_record = use_record
        self.refusal_rest = refusal_rest
        self.tags = {kind: list(names) for kind, names in (tags or {}).items()}

    def candidates(self, packet: SystemStatePacket) -> list[Candidate]:
        """Every dormant seed that no refusal rests, best first; ties in the order of names and seeds.

        The score of a layer that was not observed counts as 0.
        """
        records = _records(packet.trials) if self.use_record else {}
        unknown = 0.5 if self.use_record else 1.0
        resting = self._resting(packet)
        found: list[tuple[str, int, Site, float]] = []
        for name, metrics in packet.layer_metrics.items():
            site: Site = self.site if metrics.parallel_slots else "series"
            # A layer that the sampled steps never called has no signals.
            scores = [self._score(s) for s in metrics.signals] or [0.0] * len(metrics.seed_states)
            for idx, (state, power) in enumerate(zip(metrics.seed_states, scores, strict=True)):
                if state is SeedState.DORMANT and (name, idx) not in resting:
                    found.append((name, idx, site, power))
        total = sum(power for *_, power in found) or 1.0
        ranked = [
            Candidate(name, idx, site, power / total, records.get(name, unknown))
            for name, idx, site, power in found
        ]
        ranked.sort(key=lambda c: (-c.score, c.layer, c.seed_idx))
        return ranked

    def _score(self, signal: HealthSignal) -> float:
        squared = signal.gradient_norm**2
        return squared * signal.activation_variance if self.score == "fisher" else squared

    def _resting(self, packet: SystemStatePacket) -> set[tuple[str, int]]:
        """Seeds not to be asked for: what could not be done at once is hardly possible soon after."""
        epochs: dict[tuple[str, int], list[int]] = {}
        for refusal in packet.refusals:
            epochs.setdefault((refusal.layer, refusal.seed_idx), []).append(refusal.epoch)
        return {
            seed
            for seed, when in epochs.items()
            if len(when) > 1 or packet.epoch <= when[-1] + self.refusal_rest
        }

    def evidence(self, candidate: Candidate) -> dict[str, float]:
        """The numbers that ``candidate`` was ranked by."""
        return {f"{self.score}_share": candidate.share, "layer_record": candidate.record}

    def reason(self, candidate: Candidate) -> str:
        """Why ``candidate``, in words."""
        return (
            f"{candidate.layer} seed {candidate.seed_idx} holds {candidate.share:.0%} "
            f"of the {_WORDS[self.score]}"
        )

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


def runners_up(candidates: Sequence[Candidate]) -> tuple[dict[str, object], ...]:
    """The five candidates after the first, with their scores, for a decision's ``alternatives``."""
    return tuple(
        {"target_component": c.layer, "seed_idx": c.seed_idx, "score": c.score} for c in candidates[1:6]
    )


def _records(trials: Sequence[FieldReport]) -> dict[str, float]:
    """Layer -> its share of kept trials."""
    by_layer: dict[str, list[FieldReport]] = {}
    for trial in trials:
        by_layer.setdefault(trial.layer, []).append(trial)
    return {layer: kept_share(own) for layer, own in by_layer.items()}
