"""An average of the weights over the steps of training, which grows with the network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from esper.kasmina.operators import Growth

G = TypeVar("G", bound=Growth)

STATISTICS = ("running_mean", "running_var")
"""Names of buffers that are averaged with the weights that they were gathered under."""


@dataclass(slots=True)
class _Mean:
    """The average of one tensor over the last steps, of which it has seen ``age``."""

    value: Tensor
    age: int = 0


class WeightAverage:
    """Exponential moving averages of parameters and norm statistics: ``decay`` of the old one stays a step.

    A tensor joins at the value that it is born with. Until it has seen enough steps it forgets faster, by
    ``(1 + age) / (10 + age)``, or a kernel on trial would be judged by the weights it came with.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._model = model
        self._decay = decay
        self._means: dict[Tensor, _Mean] = {}

    def follow(self) -> None:
        """Take in what is new in the model, at its value now, and let go of what is gone."""
        self._means = {
            tensor: self._means.get(tensor) or _Mean(tensor.detach().clone())
            for _, tensor in _averaged(self._model)
        }

    def update(self) -> None:
        """Count one optimizer step."""
        by_age: dict[int, tuple[list[Tensor], list[Tensor]]] = {}
        for tensor, mean in self._means.items():
            values, tensors = by_age.setdefault(mean.age, ([], []))
            values.append(mean.value)
            tensors.append(tensor.detach())
            mean.age += 1
        for age, (values, tensors) in by_age.items():
            decay = min(self._decay, (1 + age) / (10 + age))
            get_ema_multi_avg_fn(decay)(values, tensors, age)  # type: ignore[no-untyped-call]  # torch's

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Inside, the model has the averages, and the averages are its own weights. Copies nothing."""
        means = dict(self._means)
        _exchange(means)
        try:
            yield
        finally:
            _exchange(means)

    def grown(self, grow: Callable[[], G]) -> G:
        """Let ``grow`` change the model in place, and the average the same way: one made from averages.

        Neither function changes then. ``grow`` must do the same whenever it is called; it is called twice.
        What it raises is passed on, with everything as it was.
        """
        with self.swapped():
            first = grow()
            born = {name: tensor.detach().clone() for name, tensor in _averaged(self._model)}
            first.undo()
        growth = grow()
        ages = {tensor: mean.age for tensor, mean in self._means.items()}
        self._means = {
            tensor: _Mean(born[name], ages.get(tensor, 0)) for name, tensor in _averaged(self._model)
        }
        return growth

    def means(self) -> dict[Tensor, _Mean]:
        """What there is now, for ``put_back``."""
        return dict(self._means)

    def put_back(self, means: dict[Tensor, _Mean]) -> None:
        """Be as when ``means`` was taken; no step may lie between."""
        self._means = means

    def state(self) -> dict[str, Any]:
        """Averages and their ages by the names of ``model.state_dict()``."""
        self.follow()
        named = {name: self._means[tensor] for name, tensor in _averaged(self._model)}
        return {
            "values": {name: mean.value for name, mean in named.items()},
            "ages": {name: mean.age for name, mean in named.items()},
        }

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Put back what ``state`` returned; a run that was begun without an average starts one."""
        self._means.clear()
        if state is not None:
            values, ages = state["values"], state["ages"]
            for name, tensor in _averaged(self._model):
                copied = tensor.detach().clone().copy_(values[name])
                self._means[tensor] = _Mean(copied, ages[name])
        self.follow()


def grown(average: WeightAverage | None, grow: Callable[[], G]) -> G:
    """What ``grow`` returns, with the ``average``, if there is one, grown too."""
    return grow() if average is None else average.grown(grow)


def _averaged(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What is averaged of ``model``, under each of its names."""
    yield from model.named_parameters(remove_duplicate=False)
    for name, buffer in model.named_buffers(remove_duplicate=False):
        if name.rpartition(".")[2] in STATISTICS:
            yield name, buffer


def _exchange(means: Mapping[Tensor, _Mean]) -> None:
    for tensor, mean in means.items():
        mean.value, tensor.data = tensor.data, mean.value
