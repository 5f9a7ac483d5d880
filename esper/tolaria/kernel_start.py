"""What a kernel starts from when it is grafted: its weights from the library, or GradMax's."""

from __future__ import annotations

from torch import nn

from esper.data.batches import Batches
from esper.data.losses import mean_loss
from esper.kasmina import SeededLayer
from esper.kasmina.operators.gradmax import Steepest, gradmax
from esper.tolaria.evaluation import counting_flops


class SteepestStart:
    """Sets the last weight of grafted kernels by ``gradmax``, on a batch of the training data.

    The batch is the first of the next epoch, so it is the same whenever the graft is made again. FLOPs are
    counted whole: the network's pass, and what the kernel is tried with.
    """

    def __init__(self, model: nn.Module, batches: Batches) -> None:
        self.model = model
        self.batches = batches
        self._flops = 0.0

    def __call__(self, layer: SeededLayer, seed_idx: int, epoch: int) -> Steepest:
        """Set the kernel in that seed before ``epoch``; GraftError when it stays as it is."""
        x, y = self.batches.batch(epoch, 0)
        with counting_flops(x.device) as counter:
            try:
                return gradmax(self.model, layer, seed_idx, lambda: mean_loss(self.model(x), y))
            finally:
                self._flops += counter.get_total_flops()

    def take_flops(self) -> float:
        """FLOPs spent since the last call."""
        flops, self._flops = self._flops, 0.0
        return flops
