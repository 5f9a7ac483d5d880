"""Health signals: what each seed's chunk of a layer's output looked like over the sampled steps of an epoch.

Gathered on the device in forwards that are observed, read once an epoch by ``drain``. Observing changes
neither output nor gradient.

``health = alive * varied``, in [0, 1], where ``alive = 1 - dead_share`` and ``varied`` is the standard
deviation of the chunk over that of its layer, at most 1 (each the root of the mean variance over features).
A chunk is healthy if its features respond to the input, and about as much as the rest of the layer; it is 0
when nothing varies or when a value is not finite.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from esper.kasmina.counters import HIGHEST, LOWEST, MEAN, SQUARED_GRADIENT, VARIANCE
from esper.kasmina.layer import SeededLayer, seeded_layers
from esper.messages import HealthSignal, LayerMetrics


def observe(model: nn.Module, on: bool) -> None:
    """Gather health in the forwards that follow, or stop; switch it on for a few batches of an epoch."""
    for layer in seeded_layers(model).values():
        layer.observing = on


def observed(model: nn.Module) -> dict[str, Any]:
    """What was gathered since the last ``drain``, for a checkpoint in the middle of an epoch."""
    return {name: layer.health.state() for name, layer in seeded_layers(model).items()}


def restore_observed(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Put back what ``observed`` returned."""
    device = next(model.parameters()).device
    for name, layer in seeded_layers(model).items():
        layer.health.restore(state[name], device)


def merge_observed(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What ``observed`` returned in each of several processes that trained parts of the same batches, as one.

    Each process saw a gradient of the mean over its part; that of the whole batch is smaller by their number.
    """
    return {name: _merged([state[name] for state in states]) for name in states[0]}


def _merged(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    steps = tuple(sum(state["steps"][i] for state in states) for i in (0, 1))
    timings = [timing for state in states for timing in state["timings"]]
    seen = [state["totals"] for state in states if state["totals"] is not None]
    if not seen:
        return {"steps": steps, "totals": None, "timings": timings}
    stacked = torch.stack([totals.cpu() for totals in seen])
    totals = stacked.sum(0)
    totals[SQUARED_GRADIENT] /= len(states)
    totals[LOWEST], totals[HIGHEST] = stacked[:, LOWEST].amin(0), stacked[:, HIGHEST].amax(0)
    return {"steps": steps, "totals": totals, "timings": timings}


def drain(model: nn.Module) -> dict[str, LayerMetrics]:
    """The metrics of every wrapped layer by name, and start afresh; one transfer from each device.

    A layer that was not observed has an empty ``seed_health`` and ``signals`` and a norm and variance of 0.
    """
    layers = seeded_layers(model)
    totals = _to_host({name: t for name, layer in layers.items() if (t := layer.health.totals()) is not None})
    metrics = {name: _metrics(layer, totals.get(name)) for name, layer in layers.items()}
    for layer in layers.values():
        layer.health.clear()
    return metrics


def _to_host(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """``tensors`` on the CPU in float64, with one transfer for all that share a device."""
    by_device: dict[torch.device, list[str]] = {}
    for name, tensor in tensors.items():
        by_device.setdefault(tensor.device, []).append(name)
    moved = {}
    for names in by_device.values():
        flat = torch.cat([tensors[name].flatten() for name in names]).cpu().double()
        pieces = flat.split_with_sizes([tensors[name].numel() for name in names])
        moved.update({name: piece.view_as(tensors[name]) for name, piece in zip(names, pieces, strict=True)})
    return moved


def _metrics(layer: SeededLayer, totals: torch.Tensor | None) -> LayerMetrics:
    seeds = layer.seed_list
    parallel = not layer.parallel_refusal()
    signals = () if totals is None else _signals(layer, totals)
    return LayerMetrics(
        gradient_norm=math.sqrt(sum(signal.gradient_norm**2 for signal in signals)),
        activation_variance=0.0 if totals is None else float(totals[VARIANCE].mean()) / layer.health.steps,
        seed_health=tuple(signal.health for signal in signals),
        kind=layer.kind,
        parameters=sum(p.numel() for p in layer.parameters()),
        seed_states=tuple(seed.state for seed in seeds),
        parallel_slots=tuple(layer.slot("parallel", seed.index) for seed in seeds) if parallel else (),
        series_slots=tuple(layer.slot("series", seed.index) for seed in seeds),
        signals=signals,
    )


def _signals(layer: SeededLayer, totals: torch.Tensor) -> tuple[HealthSignal, ...]:
    steps, gradient_steps = layer.health.steps, max(layer.health.gradient_steps, 1)
    layer_deviation = math.sqrt(float(totals[VARIANCE].mean()) / steps)
    latencies = layer.health.latencies()
    signals = []
    for index, chunk in enumerate(totals.split_with_sizes(layer.out_sizes, dim=1)):
        variance = float(chunk[VARIANCE].mean()) / steps
        dead = (chunk[HIGHEST] <= 0) | (chunk[HIGHEST] == chunk[LOWEST])
        dead_share = float(dead.double().mean())
        signals.append(
            HealthSignal(
                activation_mean=float(chunk[MEAN].mean()) / steps,
                activation_variance=variance,
                gradient_norm=math.sqrt(float(chunk[SQUARED_GRADIENT].sum()) / gradient_steps),
                dead_share=dead_share,
                latency_ms=latencies.get(index, 0.0),
                health=_health(dead_share, variance, layer_deviation),
            )
        )
    return tuple(signals)


def _health(dead_share: float, variance: float, layer_deviation: float) -> float:
    if not (math.isfinite(variance) and math.isfinite(layer_deviation)) or layer_deviation == 0:
        return 0.0
    return (1.0 - dead_share) * min(1.0, math.sqrt(variance) / layer_deviation)
