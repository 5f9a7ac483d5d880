"""Faults of kernels: how they are recorded on the device, and how they are read.

What Python can see in a forward (an exception, a wrong shape, a wrong dtype) puts the seed into
ERROR_RECOVERY at once. What only the device knows (a non-finite value) is masked there and then, and flagged
in running sums that turn non-finite and stay so; ``pop_faults`` reads them in one transfer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from esper.kasmina.counters import Fault, Place
from esper.kasmina.layer import SeededLayer, seeded_layers
from esper.kasmina.seed import Seed
from esper.messages import SeedState


def pop_faults(model: nn.Module) -> list[Fault]:
    """The faults since the last call; every seed among them is in ERROR_RECOVERY afterwards.

    Call it between ``backward()`` and clipping: gradients of a failed kernel are dropped, so that they reach
    neither a clipping norm nor the optimizer. Reads the device once while seeds run, never otherwise. The
    host's own outputs and gradients need no such call: they are protected in the step itself.
    """
    layers = list(seeded_layers(model).values())
    suspects = [layer for layer in layers if layer.running]
    if suspects and not _all_finite(suspects):
        for layer in suspects:
            for seed in _running(layer):
                if place := _non_finite_place(layer, seed):
                    layer.fail(seed, "non-finite", f"non-finite values at the kernel's {place}")
            layer.probe.sums.clear()
    faults: list[Fault] = []
    for layer in layers:
        if layer.pending_faults or not layer.running:
            layer.probe.sums.clear()  # or the next kernel would be blamed for what is left in them
        for fault in layer.pending_faults:
            faults.append(fault)
            for parameter in layer.seed(fault.seed_idx).kernel_parameters:
                parameter.grad = None
        layer.pending_faults.clear()
    return faults


def repeat_faults(model: nn.Module, elsewhere: Sequence[Fault]) -> list[Fault]:
    """Fail here the kernels that failed in another process, as ``pop_faults`` would; those that still run."""
    layers = seeded_layers(model)
    for fault in elsewhere:
        seed = layers[fault.layer].seed(fault.seed_idx)
        if seed.kernel is not None and seed.state is not SeedState.ERROR_RECOVERY:
            layers[fault.layer].fail(seed, fault.kind, fault.message)
    return pop_faults(model)


def set_loss_scale(model: nn.Module, scale: float) -> None:
    """Tell the layers what the loss of the next forward pass is multiplied by before its backward pass.

    Above 1 a gradient that is not finite is no fault of a kernel. It goes on into the host, so that whoever
    scaled the loss finds it there, and leaves the step out.
    """
    for layer in seeded_layers(model).values():
        layer.probe.loss_scale = scale


def _running(layer: SeededLayer) -> list[Seed]:
    return [layer.seed_list[i] for i in layer.running]


def _gradients(seed: Seed) -> list[torch.Tensor]:
    return [gradient for p in seed.kernel_parameters if (gradient := p.grad) is not None]


def _all_finite(layers: list[SeededLayer]) -> bool:
    """Whether nothing non-finite was seen, read with one transfer from each device."""
    by_device: dict[torch.device, list[torch.Tensor]] = {}
    for layer in layers:
        tensors = [*layer.probe.sums.values()]
        for seed in _running(layer):
            tensors += [] if layer.probe.overflow_expected else _gradients(seed)
        for tensor in tensors:
            by_device.setdefault(tensor.device, []).append(tensor.flatten())
    for group in by_device.values():
        joined = torch.cat(group)
        if not math.isfinite(joined.sum(dtype=torch.promote_types(joined.dtype, torch.float32)).item()):
            return False
    return True


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
    gradients = [] if layer.probe.overflow_expected else _gradients(seed)
    finite = all(bool(gradient.isfinite().all()) for gradient in gradients)
    return "" if finite else "parameter gradients"
