"""Blocks of attention and feed-forward layers, and a small vision transformer on image patches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017, arXiv 1706.03762), (N, T, dim) to (N, T, dim).

    One tensor in and one out, with both projections plain ``nn.Linear`` modules that are called as such:
    unlike ``nn.MultiheadAttention``, the whole and each of its parts can be wrapped or hooked. A head is
    ``head_dim`` wide, ``dim / heads`` unless given. Where ``causal``, no position sees a later one.
    """

    def __init__(self, dim: int, heads: int, head_dim: int | None = None, *, causal: bool = False) -> None:
        super().__init__()
        inner = dim if head_dim is None else heads * head_dim
        self.heads = heads
        self.causal = causal
        self.qkv = nn.Linear(dim, 3 * inner)
        self.proj = nn.Linear(inner, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, dim) to (N, T, dim)."""
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))  # (N, T, 3, heads, head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (N, heads, T, head_dim)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        out: Tensor = self.proj(y.transpose(1, 2).flatten(2))
        return out


class EncoderBlock(nn.Module):
    """Pre-norm block: ``x + attention(norm1(x))``, then ``x + ff2(gelu(ff1(norm2(x))))``.

    Between ``ff1`` and ``ff2`` there are ``ff`` units, ``4 * dim`` unless given.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        ff: int | None = None,
        *,
        head_dim: int | None = None,
        causal: bool = False,
    ) -> None:
        super().__init__()
        ff = 4 * dim if ff is None else ff
        self.norm1 = nn.LayerNorm(dim)
        self.attention = Attention(dim, heads, head_dim, causal=causal)
        self.norm2 = nn.LayerNorm(dim)
        self.ff1 = nn.Linear(dim, ff)
        self.ff2 = nn.Linear(ff, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, dim) to (N, T, dim)."""
        x = x + self.attention(self.norm1(x))
        out: Tensor = x + self.ff2(F.gelu(self.ff1(self.norm2(x))))
        return out


class PatchTransformer(nn.Module):
    """Vision transformer (Dosovitskiy et al. 2021, arXiv 2010.11929) with learned positions.

    Patches are averaged after the last norm instead of read from a class token (Beyer et al. 2022,
    arXiv 2205.01580: as good and simpler at small scale).

    ``dim`` alone scales the network. ``heads``, ``head_dim`` and ``ff`` set the inner widths apart from it:
    see :func:`encoder_blocks`.

    Module names: ``embed`` (a convolution with stride ``patch``), ``blocks.0.attention``,
    ``blocks.0.attention.qkv``, ``blocks.0.attention.proj``, ``blocks.0.ff1``, ``blocks.0.ff2``, ``head``.
    """

    def __init__(
        self,
        image_size: int = 8,
        patch: int = 2,
        dim: int = 32,
        depth: int = 2,
        heads: int | Sequence[int] = 4,
        in_channels: int = 1,
        classes: int = 10,
        *,
        ff: int | Sequence[int] | None = None,
        head_dim: int | None = None,
    ) -> None:
        super().__init__()
        if min(image_size, patch, dim, depth, in_channels, classes) < 1:
            raise ValueError("every size of a PatchTransformer must be at least 1")
        if image_size % patch:
            raise ValueError(f"patch must divide image_size, but {patch} does not divide {image_size}")
        self.embed = nn.Conv2d(in_channels, dim, patch, stride=patch)
        self.position = nn.Parameter(torch.empty(1, (image_size // patch) ** 2, dim))
        self.blocks = encoder_blocks(dim, depth, heads, ff, head_dim)
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, classes)
        nn.init.trunc_normal_(self.position, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, in_channels, image_size, image_size) to logits (N, classes)."""
        x = self.embed(x).flatten(2).transpose(1, 2) + self.position  # (N, T, dim)
        logits: Tensor = self.head(self.norm(self.blocks(x)).mean(1))
        return logits


def encoder_blocks(
    dim: int,
    depth: int,
    heads: int | Sequence[int],
    ff: int | Sequence[int] | None = None,
    head_dim: int | None = None,
    *,
    causal: bool = False,
) -> nn.Sequential:
    """``depth`` blocks whose inner widths are those given, (N, T, dim) to (N, T, dim).

    ``heads`` and ``ff`` are one number for all blocks or one a block; ``ff`` is ``4 * dim`` unless given, and
    a head is ``head_dim`` wide, ``dim / heads`` unless given. So any shape that growth can lead to can be
    asked for. Raises ValueError for sizes below 1, for another count than ``depth``, and where ``head_dim``
    is not given and ``heads`` does not divide ``dim``.
    """
    each_heads = _one_a_block("heads", heads, depth)
    each_ff = _one_a_block("ff", 4 * dim if ff is None else ff, depth)
    if head_dim is not None and head_dim < 1:
        raise ValueError(f"head_dim must be at least 1, not {head_dim}")
    for count in each_heads:
        if head_dim is None and dim % count:
            raise ValueError(
                f"heads must divide dim, but {count} does not divide {dim}, and head_dim is not given"
            )
    pairs = zip(each_heads, each_ff, strict=True)
    return nn.Sequential(*(EncoderBlock(dim, h, f, head_dim=head_dim, causal=causal) for h, f in pairs))


def _one_a_block(name: str, value: int | Sequence[int], depth: int) -> Sequence[int]:
    values = [value] * depth if isinstance(value, int) else list(value)
    if len(values) != depth or min(values) < 1:
        raise ValueError(f"{name} must be a number of at least 1, or {depth} of them, one a block: {value}")
    return values
