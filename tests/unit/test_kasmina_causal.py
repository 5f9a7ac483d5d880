"""Kernels of a causal network never mix along time."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from esper.kasmina import seeded_layers, wrap
from esper.models import PatchTransformer
from esper.models.sequence import SequenceTransformer


class CausalMultihead(nn.Module):
    """Tokens (N, T, 8) to (N, T, 8), each position from itself and those before it."""

    def __init__(self, *, causal: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.causal = causal

    def forward(self, x):
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1) if self.causal else None
        return self.attention(x, x, x, attn_mask=mask, need_weights=False)[0]


def layouts(model: nn.Module, example: torch.Tensor, **kwargs) -> set[str]:
    wrap(model, example, **kwargs)
    return {layer.layout for layer in seeded_layers(model).values()}


def test_layers_of_a_causal_transformer_take_kernels_of_one_position():
    model = SequenceTransformer(vocabulary=11, length=6, dim=8, depth=1, heads=2)
    assert layouts(model, torch.randint(0, 11, (2, 6)), include=["blocks.*"], seeds=2) == {"features"}


@pytest.mark.parametrize(("causal", "expected"), [(True, "features"), (False, "tokens")])
def test_multihead_attention_takes_kernels_over_time_unless_it_is_causal(causal, expected):
    model = CausalMultihead(causal=causal)
    assert layouts(model, torch.randn(2, 5, 8), seeds=2) == {expected}


def test_layers_that_see_the_whole_image_keep_kernels_over_tokens():
    model = PatchTransformer(dim=8, heads=2, depth=1)
    assert layouts(model, torch.randn(2, 1, 8, 8), include=["blocks.0.ff1"], seeds=2) == {"tokens"}
