"""Rules of functions of images and series: pooling, resizing, shuffling."""

from __future__ import annotations

from torch import Tensor

from esper.kasmina.operators.calls import Axes, Axis, Call, plain, rule
from esper.kasmina.operators.labels import DATA, Segment, Variable, fresh, pin
from esper.kasmina.operators.rules_pointwise import keeping, operand


@rule(
    "interpolate",
    "upsample",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
    "unfold_images",
    "lp_pool2d",
)
def averaging(call: Call) -> Axes:
    """(N, C, *) to (N, C, *'): each channel alike, linear."""
    return _spatial(call, call.result, mean=True)


@rule(
    "max_pool1d",
    "max_pool2d",
    "max_pool3d",
    "adaptive_max_pool1d",
    "adaptive_max_pool2d",
    "adaptive_max_pool3d",
    "boolean_dispatch",
    "fn",
    "max_pool1d_with_indices",
    "max_pool2d_with_indices",
    "max_pool3d_with_indices",
    "adaptive_max_pool2d_with_indices",
)
def pooling(call: Call) -> Axes | list[Axes]:
    """(N, C, *) to (N, C, *'): each channel alike, not linear."""
    if isinstance(call.result, Tensor):
        return _spatial(call, call.result, mean=False)
    return [_spatial(call, result, mean=False) for result in call.result]


def _spatial(call: Call, result: Tensor, *, mean: bool) -> Axes:
    given = operand(call)
    count = {"1": 1, "2": 2, "3": 3}.get(next((c for c in call.name if c.isdigit()), ""), result.ndim - 2)
    for axis in given[-count:]:
        pin(axis.dim, f"{call.where} treats it as positions")
    stay = keeping(given[:-count], mean=mean, zero=True)
    return (*stay, *(plain(size) for size in result.shape[-count:]))


@rule("pixel_shuffle")
def pixel_shuffle(call: Call) -> Axes:
    """(N, C r r, H, W) to (N, C, H r, W r)."""
    given, r = operand(call), call.get(1, "upscale_factor")
    part = fresh(call.result.shape[-3])
    whole: Segment = (*part[0], Variable(r * r, DATA, data=True))
    call.trace.unify(given[-3].dim, (whole,), call.where)
    return (*given[:-3], Axis(part, zero=given[-3].zero), *(plain(n) for n in call.result.shape[-2:]))
