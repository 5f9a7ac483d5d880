"""Random networks for tests of growth: small mixes of most kinds of layers, as users write them."""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Residual(nn.Module):
    """x + f(x), with a norm or without."""

    def __init__(self, c: int, hidden: int, norm: bool) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(c, hidden, 3, padding=1), nn.Conv2d(hidden, c, 1)
        self.na = nn.BatchNorm2d(hidden) if norm else nn.Identity()
        self.nb = nn.BatchNorm2d(c) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.nb(self.b(F.relu(self.na(self.a(x))))))


class Branches(nn.Module):
    """Two branches side by side."""

    def __init__(self, c: int, left: int, right: int) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(c, left, 1), nn.Conv2d(c, right, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([torch.relu(self.left(x)), self.right(x)], dim=1)


class Dense(nn.Module):
    """The input goes on beside what was made from it."""

    def __init__(self, c: int, more: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c, more, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x, self.conv(x).relu_()), 1)


class Gate(nn.Module):
    """Squeeze and excite."""

    def __init__(self, c: int, hidden: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(c, hidden), nn.Linear(hidden, c)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3))))))
        return x * gate[:, :, None, None]


class Shuffle(nn.Module):
    """Half of the channels pass by; the rest is worked on; then both are interleaved."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c // 2, c // 2, 3, padding=1, groups=c // 2)

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        x = torch.cat([a, self.conv(b)], 1)
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


class Attention(nn.Module):
    """Multi-head attention with one projection, its head count an attribute."""

    def __init__(self, dim: int, heads: int, size: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(dim, 3 * heads * size), nn.Linear(heads * size, dim)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, -1))


class Block(nn.Module):
    """Pre-norm encoder block with a plain or a gated feed-forward part."""

    def __init__(self, dim: int, rng: random.Random, norm: type[nn.Module]) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm(dim), norm(dim)
        self.attention: nn.Module
        if rng.random() < 0.5:
            self.attention = Attention(dim, rng.choice([1, 2]), 2)
        else:
            self.attention = nn.MultiheadAttention(dim, 2, batch_first=True)
        self.gated = rng.random() < 0.5
        self.up, self.down = nn.Linear(dim, 6), nn.Linear(3 if self.gated else 6, dim)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        if isinstance(self.attention, nn.MultiheadAttention):
            x = x + self.attention(h, h, h, need_weights=False)[0]
        else:
            x = x + self.attention(h)
        h = self.up(self.norm2(x))
        return x + self.down(F.glu(h) if self.gated else F.gelu(h))


class RandomNetwork(nn.Module):
    """Images (N, 2, 6, 6) or token indices (N, 5), through random parts, to (N, 3).

    ``exact`` leaves out norms, attention and everything else that rounds.
    """

    def __init__(self, seed: int, *, exact: bool = False) -> None:
        super().__init__()
        rng = random.Random(seed)
        torch.manual_seed(seed)
        self.exact = exact
        self.tokens = not exact and rng.random() < 0.2
        self.parts = nn.ModuleList()
        c = 4
        if self.tokens:
            self.stem: nn.Module = nn.Embedding(7, c)
        else:
            self.stem = nn.Conv2d(2, c, 3, padding=1)
            for _ in range(rng.randint(1, 3)):
                part, c = self._part(c, rng)
                self.parts.append(part)
        self.head = rng.choice(["flatten", "pool"] if exact else ["mean", "flatten", "tokens"])
        if self.tokens or self.head == "tokens":
            self._encoder(c, rng)
        positions = 5 if self.tokens else self._size() ** 2
        flat = c * positions if self.head == "flatten" else c
        self.hidden, self.out = nn.Linear(flat, 5), nn.Linear(5, 3)

    def _size(self) -> int:
        with torch.no_grad():
            x = self.stem(torch.zeros(2, 2, 6, 6))
            for part in self.parts:
                x = part(x)
        return x.shape[-1]

    def _part(self, c: int, rng: random.Random) -> tuple[nn.Module, int]:
        kinds = ["residual", "branches", "dense", "depthwise", "grouped", "pool", "shuffle", "transposed"]
        kinds += [] if self.exact else ["gate", "bn", "gn", "in", "residual-bn"]
        kind = rng.choice(kinds)
        n = rng.choice([4, 6])
        if kind.startswith("residual"):
            return Residual(c, n, kind.endswith("bn")), c
        if kind == "branches":
            return Branches(c, n, 2), n + 2
        if kind == "dense":
            return Dense(c, 2), c + 2
        if kind == "depthwise":
            return nn.Sequential(
                nn.Conv2d(c, 2 * c, 3, padding=1, groups=c), nn.ReLU(), nn.Conv2d(2 * c, n, 1)
            ), n
        if kind == "grouped":
            return nn.Sequential(nn.Conv2d(c, n, 1, groups=2), nn.ReLU6()), n
        if kind == "pool":
            return nn.MaxPool2d(2, 1), c
        if kind == "shuffle":
            return Shuffle(c), c
        if kind == "transposed":
            return nn.ConvTranspose2d(c, n, 2, groups=rng.choice([1, 2])), n
        if kind == "gate":
            return Gate(c, 3), c
        norm: nn.Module
        if kind == "bn":
            norm = nn.BatchNorm2d(n)
        else:
            norm = nn.GroupNorm(2, n) if kind == "gn" else nn.InstanceNorm2d(n, affine=rng.random() < 0.5)
        return nn.Sequential(nn.Conv2d(c, n, 3, padding=1), norm, nn.SiLU()), n

    def _encoder(self, c: int, rng: random.Random) -> None:
        norm = rng.choice([nn.LayerNorm, nn.RMSNorm])
        positions = 5 if self.tokens else self._size() ** 2
        self.inlet = nn.Linear(c, c)
        self.position = nn.Parameter(0.1 * torch.randn(1, positions, c))
        self.cls = (
            nn.Parameter(torch.randn(1, 1, c)) if rng.random() < 0.5 and self.head != "flatten" else None
        )
        self.block, self.norm = Block(c, rng, norm), norm(c)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for part in self.parts:
            x = part(x)
        if hasattr(self, "block"):
            x = x if self.tokens else x.flatten(2).transpose(1, 2)
            x = self.inlet(x) + self.position
            if self.cls is not None:
                x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], dim=1)
            x = self.norm(self.block(x))
            x = x.flatten(1) if self.head == "flatten" else x[:, 0] if self.cls is not None else x.mean(1)
        elif self.head == "flatten":
            x = x.flatten(1)
        else:
            x = x.mean((2, 3)) if self.head == "mean" else F.adaptive_max_pool2d(x, 1).flatten(1)
        return self.out(F.relu(self.hidden(x)))

    def example(self) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        if self.tokens:
            return torch.randint(0, 7, (3, 5), generator=generator)
        x = torch.randn(3, 2, 6, 6, generator=generator, dtype=torch.float64)
        return (4 * x).round() if self.exact else x
