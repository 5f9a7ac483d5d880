"""A multi-layer perceptron, with batch norm where it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn


class MLP(nn.Module):
    """Linear layers with ReLU between them, of ``hidden`` units each.

    ``width``, where given, makes that ``depth`` layers of ``width`` units in place of ``hidden``: one number
    that scales the network. With ``norm`` a BatchNorm stands before each ReLU.

    Module names: ``hidden.0``, ``hidden.1``, ..., ``head``; ``norms.0``, ``norms.1``, ... with ``norm``.
    """

    def __init__(
        self,
        in_features: int,
        hidden: Sequence[int] = (64, 64),
        classes: int = 10,
        *,
        width: int | None = None,
        depth: int = 2,
        norm: bool = False,
    ) -> None:
        super().__init__()
        if width is not None:
            if depth < 0:
                raise ValueError(f"depth must be at least 0, not {depth}")
            hidden = [width] * depth
        if min(in_features, classes, *hidden) < 1:
            raise ValueError(
                "in_features, hidden (or width) and classes must be at least 1, "
                f"not {in_features}, {tuple(hidden)}, {classes}"
            )
        sizes = (in_features, *hidden)
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.norms = nn.ModuleList(nn.BatchNorm1d(size) for size in hidden if norm)
        self.head = nn.Linear(sizes[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Samples (N, ...) of ``in_features`` values each, flattened here, to logits (N, classes)."""
        x = x.flatten(1)
        for index, layer in enumerate(self.hidden):
            x = layer(x)
            if self.norms:
                x = self.norms[index](x)
            x = F.relu(x)
        logits: Tensor = self.head(x)
        return logits
