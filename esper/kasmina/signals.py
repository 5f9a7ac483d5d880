"""Health signals in the middle of an epoch: those of all layers at once, for whoever watches a run live.

The numbers are those of ``drain``, over the steps that were observed since the last one; nothing is reset.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from esper.kasmina.counters import HIGHEST, LOWEST, MEAN, SQUARED_GRADIENT, VARIANCE
from esper.kasmina.layer import SeededLayer, seeded_layers
from esper.messages import HealthSignal, SeedState

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class LayerSignals:
    """One layer so far: steps that were sampled, the state of each seed, and ``values``, of shape
    (seeds, fields of HealthSignal) in float32."""

    sampled: int
    states: tuple[SeedState, ...]
    values: Floats


def signals_so_far(model: nn.Module) -> dict[str, LayerSignals]:
    """The health of every layer that was observed, by name, with one transfer from each device."""
    seen: dict[torch.device, list[tuple[str, SeededLayer, torch.Tensor]]] = {}
    for name, layer in seeded_layers(model).items():
        if (totals := layer.health.totals()) is not None:
            seen.setdefault(totals.device, []).append((name, layer, totals))
    found: dict[str, LayerSignals] = {}
    for entries in seen.values():
        counters = torch.cat([totals for *_, totals in entries], 1).float().cpu().numpy()
        values, first = _signals([layer for _, layer, _ in entries], counters), 0
        for name, layer, _ in entries:
            states = tuple(seed.state for seed in layer.seed_list)
            found[name] = LayerSignals(layer.health.steps, states, values[first : first + len(states)])
            first += len(states)
    return found


def _signals(layers: Sequence[SeededLayer], totals: Floats) -> Floats:
    """The signals of all seeds of ``layers``, from their counters side by side: (5, features)."""
    sizes = np.array([size for layer in layers for size in layer.out_sizes], np.float32)
    seeds = np.array([len(layer.out_sizes) for layer in layers])
    steps = np.repeat(np.array([layer.health.steps for layer in layers], np.float32), seeds)
    back = np.repeat(np.array([max(layer.health.gradient_steps, 1) for layer in layers], np.float32), seeds)
    starts = np.concatenate(([0], np.cumsum(sizes[:-1]))).astype(np.intp)
    with np.errstate(all="ignore"):
        sums = np.add.reduceat(totals, starts, axis=1)
        variance = sums[VARIANCE] / (sizes * steps)
        dead = (totals[HIGHEST] <= 0) | (totals[HIGHEST] == totals[LOWEST])
        dead_share = np.add.reduceat(dead.astype(np.float32), starts) / sizes
        # The layer's variance is the mean over its features, not over its seeds.
        layer_starts = np.cumsum(seeds) - seeds
        features = np.add.reduceat(sizes, layer_starts)
        of_layer = np.repeat(np.add.reduceat(sums[VARIANCE], layer_starts) / features, seeds) / steps
        varied = np.minimum(1.0, np.sqrt(variance / of_layer))
        health = np.where(np.isfinite(varied), (1.0 - dead_share) * varied, 0.0)
    signals = {
        "activation_mean": sums[MEAN] / (sizes * steps),
        "activation_variance": variance,
        "gradient_norm": np.sqrt(sums[SQUARED_GRADIENT] / back),
        "dead_share": dead_share,
        "latency_ms": np.array([ms for layer in layers for ms in _latencies(layer)], np.float32),
        "health": health,
    }
    return np.stack([signals[name] for name in _FIELDS], axis=1).astype(np.float32, copy=False)


def _latencies(layer: SeededLayer) -> list[float]:
    timed: Mapping[int, float] = layer.health.latencies()
    return [timed.get(index, 0.0) for index in range(len(layer.seed_list))]


_FIELDS = tuple(item.name for item in fields(HealthSignal))
