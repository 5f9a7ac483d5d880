"""The parameters of grafted kernels in the optimizer: each kernel's in a group of its own."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer


class KernelParameters:
    """``lr_scale``: the peak learning rate of kernels over that of the host, the optimizer's first group."""

    def __init__(self, optimizer: Optimizer, lr_scale: float) -> None:
        self._optimizer = optimizer
        self._lr_scale = lr_scale

    def add(self, seed: str, kernel: nn.Module) -> None:
        """Have the parameters of the kernel in ``seed`` trained."""
        peak = self._optimizer.param_groups[0]["peak_lr"] * self._lr_scale
        self._optimizer.add_param_group({"params": list(kernel.parameters()), "peak_lr": peak, "seed": seed})

    def count(self, seed: str) -> int:
        """How many numbers of the kernel in ``seed`` are trained."""
        return sum(parameter.numel() for parameter in self._group(seed)["params"])

    def remove(self, seed: str) -> None:
        """The kernel is gone: its parameters and their moments leave the optimizer with it."""
        group = self._group(seed)
        # By identity: list.remove would compare groups, and with them tensors.
        self._optimizer.param_groups[:] = [g for g in self._optimizer.param_groups if g is not group]
        for parameter in group["params"]:
            self._optimizer.state.pop(parameter, None)

    def _group(self, seed: str) -> dict[str, Any]:
        return next(group for group in self._optimizer.param_groups if group.get("seed") == seed)
