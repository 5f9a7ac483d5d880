"""A small decoder transformer that predicts the next token at each position."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from esper.models.transformer import encoder_blocks


class SequenceTransformer(nn.Module):
    """Causal transformer of pre-norm blocks with learned positions (Radford et al. 2019, GPT-2).

    A position sees itself and those before it, so that all positions of a window are trained at once.
    ``dim`` alone scales the network; ``heads``, ``head_dim`` and ``ff`` set the inner widths apart from it:
    see :func:`esper.models.transformer.encoder_blocks`. Embedding and head do not share their weights.

    Module names: ``embed``, ``blocks.0.attention``, ``blocks.0.attention.qkv``, ``blocks.0.attention.proj``,
    ``blocks.0.ff1``, ``blocks.0.ff2``, ``norm``, ``head``.
    """

    def __init__(
        self,
        vocabulary: int,
        length: int,
        dim: int = 32,
        depth: int = 2,
        heads: int | Sequence[int] = 4,
        *,
        ff: int | Sequence[int] | None = None,
        head_dim: int | None = None,
    ) -> None:
        super().__init__()
        if min(vocabulary, length, dim, depth) < 1:
            raise ValueError(
                "vocabulary, length, dim and depth must be at least 1, "
                f"not {vocabulary}, {length}, {dim}, {depth}"
            )
        self.embed = nn.Embedding(vocabulary, dim)
        self.position = nn.Parameter(torch.empty(1, length, dim))
        self.blocks = encoder_blocks(dim, depth, heads, ff, head_dim, causal=True)
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, vocabulary)
        for table in (self.embed.weight, self.position):
            nn.init.trunc_normal_(table, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (N, length), int64 in [0, vocabulary), to logits (N, length, vocabulary)."""
        logits: Tensor = self.head(self.norm(self.blocks(self.embed(x) + self.position)))
        return logits
