"""Whether a compiled kernel does what its blueprint says, and how long it takes.

Every check runs the program as a library would load it, from its bytes, against the eager network that it
was made from.
"""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from esper.messages import Slot
from esper.tezzeret.examples import default_transform, example
from esper.tezzeret.randomness import seeded

TOLERANCE = {torch.float32: (1e-4, 1e-5), torch.float64: (1e-7, 1e-8), torch.bfloat16: (5e-2, 5e-2)}
"""Relative and absolute tolerance of program against eager network; the absolute one is of the largest
entry. Fourier ops compute in float32, hence the loose float64."""

SIZES = ((2, 8), (3, 5))
"""The (batch, extent) pairs that are tried; the second is odd, so that strides must round up."""

RUNS = 4
"""TorchScript profiles its first runs and runs optimised code later: all of them must agree."""

LATENCY_INPUT = (16, 8)
LATENCY_RUNS = 9


class ValidationFailure(Exception):
    """A program that is not what its blueprint says."""


@dataclass(frozen=True, slots=True)
class Latency:
    """Median milliseconds of a forward pass, and those over the slot's default transform's."""

    milliseconds: float
    ratio: float


def validate(program: nn.Module, eager: nn.Module, slot: Slot, *, seed: int = 0) -> None:
    """Raises ``ValidationFailure`` on the first check that ``program`` fails.

    Checked at two batch sizes and two extents, in train and in eval mode: shape and dtype of the output;
    outputs and gradients finite and equal to those of ``eager`` within ``TOLERANCE`` (in train mode only
    where ``eager`` draws no random numbers); a gradient for every parameter; the same output twice. Weights
    and buffers of both are afterwards what they were.
    """
    state, origin = program.state_dict(), eager.state_dict()
    _require(state.keys() == origin.keys(), "its weights have other names than its blueprint's")
    for name, value in origin.items():
        _require(torch.equal(state[name], value), f"the weight {name} did not survive saving and loading")
    made, wanted = _Tried(program), _Tried(eager)
    for training in (False, True):
        program.train(training)
        eager.train(training)
        for batch, extent in SIZES:
            _check_size(made, wanted, slot, _input(program, slot, (batch, extent), seed), seed)


def measure_latency(program: nn.Module, slot: Slot, *, seed: int = 0) -> Latency:
    """Forward passes without gradients on ``LATENCY_INPUT``, in turns with the slot's default transform."""
    x = _input(program, slot, LATENCY_INPUT, seed)
    default = default_transform(slot).to(x)
    program.eval()
    times: dict[nn.Module, list[float]] = {program: [], default: []}
    with torch.no_grad():
        for _ in range(RUNS + LATENCY_RUNS):
            for module, measured in times.items():
                measured.append(_milliseconds(module, x))
    kernel, usual = (statistics.median(measured[RUNS:]) for measured in times.values())
    return Latency(kernel, kernel / usual)


class _Tried:
    """A module that is run, and has afterwards the weights and buffers that it had.

    What it has is asked for once: of a script module that takes longer than to run it.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._state = module.state_dict()
        self._origin = {name: value.clone() for name, value in self._state.items()}
        self._parameters = dict(module.named_parameters())
        self.drew = False
        """Whether the last run drew random numbers."""

    def run(self, x: Tensor, seed: int) -> dict[str, Tensor]:
        """The output, and the gradient of a random projection of it in the input and the parameters."""
        x = x.detach().requires_grad_()
        with seeded(seed, x.device) as drawn:
            output = self._module(x)
            self.drew = drawn()
        projection = torch.randn(output.shape, generator=torch.Generator().manual_seed(seed)).to(output)
        loss = (output * projection).sum() / math.sqrt(output.numel())
        gradients = torch.autograd.grad(loss, [x, *self._parameters.values()], allow_unused=True)
        for name, value in self._origin.items():
            self._state[name].copy_(value)  # batch norm has moved its statistics
        results = {"output": output.detach()}
        for name, gradient in zip(["the input", *self._parameters], gradients, strict=True):
            _require(gradient is not None, f"{name} gets no gradient")
            results[f"the gradient of {name}"] = gradient
        return results


def _check_size(program: _Tried, eager: _Tried, slot: Slot, x: Tensor, seed: int) -> None:
    size = "x".join(map(str, x.shape))
    wanted = eager.run(x, seed)
    random = eager.drew and not torch.equal(eager.run(x, seed + 1)["output"], wanted["output"])
    made, checked = program.run(x, seed), None
    for _ in range(RUNS - 1):
        previous, made = made, program.run(x, seed)
        if checked is not None and all(torch.equal(value, checked[name]) for name, value in made.items()):
            continue  # not a number is equal to none
        output = made["output"]
        _require(tuple(output.shape) == _output_shape(slot, x), f"input {size} gave {tuple(output.shape)}")
        _require(output.dtype == x.dtype, f"input of {x.dtype} gave {output.dtype}")
        for name, value in made.items():
            _require(bool(value.isfinite().all()), f"{name} for input {size} is not finite")
            _require(bool(value.any()), f"{name} for input {size} is zero everywhere")
            if not random:
                _require_close(value, wanted[name], f"{name} for input {size}")
        checked = made
    _require(torch.equal(previous["output"], made["output"]), f"two runs on one input {size} differ")


def _input(module: nn.Module, slot: Slot, size: tuple[int, int], seed: int) -> Tensor:
    like = next(module.parameters(), torch.empty(0))
    return example(slot, *size, generator=torch.Generator().manual_seed(seed)).to(like)


def _output_shape(slot: Slot, x: Tensor) -> tuple[int, ...]:
    if slot.layout != "channels":
        return (*x.shape[:-1], slot.out_features)
    return (x.shape[0], slot.out_features, *(-(-extent // slot.stride) for extent in x.shape[2:]))


def _require(condition: bool, failure: str) -> None:
    if not condition:
        raise ValidationFailure(failure)


def _require_close(made: Tensor, wanted: Tensor, what: str) -> None:
    relative, absolute = TOLERANCE[wanted.dtype]
    largest = float(wanted.abs().max())
    excess = (made - wanted).abs() - relative * wanted.abs()
    difference = float((made - wanted).abs().max())
    agrees = float(excess.max()) <= absolute * max(1.0, largest)
    _require(agrees, f"{what} differs from eager by {difference:.2g}")


def _milliseconds(module: nn.Module, x: Tensor) -> float:
    start = time.perf_counter()
    module(x)
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return (time.perf_counter() - start) * 1e3
