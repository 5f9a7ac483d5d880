"""Scores of a kernel that was never trained, for when there are no trials to learn from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from esper.messages import Slot

BATCH, EXTENT = 32, 5
_NORM = "Norm"


def proxies(module: nn.Module, slot: Slot, *, seed: int = 0) -> Mapping[str, float]:
    """``naswot``, ``synflow`` and ``gradient_norm`` of a kernel for ``slot``, each larger where better.

    On standard normal input from ``seed``; weights, buffers and mode of ``module`` are afterwards what they
    were. What is not finite counts as the worst there is, -inf.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(_shape(slot), generator=generator)
    state = {name: value.clone() for name, value in module.state_dict().items()}
    was_training = module.training
    module.eval()  # so that batch norm does not move, and dropout drops nothing
    try:
        found = {
            "naswot": naswot(module, x),
            "gradient_norm": gradient_norm(module, x, generator),
            "synflow": synflow(module, x),  # last, since it changes the weights
        }
    finally:
        module.load_state_dict(state)
        module.train(was_training)
        module.zero_grad()
    return {name: value if math.isfinite(value) else -math.inf for name, value in found.items()}


def naswot(module: nn.Module, x: Tensor) -> float:
    """log |det K|, K the agreement of the samples' binary codes.

    Mellor et al. 2021, arXiv:2006.04647, equation 2. The code of a sample is the sign of all that maps and
    norms give for it; with a ReLU after each of them that is the code of the paper. 1e-3 on the diagonal
    keeps equal codes from making it singular.
    """
    codes: list[Tensor] = []

    def keep(_module: nn.Module, _given: object, value: Tensor) -> None:
        codes.append((value.flatten(1) > 0).double())

    with _hooked(module, keep), torch.no_grad():
        module(x)
    if not codes:
        return -math.inf
    code = torch.cat(codes, 1)
    agreement = (code @ code.T + (1 - code) @ (1 - code).T) / code.shape[1]
    return float(torch.linalg.slogdet(agreement + 1e-3 * torch.eye(len(x), dtype=torch.float64))[1])


def synflow(module: nn.Module, x: Tensor) -> float:
    """log of the sum of |weight times gradient|, all weights made positive, where they stay.

    Tanaka et al. 2020, arXiv:2006.05467, as a score of a network by Abdelfattah et al. 2021. The input is all
    ones and the loss the sum of the output (equation 2). Norms pass their input on: of a constant they would
    leave nothing.
    """

    def skip(one: nn.Module, given: tuple[Tensor, ...], _value: Tensor) -> Tensor | None:
        return given[0] if _NORM in type(one).__name__ else None

    with torch.no_grad():
        for parameter in module.parameters():
            parameter.abs_()
    with _hooked(module, skip):
        gradients = _gradients(module, module(torch.ones_like(x[:1])).sum())
    total = sum(float((parameter * gradient).abs().sum()) for parameter, gradient in gradients)
    return math.log(total) if total > 0 else -math.inf


def gradient_norm(module: nn.Module, x: Tensor, generator: torch.Generator) -> float:
    """log of the norm of the gradient of a squared error in the weights.

    Abdelfattah et al. 2021, arXiv:2101.08134, section 3.2. The target is standard normal, since a slot has no
    labels.
    """
    output = module(x)
    target = torch.randn(output.shape, generator=generator)
    gradients = _gradients(module, (output - target).square().mean())
    total = math.sqrt(sum(float(gradient.square().sum()) for _, gradient in gradients))
    return math.log(total) if total > 0 else -math.inf


def _gradients(module: nn.Module, loss: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Each parameter with its gradient, of those that have one."""
    parameters = list(module.parameters())
    if not parameters:
        return []
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [(one.detach(), got) for one, got in zip(parameters, found, strict=True) if got is not None]


@contextmanager
def _hooked(module: nn.Module, hook: Callable[..., object]) -> Iterator[None]:
    """``hook`` on every module within ``module`` that has no modules within it."""
    handles = [
        one.register_forward_hook(hook)
        for one in module.modules()
        if one is not module and not any(True for _ in one.children())
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _shape(slot: Slot) -> tuple[int, ...]:
    if slot.layout == "channels":
        return BATCH, slot.in_features, EXTENT * slot.stride, EXTENT * slot.stride
    return (BATCH, EXTENT, slot.in_features) if slot.layout == "tokens" else (BATCH, slot.in_features)
