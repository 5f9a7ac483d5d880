"""A small vision transformer on image patches."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017, arXiv 1706.03762), (N, T, dim) to (N, T, dim).

    One tensor in and one out, with both projections plain ``nn.Linear`` modules that are called as such:
    unlike ``nn.MultiheadAttention``, the whole and each of its parts can be wrapped or hooked.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, dim) to (N, T, dim)."""
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))  # (N, T, 3, heads, dim / heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (N, heads, T, dim / heads)
        y = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.proj(y.transpose(1, 2).flatten(2))
        return out


class EncoderBlock(nn.Module):
    """Pre-norm encoder block: ``x + attention(norm1(x))``, then ``x + ff2(gelu(ff1(norm2(x))))``."""

    def __init__(self, dim: int, heads: int, ff_ratio: int = 4) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.ff1 = nn.Linear(dim, ff_ratio * dim)
        self.ff2 = nn.Linear(ff_ratio * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, dim) to (N, T, dim)."""
        x = x + self.attention(self.norm1(x))
        out: Tensor = x + self.ff2(F.gelu(self.ff1(self.norm2(x))))
        return out


class PatchTransformer(nn.Module):
    """Vision transformer (Dosovitskiy et al. 2021, arXiv 2010.11929) with learned positions.

    Patches are averaged after the last norm instead of read from a class token (Beyer et al. 2022,
    arXiv 2205.01580: as good and simpler at small scale).

    Module names: ``embed`` (a convolution with stride ``patch``), ``blocks.0.attention``,
    ``blocks.0.attention.qkv``, ``blocks.0.attention.proj``, ``blocks.0.ff1``, ``blocks.0.ff2``, ``head``.
    """

    def __init__(
        self,
        image_size: int = 8,
        patch: int = 2,
        dim: int = 32,
        depth: int = 2,
        heads: int = 4,
        in_channels: int = 1,
        classes: int = 10,
    ) -> None:
        super().__init__()
        if min(image_size, patch, dim, depth, heads, in_channels, classes) < 1:
            raise ValueError("every size of a PatchTransformer must be at least 1")
        if image_size % patch:
            raise ValueError(f"patch must divide image_size, but {patch} does not divide {image_size}")
        if dim % heads:
            raise ValueError(f"heads must divide dim, but {heads} does not divide {dim}")
        self.embed = nn.Conv2d(in_channels, dim, patch, stride=patch)
        self.position = nn.Parameter(torch.empty(1, (image_size // patch) ** 2, dim))
        self.blocks = nn.Sequential(*(EncoderBlock(dim, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, classes)
        nn.init.trunc_normal_(self.position, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, in_channels, image_size, image_size) to logits (N, classes)."""
        x = self.embed(x).flatten(2).transpose(1, 2) + self.position  # (N, T, dim)
        logits: Tensor = self.head(self.norm(self.blocks(x)).mean(1))
        return logits
