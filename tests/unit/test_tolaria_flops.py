"""FLOPs are counted whole, attention included."""

from __future__ import annotations

import pytest
import torch

from esper.models.transformer import PatchTransformer
from esper.tolaria.evaluation import count_flops


def test_attention_is_counted():
    dim, tokens = 8, 16
    model = PatchTransformer(dim=dim, heads=2, depth=1)
    counted = count_flops(model, torch.randn(2, 1, 8, 8), torch.tensor([1, 2]))
    embed = 2 * tokens * 4 * dim
    projections = 2 * tokens * dim * (3 * dim + dim)
    scores_and_values = 2 * (2 * tokens * tokens * dim)
    feed_forward = 2 * (2 * tokens * dim * 4 * dim)
    head = 2 * dim * 10
    assert counted.forward == embed + projections + scores_and_values + feed_forward + head
    assert counted.training == pytest.approx(3 * counted.forward, rel=0.05)
