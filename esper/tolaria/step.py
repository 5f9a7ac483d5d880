"""One optimizer step: forward, backward, update, of a batch that may be trained in parts."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.optim import Optimizer

from esper.data.losses import mean_loss
from esper.kasmina import pop_faults
from esper.tolaria.averaging import GradientAverage, parts
from esper.tolaria.compiled import CompiledForward
from esper.tolaria.distributed import Group
from esper.tolaria.lifecycle import SeedLifecycle
from esper.tolaria.precision import Precision
from esper.tolaria.weight_average import WeightAverage


class Step:
    """Trains on one batch after another. A kernel that fails is taken out before the update.

    The batch is cut into a part for each process of ``group``, and that into ``accumulate`` parts that are
    run one after another; the gradient is that of the mean over all of it. The host and each kernel are
    clipped apart to ``max_grad_norm``. A step that ``precision`` leaves out counts as none for trials: no
    weight has moved that a kernel is blended in for. ``forward`` calls the model, in a way of its own,
    ``before_update`` is called before a weight changes.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        seeds: SeedLifecycle,
        group: Group,
        *,
        accumulate: int = 1,
        max_grad_norm: float | None = None,
        precision: Precision,
        average: WeightAverage | None = None,
        forward: Callable[[Tensor], Tensor] | None = None,
        before_update: Callable[[], None] = lambda: None,
    ) -> None:
        self._model = model
        self._optimizer = optimizer
        self._seeds = seeds
        self._group = group
        self._accumulate = accumulate
        self._max_grad_norm = max_grad_norm
        self._precision = precision
        self._average = average
        self._forward = forward or model
        self._before_update = before_update

    def __call__(self, x: Tensor, y: Tensor, samples: int) -> Tensor:
        """Step on a batch of so many ``samples``; its mean loss, a scalar.

        ``x`` and ``y`` are the share of this process: all of them where there is one, maybe none.
        """
        self._optimizer.zero_grad(set_to_none=True)
        if self._group.size == self._accumulate == 1:
            loss = self._backward(x, y)
            self._seeds.contain_faults()
        else:
            loss = self._in_parts(x, y, samples)
        self._precision.unscale(self._optimizer)
        if self._max_grad_norm is not None:
            for group in self._optimizer.param_groups:
                nn.utils.clip_grad_norm_(group["params"], self._max_grad_norm)
        self._before_update()
        if self._precision.step(self._optimizer):
            self._seeds.step()
            if self._average is not None:
                self._average.update()
        else:
            self._optimizer.zero_grad(set_to_none=True)  # they overflowed, which is no instability
        return loss

    @property
    def compilations(self) -> int:
        """How often the forward pass was compiled."""
        return self._forward.compilations if isinstance(self._forward, CompiledForward) else 0

    def _backward(self, x: Tensor, y: Tensor) -> Tensor:
        with self._precision.forward():
            loss = mean_loss(self._forward(x), y)
        self._precision.backward(loss)
        return loss.detach()

    def _in_parts(self, x: Tensor, y: Tensor, samples: int) -> Tensor:
        average = GradientAverage(self._model, self._optimizer, self._group)
        faults = []
        for part in parts(len(y), self._accumulate) if len(y) else ():
            loss = self._backward(x[part], y[part])
            faults += pop_faults(self._model)  # which drops their gradients, before they reach a sum
            average.add(loss, len(y[part]) / samples)
        averaged = average.finish(len(faults))
        if averaged.faults:
            agreed = self._seeds.agreed(faults)
            self._seeds.take_out(agreed)
        return averaged.loss
