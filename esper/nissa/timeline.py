"""A run as its journal tells it, and when its network changed: enough to draw it as it was at any epoch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

from esper.messages import SeedState
from esper.nissa.journal import Event
from esper.nissa.run_records import Epoch
from esper.nissa.run_view import RunView


class SizeChange(NamedTuple):
    """From ``epoch`` on ``layer`` has that many parameters of its own."""

    epoch: int
    layer: str
    parameters: int


class StateChange(NamedTuple):
    """From the end of ``epoch`` on the seed is in ``state``, with that kernel."""

    epoch: int
    layer: str
    seed_idx: int
    state: str
    kernel_id: str | None


class Timeline(RunView):
    """A run and how its network changed; ``generation`` grows when a part of the history is taken back."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, keep_packets=False)
        self._reset()

    def _reset(self) -> None:
        self.sizes: list[SizeChange] = []
        self.states: list[StateChange] = []
        self.growths: list[dict[str, Any]] = []
        self.parameters_at_start: int | None = None
        self.generation = 0
        self.layer_names: dict[str, None] = {}
        self._layer_sizes: dict[str, int] = {}
        self._seed_states: dict[tuple[str, int], str] = {}

    @property
    def cursor(self) -> str:
        """What is known to whoever has read this far."""
        return f"{self._started}.{self.generation}.{self.last.epoch if self.last else -1}"

    @property
    def _started(self) -> int:
        """When, in milliseconds: it tells this journal from one that had its place before."""
        return round(self.started_at.timestamp() * 1000) if self.started_at else 0

    def epoch_after(self, cursor: str | None) -> int:
        """The first epoch that is to be told to whoever is at ``cursor``: the last one it knows may have had
        more to say. ValueError when it is no cursor.
        """
        if cursor is None:
            return 0
        match = re.fullmatch(r"(\d{1,15})\.(\d{1,9})\.(-1|\d{1,9})", cursor, re.ASCII)
        if match is None:
            raise ValueError("not a cursor")
        started, generation, epoch = map(int, match.groups())
        known = (started, generation) == (self._started, self.generation)
        known = known and self.last is not None and epoch <= self.last.epoch
        return max(0, epoch) if known else 0

    def _start_over_if_replaced(self) -> None:
        restarts = self._reader.restarts
        changed = restarts != self._restarts
        super()._start_over_if_replaced()
        if changed:
            self._reset()

    def _apply(self, event: Event) -> None:
        misunderstood = self._misunderstood
        super()._apply(event)
        if self._misunderstood != misunderstood:
            return
        match event["event"]:
            case "run_started":
                self.layer_names.update(dict.fromkeys(self.layers))
                if self.parameters_at_start is None:
                    self.parameters_at_start = self.parameters
            case "seed":
                step = self.transitions[-1]
                self._note_state(step.epoch, step.layer, step.seed_idx)
            case "epoch":
                self._note_epoch(self.epochs[-1])
            case "growth":
                self._note_growth(event.get("report"))

    def _note_growth(self, report: Any) -> None:
        try:
            numbers = {name: int(report[name]) for name in ("epoch", "parameters")}
        except (KeyError, TypeError, ValueError):
            self._misunderstood += 1
        else:
            self.growths.append({**report, **numbers})

    def _note_epoch(self, epoch: Epoch) -> None:
        self.layer_names.update(dict.fromkeys(epoch.packet["layer_metrics"]))
        for layer, metrics in epoch.packet["layer_metrics"].items():
            parameters = metrics.get("parameters")
            if isinstance(parameters, int) and self._layer_sizes.get(layer) != parameters:
                self._layer_sizes[layer] = parameters
                self.sizes.append(SizeChange(epoch.epoch, layer, parameters))
            for seed_idx in range(len(self.seeds.get(layer, ()))):
                self._note_state(epoch.epoch, layer, seed_idx)

    def _note_state(self, epoch: int, layer: str, seed_idx: int) -> None:
        self.layer_names[layer] = None
        seed = self.seeds[layer][seed_idx]
        if self._seed_states.get((layer, seed_idx), SeedState.DORMANT.value) != seed.state:
            self._seed_states[layer, seed_idx] = seed.state
            self.states.append(StateChange(epoch, layer, seed_idx, seed.state, seed.kernel_id))

    def _forget_after(self, epoch: int) -> None:
        super()._forget_after(epoch)
        self.generation += 1
        self.sizes = [change for change in self.sizes if change.epoch <= epoch]
        self.states = [change for change in self.states if change.epoch <= epoch]
        self.growths = [growth for growth in self.growths if growth["epoch"] <= epoch]
        self._layer_sizes = {change.layer: change.parameters for change in self.sizes}
        self._seed_states = {(change.layer, change.seed_idx): change.state for change in self.states}
