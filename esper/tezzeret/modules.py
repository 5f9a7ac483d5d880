"""Modules of ops that torch.nn lacks. Tracing looks through them, so kernels hold plain torch calls only.

The feature axis is 1 for ``channels`` and the last one else; positions are the axes after batch that are
not it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from esper.messages import Layout


def feature_axis(layout: Layout) -> int:
    """The axis that holds features in ``layout``."""
    return 1 if layout == "channels" else -1


def position_axes(layout: Layout) -> tuple[int, ...]:
    """The axes of time or space in ``layout``."""
    return (2, 3) if layout == "channels" else (1,)


class FeatureWeight(nn.Module):
    """One learned factor a feature, ``initial`` at birth (LayerScale, Touvron et al. 2021, eq. 2)."""

    def __init__(self, features: int, initial: float, layout: Layout) -> None:
        super().__init__()
        self.initial = initial
        trailing = (1, 1) if layout == "channels" else ()
        self.weight = nn.Parameter(torch.empty(features, *trailing))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Sets every factor to its value at birth."""
        nn.init.constant_(self.weight, self.initial)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` with each feature multiplied by its factor."""
        return x * self.weight


class RMSNorm(FeatureWeight):
    """Unit root mean square over the features of each position (Zhang & Sennrich 2019, eq. 4)."""

    def __init__(self, features: int, layout: Layout, eps: float = 1e-6) -> None:
        super().__init__(features, 1.0, layout)
        self.axis = feature_axis(layout)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """``x`` normalised, then multiplied by the learned factors."""
        return x * torch.rsqrt(x.square().mean(self.axis, keepdim=True) + self.eps) * self.weight


class ChannelLayerNorm(nn.LayerNorm):
    """LayerNorm over the channels of each position of (batch, C, H, W) (ConvNeXt, Liu et al. 2022)."""

    def forward(self, x: Tensor) -> Tensor:
        """``x`` normalised over axis 1."""
        last = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return last.permute(0, 3, 1, 2)


class TimeConv(nn.Conv1d):
    """Conv1d over the time axis of (batch, T, F)."""

    def forward(self, x: Tensor) -> Tensor:
        """``x`` convolved along axis 1."""
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class Attention(nn.Module):
    """Scaled dot-product attention over positions, without weights (Vaswani et al. 2017, eq. 1)."""

    def __init__(self, heads: int, layout: Layout) -> None:
        super().__init__()
        self.heads = heads
        self.channels = layout == "channels"

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Values mixed over positions by the similarity of queries and keys; all three of one shape."""
        if self.channels:  # (batch, C, H, W): positions are H * W
            q, k, v = (
                torch.unflatten(each.flatten(2), 1, (self.heads, -1)).transpose(-2, -1)
                for each in (query, key, value)
            )
            return F.scaled_dot_product_attention(q, k, v).transpose(-2, -1).reshape(value.shape)
        q, k, v = (
            torch.unflatten(each, -1, (self.heads, -1)).transpose(1, 2) for each in (query, key, value)
        )
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)


class AttentionPool(nn.Module):
    """Mean over positions weighted by softmax of scores (global context, Cao et al. 2019, eq. 4)."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.channels = layout == "channels"
        self.axes = position_axes(layout)

    def forward(self, x: Tensor, scores: Tensor) -> Tensor:
        """One position: the mean of ``x`` under the softmax of ``scores``, which has one feature."""
        if self.channels:
            weights = torch.softmax(scores.flatten(2), -1).reshape(scores.shape)
        else:
            weights = torch.softmax(scores, 1)
        return (x * weights).sum(self.axes, keepdim=True)


class Fourier(nn.Module):
    """Real part of the unitary Fourier transform over positions and features (Lee-Thorp et al. 2022, eq. 3).

    Computed in float32, since half precision has no transform of every length.
    """

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.axes = (*position_axes(layout), feature_axis(layout))

    def forward(self, x: Tensor) -> Tensor:
        """``x`` mixed over positions and features; same shape and dtype."""
        return torch.real(torch.fft.fftn(x.float(), dim=self.axes, norm="ortho")).to(x.dtype)
