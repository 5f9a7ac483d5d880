"""Faults of kernels: how they are recorded on the device, and how they are read.

What Python can see in a forward (an exception, a wrong shape, a wrong dtype) puts the seed into
ERROR_RECOVERY at once. What only the device knows (a non-finite value) is masked there and then, and flagged
in running sums that turn non-finite and stay so; ``pop_faults`` reads them in one transfer.
"""

from __future__ import annotations

import torch
from torch import nn

from esper.kasmina.counters import Fault, FaultKind, Place
from esper.kasmina.layer import SeededLayer, seeded_layers
from esper.kasmina.seed import Seed
from esper.messages import SeedState


def fail(layer: SeededLayer, seed: Seed, kind: FaultKind, message: str) -> None:
    """Put ``seed`` into ERROR_RECOVERY and keep the fault for ``pop_faults``."""
    fault = Fault(layer.name, seed.index, seed.kernel_id or "", kind, message, seed.state)
    layer.pending_faults.append(fault)
    seed.transition(SeedState.ERROR_RECOVERY, {"kind": kind, "message": message})


def pop_faults(model: nn.Module) -> list[Fault]:
    """The faults since the last call; every seed among them is in ERROR_RECOVERY afterwards.

    Call it between ``backward()`` and clipping: gradients of a failed kernel are dropped, so that they reach
    neither a clipping norm nor the optimizer. Reads the device once while seeds run, never otherwise. The
    host's own outputs and gradients need no such call: they are protected in the step itself.
    """
    layers = [layer for layer in seeded_layers(model).values() if layer.running or layer.pending_faults]
    suspects = [layer for layer in layers if layer.running]
    if suspects and not _all_finite(suspects):
        for layer in suspects:
            for seed in _running(layer):
                if place := _non_finite_place(layer, seed):
                    fail(layer, seed, "non-finite", f"non-finite values at the kernel's {place}")
    faults = [fault for layer in layers for fault in layer.pending_faults]
    for layer in layers:
        for fault in layer.pending_faults:
            for parameter in _parameters(layer.seed(fault.seed_idx)):
                parameter.grad = None
        layer.pending_faults.clear()
        layer.probe.sums.clear()
    return faults


def _running(layer: SeededLayer) -> list[Seed]:
    return [layer.seed(i) for i in layer.running]


def _parameters(seed: Seed) -> list[nn.Parameter]:
    return [] if seed.kernel is None else list(seed.kernel.parameters())


def _gradients(seed: Seed) -> list[torch.Tensor]:
    return [p.grad for p in _parameters(seed) if p.grad is not None]


def _all_finite(layers: list[SeededLayer]) -> bool:
    """Whether nothing non-finite was seen, read with one transfer from each device."""
    gradients = [g for layer in layers for seed in _running(layer) for g in _gradients(seed)]
    totals = [sums.sum() for layer in layers for sums in layer.probe.sums.values()]
    if gradients:
        totals += [_sum(group) for group in _by_device(gradients)]
    return all(bool(_sum(group).isfinite()) for group in _by_device(totals))


def _by_device(tensors: list[torch.Tensor]) -> list[list[torch.Tensor]]:
    groups: dict[torch.device, list[torch.Tensor]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.device, []).append(tensor)
    return list(groups.values())


def _sum(tensors: list[torch.Tensor]) -> torch.Tensor:
    """The sum over all ``tensors`` of one device: not finite if anything in them is not."""
    return torch.cat([tensor.flatten() for tensor in tensors]).sum(dtype=torch.float64)


def _non_finite_place(layer: SeededLayer, seed: Seed) -> str:
    """Where the kernel of ``seed`` was not finite, or nothing if it was, or if the host itself was not."""
    sums = layer.probe.sums
    if "host" in sums and not bool(sums["host"].isfinite()):
        return ""
    chunks: dict[Place, list[int]] = {"output": layer.out_sizes}
    if seed.site == "parallel":
        chunks["parallel input"] = layer.in_sizes
    else:
        chunks["series input"] = layer.out_sizes
    for place, sizes in chunks.items():
        if place in sums and not bool(sums[place].split_with_sizes(sizes)[seed.index].isfinite().all()):
            return "output" if place == "output" else "input gradient"
    gradients = _gradients(seed)
    finite = all(bool(gradient.isfinite().all()) for gradient in gradients)
    return "" if finite else "parameter gradients"
