"""GradMax: give a new kernel the last weight that lets blending it in lower the loss fastest.

A kernel in a seed has no effect at its birth, since its blending weight alpha is 0; its weights are free.
With ``delta`` the gradient of the loss at the seed's chunk of the layer's output and ``k`` what the kernel
gives, the loss falls along alpha at the rate ``-<delta, k>``. Where ``k`` is affine in a weight W, as it is
in that of the kernel's last layer, ``<delta, k> = c + <W, G>`` with ``G = d<delta, k> / dW``, which of all W
of one norm is least at ``W = -|W| G / |G|``. This is the principle of Evci et al. 2022, "GradMax", arXiv
2201.05125: of all new weights of one norm, those that maximise the gradient of what is zero at birth. There
that is a matrix of incoming weights, and a singular value decomposition is needed; here it is one number.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from esper.errors import GraftError
from esper.kasmina.blending import describe, first_tensor
from esper.kasmina.layer import SeededLayer
from esper.kasmina.operators.running import undisturbed

AFFINE = 1e-3
"""By how much of its effect a weight's effect may differ from an affine one: the rounding of float32."""

ROUNDING = 1e-5
"""Changes of the kernel's output below that share of its largest value are none."""


@dataclass(frozen=True, slots=True)
class Steepest:
    """What was set: the weight by its name in the kernel, and d loss / d alpha at 0 before and after.

    Both slopes are of the kernel's own part, in nats: with a lerp blend, the host's part is no matter of it.
    """

    weight: str
    before: float
    after: float


def gradmax(model: nn.Module, layer: SeededLayer, seed_idx: int, loss: Callable[[], Tensor]) -> Steepest:
    """Set the last weight of the kernel in seed ``seed_idx`` of ``layer``, at the norm that it has.

    The last weight is found by what it does, so that programs that run out of sight need no hooks: a tensor
    of two axes or more in which the kernel's output is affine on this input, and whose first row reaches one
    output feature alone. Of several, as two branches that are added have, the steepest is set.
    ``loss`` runs ``model`` on a batch and returns its mean loss. The network runs in eval mode, as it is
    judged; the kernel in train mode, since its norms have seen nothing yet, with the same random numbers in
    each call. Nothing but the weight changes: no gradient, buffer, mode or random state.

    Raises:
        GraftError: the batch does not reach the layer, the kernel fails on it or has no such weight, or the
            weight or its gradient is zero or not finite. Nothing is changed then.
    """
    seed = layer.seed(seed_idx)
    kernel = seed.kernel
    if kernel is None:
        raise GraftError(f"{layer.name}, seed {seed_idx} holds no kernel", hint="graft one first")
    calls = _site(model, layer, seed_idx, loss)
    trial = _Trial(_twin(kernel), calls, layer.geometry.axis)
    found = [(name, weight, trial.gradient(weight)) for name, weight in trial.last_weights()]
    if not found:
        raise GraftError("no weight of the kernel makes its output alone, without a nonlinearity after it")
    name, weight, gradient = max(found, key=lambda one: _steepness(*one[1:]))
    norm, slope = _norm(weight), _norm(gradient)
    if not (0 < norm < math.inf and 0 < slope < math.inf):
        raise GraftError(
            f"no direction of {name} is steepest: its norm is {norm:g}, its gradient's {slope:g}"
        )
    before = trial.slope()
    with torch.no_grad():
        steepest = (gradient.double() * (-norm / slope)).to(weight.dtype)
        after = before + float(torch.sum(gradient.double() * (steepest.double() - weight.double())))
        dict(kernel.named_parameters())[name].copy_(steepest)
    return Steepest(name, before, after)


def _norm(tensor: Tensor) -> float:
    return float(tensor.detach().double().norm())


def _steepness(weight: Tensor, gradient: Tensor) -> float:
    product = _norm(weight) * _norm(gradient)
    return product if math.isfinite(product) else -1.0


def _twin(kernel: nn.Module) -> nn.Module:
    """A copy to try things on, in train mode; the parameters of a copied program must be asked to learn."""
    with torch.no_grad():
        twin = copy.deepcopy(kernel)
    for ours, theirs in zip(kernel.parameters(), twin.parameters(), strict=True):
        theirs.requires_grad_(ours.requires_grad)
    return twin.train()


@dataclass(frozen=True, slots=True)
class _Call:
    """One call of the layer: what the kernel would see, and the loss gradient where its output goes."""

    source: Tensor
    delta: Tensor


def _site(model: nn.Module, layer: SeededLayer, seed_idx: int, loss: Callable[[], Tensor]) -> list[_Call]:
    """The calls of ``layer`` in one pass of ``loss``, as the kernel of ``seed_idx`` would live them."""
    seed, axis = layer.seed(seed_idx), layer.geometry.axis
    sources: list[Tensor] = []
    probes: list[Tensor] = []

    def read(tensor: Tensor, sizes: Sequence[int]) -> None:
        # A copy, since networks may go on in place.
        chunk = tensor.detach().split_with_sizes(list(sizes), axis)[seed_idx]
        sources.append(_samples_first(layer, chunk).clone())

    def before(_: nn.Module, args: Any, kwargs: Any) -> None:
        if seed.site == "parallel":
            read(first_tensor(args, kwargs), layer.in_sizes)

    def from_host(_: nn.Module, __: Any, output: Any) -> None:
        if seed.site == "series":
            read(output[0] if isinstance(output, tuple) else output, layer.out_sizes)

    def after(_: nn.Module, __: Any, output: Any) -> Any:
        y = output[0] if isinstance(output, tuple) else output
        probes.append(torch.zeros_like(y, requires_grad=True))
        probed = y + probes[-1]
        if not isinstance(output, tuple):
            return probed
        rest = (probed, *output[1:])
        return type(output)(*rest) if hasattr(output, "_fields") else rest

    handles = [
        layer.register_forward_pre_hook(before, with_kwargs=True),
        layer.host.register_forward_hook(from_host),
        layer.register_forward_hook(after),
    ]
    try:
        with undisturbed(model, training=False, kernels=True), torch.enable_grad():
            value = loss()
            if not probes:
                raise GraftError(f"this batch does not reach {layer.name}")
            gradients = torch.autograd.grad(value, probes, allow_unused=True, materialize_grads=True)
    finally:
        for handle in handles:
            handle.remove()
    chunks = (g.split_with_sizes(layer.out_sizes, axis)[seed_idx] for g in gradients)
    return [_Call(x, _samples_first(layer, delta)) for x, delta in zip(sources, chunks, strict=True)]


def _samples_first(layer: SeededLayer, tensor: Tensor) -> Tensor:
    return tensor.transpose(0, 1) if layer.geometry.time_first and tensor.ndim == 3 else tensor


class _Trial:
    """A kernel that may be changed at will, and the calls that it would live."""

    def __init__(self, kernel: nn.Module, calls: list[_Call], axis: int) -> None:
        self.kernel = kernel
        self.calls = calls
        self.axis = axis

    def outputs(self) -> list[Tensor]:
        """What the kernel gives in each call, with the same random numbers every time."""
        outputs = []
        for call in self.calls:
            devices = [call.source.device] if call.source.is_cuda else []
            with torch.random.fork_rng(devices=devices):
                torch.default_generator.manual_seed(0)
                for device in devices:
                    torch.cuda.default_generators[device.index].manual_seed(0)
                outputs.append(self._output(call))
        return outputs

    def _output(self, call: _Call) -> Tensor:
        try:
            k = self.kernel(call.source)
        except Exception as error:
            raise GraftError(f"the kernel raises {describe(error)}") from error
        if not isinstance(k, Tensor) or k.shape != call.delta.shape:
            given = tuple(k.shape) if isinstance(k, Tensor) else type(k).__name__
            raise GraftError(f"the kernel gives {given} where {tuple(call.delta.shape)} belongs")
        return k

    def slope(self) -> float:
        """The inner product of what the kernel gives and the loss gradient there."""
        with torch.no_grad():
            pairs = zip(self.outputs(), self.calls, strict=True)
            return sum(float(torch.sum(k.double() * call.delta.double())) for k, call in pairs)

    def gradient(self, weight: Tensor) -> Tensor:
        """d slope / d weight."""
        with torch.enable_grad():
            pairs = zip(self.outputs(), self.calls, strict=True)
            inner = torch.stack([torch.sum(k * call.delta) for k, call in pairs]).sum()
            (gradient,) = torch.autograd.grad(inner, weight)
        return gradient

    def last_weights(self) -> Iterator[tuple[str, Tensor]]:
        """The tensors that make the output, and do it affinely."""
        for name, weight in self.kernel.named_parameters():
            if weight.requires_grad and weight.ndim > 1:
                with torch.no_grad(), self._kept(weight) as born:
                    last = self._is_last(weight, born)
                if last:
                    yield name, weight

    @contextmanager
    def _kept(self, weight: Tensor) -> Iterator[Tensor]:
        born = weight.clone()
        try:
            yield born
        finally:
            weight.copy_(born)

    def _is_last(self, weight: Tensor, born: Tensor) -> bool:
        """Whether f(W + R) - f(W) = f(R) - f(0) for an R of the norm of W, and a row reaches one feature."""
        generator = torch.Generator().manual_seed(0)
        other = torch.randn(weight.shape, generator=generator).to(weight)
        other *= (born.norm() if born.any() else 1.0) / other.norm()
        both, one, rest, none = (self._with(weight, w) for w in (born + other, born, other, 0 * born))
        effect, largest = rest - none, none.abs().max()
        off = (both - one - effect).abs().max()
        if not off <= AFFINE * effect.abs().max() + ROUNDING * largest:
            return False
        row = born.clone()
        row[0] += other[0]
        moved = (self._with(weight, row) - one).abs().amax(0)
        return int((moved > ROUNDING * torch.maximum(largest, moved.max())).sum()) == 1

    def _with(self, weight: Tensor, value: Tensor) -> Tensor:
        """The outputs with that value, one row a position: (positions, features)."""
        weight.copy_(value)
        flat = [k.movedim(self.axis, -1).flatten(0, -2) for k in self.outputs()]
        return torch.cat(flat)
