"""What a growth operator did to a network, and how it is taken back or made again.

An operator changes a network in place: it gives tensors another shape, adds parameters or removes some. Each
Parameter and buffer object stays the same, so that optimizers, hooks and names keep working; only its data is
replaced.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from esper.errors import GraftError

Kept = tuple[int, ...] | None
"""Along one dimension, the positions in the new tensor of the old entries, in order; None: unchanged."""


@dataclass(frozen=True, eq=False)
class Resize:
    """One tensor that changed its shape; the Parameter or buffer object is the one it was before.

    ``kept`` has an entry for each dimension, ``old_shape`` and ``new_shape`` are the shapes at birth.
    """

    tensor: Tensor
    kept: tuple[Kept, ...]
    old_shape: tuple[int, ...]
    new_shape: tuple[int, ...]

    def shrink(self, value: Tensor) -> Tensor:
        """The old entries of ``value``, which has the new shape, as a new tensor of the old shape."""
        for dim, kept in enumerate(self.kept):
            if kept is not None:
                value = value.index_select(dim, torch.tensor(kept, device=value.device))
        return like_layout(value, self.tensor)

    def grow(self, value: Tensor, fill: float | Tensor) -> Tensor:
        """``value``, which has the old shape, elsewhere ``fill``: a number or a tensor that broadcasts."""
        grown = torch.empty(self.new_shape, dtype=value.dtype, device=value.device)
        grown[...] = fill
        grown[grid(self.kept, grown)] = value
        return like_layout(grown, self.tensor)


class Growth:
    """What an operator did to a model, in place.

    Attributes:
        operator: the operator's name, which is that of its replay.
        target: where it grew, for messages and journals.
        resized: the tensors that changed their shape.
        added: parameters that were not there before; the optimizer must take them in.
        removed: parameters that are no longer in the model.
        record: plain JSON data from which ``replay`` makes the same shapes on a fresh model.
        held: what ``carry`` put aside for ``uncarry``.
    """

    def __init__(
        self,
        operator: str,
        target: str,
        *,
        undo: Callable[[], None],
        record: Mapping[str, Any],
        resized: Sequence[Resize] = (),
        added: Sequence[nn.Parameter] = (),
        removed: Sequence[nn.Parameter] = (),
    ) -> None:
        self.operator, self.target = operator, target
        self.resized, self.added, self.removed = tuple(resized), tuple(added), tuple(removed)
        self.record: Mapping[str, Any] = {"operator": operator, "target": target, **record}
        self.held: list[Any] = []
        self._undo = undo
        self._undone = False

    @property
    def parameters_added(self) -> int:
        """Number of parameter elements that the model has more than before."""
        resized = sum(
            math.prod(r.new_shape) - math.prod(r.old_shape)
            for r in self.resized
            if isinstance(r.tensor, nn.Parameter)
        )
        return resized + sum(p.numel() for p in self.added) - sum(p.numel() for p in self.removed)

    def undo(self) -> None:
        """Take the new parts out.

        At birth this restores every tensor, attribute and module bit for bit; later, old parts stay as
        trained.

        Raises:
            GraftError: it was undone before, or a later growth changed the same tensors and must go first.
        """
        if self._undone:
            raise GraftError(f"{self.operator} of {self.target} was undone before", hint="undo it once")
        for resize in self.resized:
            if tuple(resize.tensor.shape) != resize.new_shape:
                raise GraftError(
                    f"{self.operator} of {self.target}: a tensor of shape {resize.new_shape} now has shape "
                    f"{tuple(resize.tensor.shape)}",
                    hint="undo the later growth first",
                )
        self._undo()
        self._undone = True


class Replay(Protocol):
    """Makes the shapes of a recorded growth on a fresh model."""

    def __call__(self, model: nn.Module, record: Mapping[str, Any], *, example: Any) -> Growth:
        """Grow ``model`` as ``record`` says; values are to be loaded afterwards."""


REPLAYS: dict[str, Replay] = {}
"""The replay of each operator by its name."""


def replays(operator: str) -> Callable[[Replay], Replay]:
    """Register the decorated function as the replay of ``operator``."""

    def register(function: Replay) -> Replay:
        REPLAYS[operator] = function
        return function

    return register


def grid(kept: Sequence[Kept], tensor: Tensor) -> tuple[Tensor, ...]:
    """The index that selects the entries at ``kept`` of ``tensor``, as an open mesh."""
    positions = (
        torch.arange(size, device=tensor.device)
        if places is None
        else torch.tensor(places, device=tensor.device, dtype=torch.long)
        for places, size in zip(kept, tensor.shape, strict=True)
    )
    return tuple(
        p.reshape([-1 if i == dim else 1 for i in range(tensor.ndim)]) for dim, p in enumerate(positions)
    )


def like_layout(value: Tensor, tensor: Tensor) -> Tensor:
    """``value`` laid out in memory as ``tensor`` is: channels last where that is, else contiguous."""
    if tensor.ndim == value.ndim and not tensor.is_contiguous():
        for memory_format, ndim in ((torch.channels_last, 4), (torch.channels_last_3d, 5)):
            if value.ndim == ndim and tensor.is_contiguous(memory_format=memory_format):
                return value.contiguous(memory_format=memory_format)
    return value.contiguous()


def set_data(tensor: Tensor, data: Tensor) -> None:
    """Give ``tensor`` other data, of another shape if need be, under the same object.

    Its gradient must be replaced apart. A loss that is still held keeps the old gradient accumulator alive,
    whose shape would be refused in the next backward pass; autograd makes a new one when the type changes,
    so the type changes for a moment.
    """
    other = torch.float32 if data.dtype != torch.float32 else torch.float64
    if tensor.is_floating_point():
        tensor.data = torch.empty(0, dtype=other, device=data.device)
    tensor.data = data


def resize(tensor: Tensor, data: Tensor, kept: Sequence[Kept]) -> Resize:
    """Give ``tensor`` the larger ``data``, in which its entries stand at ``kept``; zeros join a gradient."""
    change = Resize(tensor, tuple(kept), tuple(tensor.shape), tuple(data.shape))
    data = like_layout(data, tensor)
    gradient, tensor.grad = tensor.grad, None
    if gradient is not None:
        gradient = change.grow(gradient, 0.0)
    set_data(tensor, data)
    tensor.grad = gradient
    return change


def shrink(change: Resize) -> None:
    """Take the new entries of ``change`` out of its tensor and of its gradient."""
    tensor = change.tensor
    gradient, tensor.grad = tensor.grad, None
    with torch.no_grad():
        set_data(tensor, change.shrink(tensor.detach()))
        tensor.grad = None if gradient is None else change.shrink(gradient)
