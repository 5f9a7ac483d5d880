"""What keeps losing is left alone, for a while or until the user says otherwise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from esper.messages import FieldReport


@dataclass(frozen=True, slots=True)
class Retirement:
    """A blueprint is retired for a kind of layer when its last ``losses`` trials there were all lost.

    Lost is what was not kept: culled or failed. It comes back for one more trial when ``rest`` other trials
    have finished in that kind of layer since its last, and at once where its id is among ``revived``: hosts
    and settings change, and four trials are little evidence.
    """

    losses: int = 4
    rest: int = 40
    revived: frozenset[str] = frozenset()

    def retired(self, reports: Sequence[FieldReport]) -> Mapping[tuple[str, str], str]:
        """(blueprint id, layer kind) of all that is retired after ``reports`` (oldest first), and why."""
        lost: dict[tuple[str, str], int] = {}
        last: dict[tuple[str, str], int] = {}
        trials: dict[str, int] = {}
        for report in reports:
            key = (report.blueprint_id, report.layer_kind)
            lost[key] = 0 if report.verdict == "kept" else lost.get(key, 0) + 1
            last[key] = trials[report.layer_kind] = trials.get(report.layer_kind, 0) + 1
        return {
            key: f"its last {count} trials in {key[1]} layers were lost"
            for key, count in lost.items()
            if count >= self.losses and key[0] not in self.revived and trials[key[1]] - last[key] < self.rest
        }
