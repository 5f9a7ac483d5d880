"""Fossilise: fold a kept kernel into the weights of its host, so that the growth costs nothing any more.

It can be done where the kernel is affine (no nonlinearity, no norm, no dropout) and its matrix or stencil
fits the host's. With a host ``y = W x + b``, a kernel ``k = K x_i + c`` (parallel) or ``k = K y_i + c``
(series) and blending weight a, the rows of chunk i become (residual; lerp scales the host's part by 1 - a)::

    parallel   W_i + a K (in the columns of chunk i),   b_i + a c
    series     (I + a K) W_i,                           (I + a K) b_i + a c
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from esper.errors import GraftError
from esper.kasmina.layer import SeededLayer
from esper.kasmina.operators.operator import Growth
from esper.kasmina.seed import Seed
from esper.messages import Blend, SeedState, Site

Host = nn.Linear | nn.Conv2d
_HINT = "leave the kernel in its seed"


@dataclass(frozen=True, slots=True)
class Affine:
    """A kernel as ``K x + c``, in float64: ``matrix`` (out, in, *window) laid out as the host's weight."""

    matrix: Tensor
    offset: Tensor


def fold(layer: SeededLayer, seed_idx: int) -> Growth:
    """Fold the kernel of seed ``seed_idx`` into the host of ``layer``, in place; the seed is dormant again.

    The host's parameters stay the same objects; ``removed`` are the kernel's. ``undo`` puts the kernel back:
    at birth bit for bit, and after training with the host as trained, which only a parallel kernel in a
    residual blend allows. No shape changes, so there is nothing to replay.

    Raises:
        GraftError: the seed is not FOSSILIZED, the host is neither ``nn.Linear`` nor a plain ``nn.Conv2d``,
            or the kernel is not affine or does not fit; the layer is unchanged then.
    """
    seed, where = layer.seed(seed_idx), f"{layer.name}, seed {seed_idx}"
    if seed.state is not SeedState.FOSSILIZED or seed.kernel is None or seed.alpha is None:
        raise GraftError(
            f"{where} is {seed.state}: only a kept kernel is folded", hint="wait for the verdict"
        )
    host = _plain_host(layer, where)
    with torch.no_grad():  # a copy of a TorchScript kernel is recorded otherwise, and has no leaves
        kernel = copy.deepcopy(seed.kernel).double().eval()
    affine = _affine(layer, seed, kernel, host)
    _check_affine(kernel, affine, host, seed, where)
    weight, bias = _folded(layer, seed, host, affine)
    if bias is not None and host.bias is None and bool(bias.any()):
        raise GraftError(f"{where}: the host has no bias to take the kernel's", hint=_HINT)
    return _commit(layer, seed, host, (weight, bias), where)


def _plain_host(layer: SeededLayer, where: str) -> Host:
    host = layer.host
    if isinstance(host, nn.Linear):
        return host
    if isinstance(host, nn.Conv2d):
        odd = host.groups != 1 or host.padding_mode != "zeros" or host.dilation != (1, 1)
        if odd or isinstance(host.padding, str) or len(set(host.stride)) != 1:
            raise GraftError(
                f"{where}: the host is a grouped, dilated or unevenly strided convolution", hint=_HINT
            )
        return host
    raise GraftError(f"{where}: a {type(host).__name__} has no one matrix to fold into", hint=_HINT)


def _frame(host: Host, seed: Seed) -> tuple[int, int, tuple[int, int], tuple[int, int]]:
    """Of a convolution: image size, stride, window and padding that the kernel has to fit."""
    assert isinstance(host, nn.Conv2d)
    if seed.site == "series":  # it runs on the host's output: only a 1x1 one leaves the host's window alone
        return 5, 1, (1, 1), (0, 0)
    height, width = (int(size) for size in host.kernel_size)
    stride, padding = int(host.stride[0]), host.padding
    assert not isinstance(padding, str)
    return stride * (2 * max(height, width) + 3), stride, (height, width), (int(padding[0]), int(padding[1]))


@torch.no_grad()
def _affine(layer: SeededLayer, seed: Seed, kernel: nn.Module, host: Host) -> Affine:
    """Read ``K`` and ``c`` off the kernel's answers to zero and to unit inputs."""
    features = layer.slot(seed.site, seed.index).in_features
    if isinstance(host, nn.Linear):
        lead = (1,) if layer.layout == "tokens" else ()
        units = torch.eye(features, dtype=torch.float64).reshape(features, *lead, features)
        offset = kernel(torch.zeros_like(units[:1])).reshape(-1)
        return Affine((kernel(units).reshape(features, -1) - offset).T, offset)
    size, stride, window, padding = _frame(host, seed)
    centre = (size // stride) // 2
    rows = [(u, v) for u in range(window[0]) for v in range(window[1])]
    units = torch.zeros(features, len(rows), features, size, size, dtype=torch.float64)
    for place, (u, v) in enumerate(rows):
        y, x = centre * stride + u - padding[0], centre * stride + v - padding[1]
        units[torch.arange(features), place, torch.arange(features), y, x] = 1.0
    offset = kernel(torch.zeros_like(units[0, :1]))[0, :, centre, centre]
    answers = kernel(units.flatten(0, 1))[:, :, centre, centre] - offset
    matrix = answers.reshape(features, *window, -1).permute(3, 0, 1, 2)
    return Affine(matrix.contiguous(), offset)


@torch.no_grad()
def _check_affine(kernel: nn.Module, affine: Affine, host: Host, seed: Seed, where: str) -> None:
    """Compare kernel and ``K x + c`` on random inputs of several sizes, in eval and train mode."""
    generator = torch.Generator().manual_seed(0)
    for training in (False, True):
        probed = copy.deepcopy(kernel).train(training)
        for scale in (1.0, 30.0):
            x = _sample(affine, host, seed, generator) * scale
            try:
                with torch.random.fork_rng():
                    answer = probed(x)
                expected = _apply(affine, host, seed, x)
            except RuntimeError as error:
                raise GraftError(f"{where}: {str(error).splitlines()[0]}", hint=_HINT) from error
            if answer.shape != expected.shape or _distance(answer, expected) > 1e-9:
                raise GraftError(
                    f"{where}: the kernel is not affine, or reaches beyond the host's window", hint=_HINT
                )


def _sample(affine: Affine, host: Host, seed: Seed, generator: torch.Generator) -> Tensor:
    features = affine.matrix.shape[1]
    if isinstance(host, nn.Linear):
        shape: tuple[int, ...] = (3, 4, features)
    else:
        size = _frame(host, seed)[0]
        shape = (2, features, size, size + _frame(host, seed)[1])
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _apply(affine: Affine, host: Host, seed: Seed, x: Tensor) -> Tensor:
    if isinstance(host, nn.Linear):
        return nn.functional.linear(x, affine.matrix, affine.offset)
    _, stride, _, padding = _frame(host, seed)
    return nn.functional.conv2d(x, affine.matrix, affine.offset, stride, padding)


def _distance(answer: Tensor, expected: Tensor) -> float:
    """The largest difference over the largest value; infinite when anything is not finite."""
    scale = float(expected.abs().max()) + 1e-300
    distance = float((answer - expected).abs().max()) / scale
    return distance if distance == distance else float("inf")


@torch.no_grad()
def _folded(layer: SeededLayer, seed: Seed, host: Host, affine: Affine) -> tuple[Tensor, Tensor | None]:
    """The host's weight and bias with the kernel inside, in float64; no bias where there is none to add."""
    assert seed.alpha is not None
    alpha = float(seed.alpha)
    keep = 1.0 - alpha if seed.blend == "lerp" else 1.0
    weight = host.weight.detach().double().clone()
    bias = weight.new_zeros(len(weight)) if host.bias is None else host.bias.detach().double().clone()
    first = sum(layer.out_sizes[: seed.index])
    rows = slice(first, first + layer.out_sizes[seed.index])
    if seed.site == "parallel":
        start = sum(layer.in_sizes[: seed.index])
        weight[rows] *= keep
        weight[rows, start : start + layer.in_sizes[seed.index]] += alpha * affine.matrix
        bias[rows] = keep * bias[rows] + alpha * affine.offset
        return weight, bias
    square = affine.matrix.reshape(affine.matrix.shape[:2])
    mixed = keep * torch.eye(len(square), dtype=torch.float64) + alpha * square
    weight[rows] = (mixed @ weight[rows].flatten(1)).view_as(weight[rows])
    bias[rows] = mixed @ bias[rows] + alpha * affine.offset
    return weight, bias


@torch.no_grad()
def _commit(
    layer: SeededLayer, seed: Seed, host: Host, folded: tuple[Tensor, Tensor | None], where: str
) -> Growth:
    """Put the folded weights in, compare outputs, and take the kernel out; all or nothing."""
    assert seed.kernel is not None
    assert seed.alpha is not None
    tensors = [(p, new) for p, new in zip((host.weight, host.bias), folded, strict=True) if p is not None]
    before = [(p, p.detach().clone()) for p, _ in tensors]
    x = _layer_input(layer, host)
    expected = layer(x)
    for parameter, new in tensors:
        assert new is not None
        parameter.copy_(new)
    after = [(p, p.detach().clone()) for p, _ in tensors]
    seed.enabled = False
    error = _distance(layer(x), expected)
    seed.enabled = True
    try:
        seed.transition(SeedState.DORMANT, {"folded_error": error})
    except GraftError as refusal:
        for parameter, old in before:
            parameter.copy_(old)
        raise GraftError(f"{where}: folded, its output differs by {error:.2g}", hint=_HINT) from refusal
    held: tuple[nn.Module, str, Site, Blend, Tensor]
    held = (seed.kernel, str(seed.kernel_id), seed.site, seed.blend, seed.alpha)
    removed = seed.kernel_parameters
    seed.reset()

    def undo() -> None:
        _unfold(seed, held, before, after, where)

    record = {"seed_idx": seed.index, "error": error}
    return Growth("fold", layer.name, undo=undo, record=record, removed=removed)


def _layer_input(layer: SeededLayer, host: Host) -> Tensor:
    like, features = host.weight, layer.geometry.in_features
    shape = {"features": (4, features), "tokens": (2, 3, features), "channels": (2, features, 24, 24)}
    generator = torch.Generator().manual_seed(1)
    return torch.randn(shape[layer.layout], generator=generator).to(like.device, like.dtype)


@torch.no_grad()
def _unfold(
    seed: Seed,
    held: tuple[nn.Module, str, Site, Blend, Tensor],
    before: list[tuple[Tensor, Tensor]],
    after: list[tuple[Tensor, Tensor]],
    where: str,
) -> None:
    """Put the kernel back, and take its share out of the host."""
    kernel, kernel_id, site, blend, alpha = held
    trained = any(not torch.equal(p, folded) for p, folded in after)
    if seed.kernel is not None or (trained and (site, blend) != ("parallel", "residual")):
        raise GraftError(f"{where}: the fold cannot be undone any more", hint="go back to a checkpoint")
    for (parameter, old), (_, folded) in zip(before, after, strict=True):
        parameter.copy_(old if not trained else parameter - (folded - old))
    seed.hold(kernel, kernel_id, site, blend, alpha)
    seed.alpha = alpha
    seed.restore(SeedState.FOSSILIZED)
