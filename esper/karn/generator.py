"""What to try next: evolution proposes, a surrogate of the trials chooses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from statistics import fmean

from torch import nn

from esper.blueprint import Blueprint, fits
from esper.karn.candidates import Breeding, Candidate, children
from esper.karn.draft import INVENTED
from esper.karn.features import features, kernel_key, novelty, words
from esper.karn.invention import Invention, Past, Place
from esper.karn.proxies import proxies
from esper.karn.retirement import Retirement
from esper.karn.surrogate import Prediction, Surrogate, Trial
from esper.messages import Slot

Build = Callable[[Blueprint, Slot], nn.Module]
REFINED = 32
"""Children of one change that are made of the best measured."""


@dataclass(frozen=True, slots=True)
class Generator:
    """Inventions from field reports, see ``Inventor``.

    Candidates are the blueprints of the catalogue that were not tried in a place and ``pool`` children of
    what fits and is not retired. With ``least`` reports or more of the place's layout, a random forest
    predicts the gain of each.

    Exploitation: a share ``exploit`` of the children are near, those of parents that won a tournament of
    ``rivals`` by that prediction (Real et al. 2019, arXiv:1802.01548), and a candidate is chosen by its
    expected improvement over the best known mean, each time as if the predictions of those chosen before had
    been measured. A share ``refine`` of the choices goes to children of one change of the ``elite`` with the
    best gains measured in the place, drawn alike: what is almost right may lack no more.

    Exploration: expected improvement is larger where more is uncertain; the other children are far, from
    what was not invented, by more mutations (after each, one more with probability ``leap``), so that no
    family takes all. A share ``blind`` of the choices is drawn from the far children, whatever is predicted:
    where the predictions mislead, that is random search still, of as large a share of the trials. A share
    ``explore`` goes to the candidate whose graph is the least like what is known.

    With fewer reports, what was not invented goes first, then children of it; of ``sample`` candidates
    that are built, the best mean rank over the zero-cost proxies (``esper.karn.proxies``). The reason says
    so, and nothing is predicted.
    """

    build: Build
    seed: int = 0
    least: int = 8
    pool: int = 96
    sample: int = 24
    exploit: float = 0.5
    rivals: int = 5
    leap: float = 0.6
    explore: float = 0.1
    blind: float = 0.15
    refine: float = 0.3
    elite: int = 2
    breeding: Breeding = field(default_factory=Breeding)
    retirement: Retirement = field(default_factory=Retirement)

    def propose(self, past: Past, places: Sequence[Place], count: int) -> list[Invention]:
        """At most ``count`` inventions, the places in turns; see ``Inventor``."""
        places = list(dict.fromkeys(places))
        found: list[list[Invention]] = []
        for index, place in enumerate(places):
            share = count // len(places) + (index < count % len(places))
            found.append(_Place(self, past, place).propose(share) if share else [])
        longest = max(map(len, found), default=0)
        return [one[turn] for turn in range(longest) for one in found if turn < len(one)]


class _Place:
    """One place's part of a proposal."""

    def __init__(self, generator: Generator, past: Past, place: Place) -> None:
        self.generator, self.place = generator, place
        self.rng = Random(f"{generator.seed} {len(past.reports)} {len(past.known)} {place}")
        self.graphs = {graph for graph, slot in past.known if slot == place.slot}
        retired = generator.retirement.retired(past.reports)
        self.fitting = [one for one in past.blueprints if fits(one, place.slot)]
        self.parents = [one for one in self.fitting if (one.blueprint_id, place.layer_kind) not in retired]
        self.surrogate = self._surrogate(past)
        self.elite = self._elite(past)

    def propose(self, count: int) -> list[Invention]:
        """At most ``count`` inventions for this place."""
        if not self.parents:
            return []
        means = self._means()
        candidates = self._candidates(means)
        if self.surrogate is None:
            return self._cold(candidates, count)
        return self._warm(self.surrogate, candidates, count, max(means))

    def _surrogate(self, past: Past) -> Surrogate | None:
        """The surrogate of all trials whose blueprint is known; None with too few of this layout."""
        by_id = {one.blueprint_id: one for one in past.blueprints}
        known = [one for one in past.reports if one.blueprint_id in by_id]
        alike = sum(one.slot.layout == self.place.slot.layout for one in known)
        if alike < self.generator.least:
            return None
        trials = [
            Trial(features(by_id[one.blueprint_id], Place(one.slot, one.layer_kind)), one.gain)
            for one in known
        ]
        return Surrogate(trials)

    def _elite(self, past: Past) -> list[Blueprint]:
        """The parents with the best mean gains in this place."""
        gains: dict[str, list[float]] = {}
        for one in past.reports:
            if one.slot == self.place.slot and self.place.layer_kind in ("", one.layer_kind):
                gains.setdefault(one.blueprint_id, []).append(one.gain)
        tried = [one for one in self.parents if one.blueprint_id in gains]
        tried.sort(key=lambda one: fmean(gains[one.blueprint_id]), reverse=True)
        return tried[: self.generator.elite]

    def _means(self) -> list[float]:
        """The predicted mean of each parent; 0 without trials."""
        if self.surrogate is None:
            return [0.0] * len(self.parents)
        rows = [features(one, self.place) for one in self.parents]
        return [prediction.mean for prediction in self.surrogate.predict(rows)]

    def _winners(self, means: Sequence[float], count: int) -> list[Blueprint]:
        """The best of each of ``count`` tournaments."""
        size = min(self.generator.rivals, len(self.parents))
        drawn = (self.rng.sample(range(len(self.parents)), size) for _ in range(count))
        return [self.parents[max(group, key=means.__getitem__)] for group in drawn]

    def _candidates(self, means: Sequence[float]) -> list[Candidate]:
        slot = self.place.slot
        keys = {one.graph_id: kernel_key(one, slot) for one in self.fitting}
        known = {key for graph, key in keys.items() if graph in self.graphs}
        found = {
            keys[one.graph_id]: Candidate(one, "catalogue", (), f"{_source(one)}, not tried here yet")
            for one in self.parents
            if one.graph_id not in self.graphs and keys[one.graph_id] not in known
        }
        for breeding, parents, share in self._litters(means):
            pair = (parents, self.parents)
            made = children(breeding, pair, slot, self.rng, share, known | found.keys())
            found |= {kernel_key(one.blueprint, slot): one for one in made}
        return [one for one in found.values() if one.blueprint.graph_id not in self.graphs]

    def _litters(self, means: Sequence[float]) -> Iterator[tuple[Breeding, list[Blueprint], int]]:
        """How children are made, of which parents, and how many of them."""
        generator, near = self.generator, self.generator.breeding
        wanted = generator.pool if self.surrogate else generator.sample
        exploiting = round(generator.exploit * wanted) if self.surrogate else 0
        yield near, self._winners(means, exploiting), exploiting
        roots = [one for one in self.parents if INVENTED not in one.tags] or self.parents
        yield replace(near, group="far", further=generator.leap), roots, wanted - exploiting
        if self.surrogate and self.elite and generator.refine:
            yield replace(near, group="refined", further=0.0, crossovers=0.0), self.elite, REFINED

    def _cold(self, candidates: Sequence[Candidate], count: int) -> list[Invention]:
        """The catalogue first, then out of ``sample`` drawn; each by mean rank over the proxies."""
        generator, slot = self.generator, self.place.slot
        first = [one for one in candidates if one.origin == "catalogue"]
        others = [one for one in candidates if one.origin != "catalogue"]
        room = min(max(generator.sample - len(first), 0), len(others))
        drawn = [*first, *self.rng.sample(others, room)]
        scores = [proxies(generator.build(one.blueprint, slot), slot, seed=generator.seed) for one in drawn]
        ranks = [0.0] * len(drawn)
        for name in scores[0] if scores else ():
            values = [score[name] for score in scores]
            for index, value in enumerate(values):
                ranks[index] += sum(other > value for other in values) / len(scores[0])
        order = sorted(
            range(len(drawn)), key=lambda index: (drawn[index].origin != "catalogue", ranks[index], index)
        )
        return [
            self._invention(
                drawn[index],
                f"fewer than {generator.least} trials to learn from, so by zero-cost scores: mean rank "
                f"{ranks[index] + 1:.1f} of {len(drawn)}",
            )
            for index in order[:count]
        ]

    def _warm(
        self, surrogate: Surrogate, candidates: list[Candidate], count: int, best: float
    ) -> list[Invention]:
        """Chosen one after the other, each as ``_choice`` does."""
        chosen: list[Invention] = []
        seen = [words(one) for one in self.fitting]
        rows = [features(one.blueprint, self.place) for one in candidates]
        while candidates and len(chosen) < count:
            predictions = surrogate.predict(rows)
            index, why = self._choice(candidates, predictions, seen, best)
            candidate, row = candidates.pop(index), rows.pop(index)
            chosen.append(self._invention(candidate, why, predictions[index]))
            seen.append(words(candidate.blueprint))
            if len(chosen) < count:
                surrogate.believing(row)
        return chosen

    def _choice(
        self,
        candidates: Sequence[Candidate],
        predictions: Sequence[Prediction],
        seen: Sequence[Mapping[str, int]],
        best: float,
    ) -> tuple[int, str]:
        """Which candidate, and why: for being new, drawn, or by expected improvement over ``best``."""
        generator, drawn = self.generator, self.rng.random()
        if drawn < generator.explore:
            scores = [novelty(words(one.blueprint), seen) for one in candidates]
            return _largest(scores), f"explored for its graph, {max(scores):.2f} from what is known"
        drawn -= generator.explore
        for group, share, why in (
            ("far", generator.blind, "explored blindly, whatever is predicted"),
            ("refined", generator.refine, "one change of one of the best measured"),
        ):
            members = [index for index, one in enumerate(candidates) if one.group == group]
            if 0 <= drawn < share and members:
                return self.rng.choice(members), why
            drawn -= share
        scores = [prediction.improvement(best) for prediction in predictions]
        return _largest(scores), f"expected to improve on {best:.3g} by {max(scores):.2g} nats"

    def _invention(self, candidate: Candidate, why: str, prediction: Prediction | None = None) -> Invention:
        return Invention(
            blueprint=candidate.blueprint,
            place=self.place,
            origin=candidate.origin,
            parents=candidate.parents,
            reason=f"{candidate.told}: {why}",
            predicted_impact=prediction.mean if prediction else None,
            uncertainty=prediction.spread if prediction else None,
        )


def _largest(scores: Sequence[float]) -> int:
    return scores.index(max(scores))


def _source(blueprint: Blueprint) -> str:
    return "invented elsewhere" if INVENTED in blueprint.tags else "of the catalogue"
