"""Losses of predictions, the same for one label a sample and for one a position.

Logits are (N, classes) for labels (N,), or (N, T, classes) for labels (N, T).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def mean_loss(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy in nats, averaged over all samples and positions: a scalar with a gradient."""
    return F.cross_entropy(logits.flatten(0, -2), y.flatten())


def sample_losses(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy in nats of each sample, (N,): the mean over its positions where it has several.

    All samples have as many positions, so the mean of these is :func:`mean_loss`.
    """
    losses = F.cross_entropy(logits.flatten(0, -2), y.flatten(), reduction="none").view(y.shape)
    return losses if losses.ndim == 1 else losses.flatten(1).mean(1)
