"""Rules of functions that work position by position, or reduce dimensions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from esper.kasmina.operators.calls import Axes, Axis, Call, Unruled, Writers, plain, rule
from esper.kasmina.operators.labels import pin, size_of
from esper.kasmina.operators.rules import joined, merged
from esper.kasmina.operators.running import tensors_in

# Names as ``name_of`` gives them: without underscores, so that in-place and operator forms are the same.
SAME = """
contiguous clone to type float double half bfloat16 detach data identity requires_grad positive alias
cpu cuda
"""
LINEAR = """
neg dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout type_as real conj
"""
ZERO_AT_ZERO = """
relu relu6 leaky_relu gelu silu tanh hardswish mish elu selu celu softsign tanhshrink hardtanh
hardshrink rrelu softshrink abs square sqrt sign sinh asinh atan sin tan erf expm1 log1p nan_to_num
round floor ceil trunc
"""
OTHER = """
exp exp2 sigmoid hardsigmoid softplus logsigmoid cos cosh acos log log2 log10 reciprocal rsqrt threshold
clamp clip clamp_min clamp_max logical_not isnan isinf isfinite bitwise_not erfc bool int long
zeros_like ones_like full_like rand_like randn_like empty_like masked_fill where lerp addcmul addcdiv
maximum minimum eq ne lt le gt ge logical_and logical_or logical_xor and or xor fmod remainder floordiv
floor_divide atan2 fill zero heaviside xlogy pow rpow ipow float_power polar invert mod isclose
bernoulli logit
"""


def keeping(axes: Axes, *, mean: bool = False, zero: bool = False) -> Axes:
    """The same dimensions with only what is asked for still known of them."""
    return tuple(Axis(a.dim, a.mean if mean else None, a.zero if zero else None) for a in axes)


def operand(call: Call) -> Axes:
    """The labels of the first argument."""
    return call.axes(call.args[0] if call.args else call.kwargs["input"])


@rule(*SAME.split())
def same(call: Call) -> Axes:
    """The same values, perhaps in another type or memory."""
    return operand(call)


@rule(*LINEAR.split())
def linear(call: Call) -> Axes:
    """Linear in each position, all treated alike."""
    return keeping(operand(call), mean=True, zero=True)


@rule(*ZERO_AT_ZERO.split())
def zero_at_zero(call: Call) -> Axes:
    """A function that is zero at zero."""
    return keeping(operand(call), zero=True)


@rule("prelu")
def prelu(call: Call) -> Axes:
    """(N, C, ...) with one slope, or one a channel."""
    given, slope = operand(call), call.get(1, "weight")
    if slope.numel() > 1:
        call.trace.unify(given[1].dim, call.axes(slope)[0].dim, call.where)
        call.attribute("num_parameters", given[1].dim)
    else:
        pin(call.axes(slope)[0].dim, f"one slope serves all channels of {call.where}")
    return keeping(given, zero=True)


Combine = Callable[[list[Axis], int], tuple[Writers | None, Writers | None]]


def _pointwise(call: Call, combine: Combine) -> Axes:
    """Broadcast all operands; ``combine`` gets those that have an axis and the number that lack it."""
    tensors = tensors_in((call.args, call.kwargs))
    scalars = sum(isinstance(v, int | float) for v in call.args[:2])
    labels = [call.axes(t) for t in tensors]
    shape = call.result.shape
    out: list[Axis] = []
    for i in range(-len(shape), 0):
        present = [axes[i] for axes in labels if len(axes) >= -i]
        axis = merged(call, present, shape[i])
        whole = [a for a in present if size_of(a.dim) == shape[i]]
        mean, zero = combine(whole, len(labels) - len(whole) + scalars)
        out.append(Axis(axis.dim, mean, zero))
    return tuple(out)


@rule("add", "radd", "iadd", "sub", "subtract", "rsub", "isub")
def summed(call: Call) -> Axes:
    """A sum is the mean where all its terms are, and zero where all are."""

    def combine(whole: list[Axis], lacking: int) -> tuple[Writers | None, Writers | None]:
        zero = joined(*(a.zero for a in whole)) if not lacking else None
        return joined(*(a.mean for a in whole)), zero

    return _pointwise(call, combine)


@rule("mul", "multiply", "rmul", "imul")
def multiplied(call: Call) -> Axes:
    """A product is zero where one factor is; times something that is the same everywhere, it stays a mean."""

    def combine(whole: list[Axis], _: int) -> tuple[Writers | None, Writers | None]:
        if len(whole) == 1:
            return whole[0].mean, whole[0].zero
        zeros = sorted((a.zero for a in whole if a.zero is not None), key=len)
        return None, zeros[0] if zeros else None

    return _pointwise(call, combine)


@rule("div", "truediv", "divide", "true_divide", "idiv", "itruediv")
def divided_by(call: Call) -> Axes:
    """Divided by something that is the same everywhere, it stays what it was."""
    shape = call.result.shape
    divisor = call.get(1, "other")
    wide = call.axes(divisor) if isinstance(divisor, Tensor) else ()
    axes = _pointwise(call, lambda whole, _: (whole[0].mean, whole[0].zero))
    return tuple(
        bare_axis if _has(wide, i - len(shape), shape[i]) else axis
        for i, (axis, bare_axis) in enumerate(zip(axes, keeping(axes), strict=True))
    )


def _has(axes: Axes, i: int, size: int) -> bool:
    return len(axes) >= -i and size_of(axes[i].dim) == size


@rule(*OTHER.split())
def other(call: Call) -> Axes:
    """Position by position; nothing is known of its values."""
    return _pointwise(call, lambda *_: (None, None))


def dims_of(value: Any, ndim: int) -> list[int]:
    """Dimensions as numbers from the left; all of them for None."""
    if value is None or value == ():
        return list(range(ndim))
    return [d % ndim for d in (value if isinstance(value, list | tuple) else [value])]


@rule("mean", "sum", "nanmean", "nansum")
def averaged(call: Call) -> Axes:
    """Linear in what stays."""
    return _reduced(call, mean=True, zero=True)


@rule(
    "amax",
    "amin",
    "prod",
    "norm",
    "std",
    "var",
    "logsumexp",
    "any",
    "all",
    "count_nonzero",
    "vector_norm",
    "linalg_vector_norm",
)
def reduced(call: Call) -> Axes:
    """What is reduced is mixed."""
    return _reduced(call)


@rule("argmax", "argmin")
def arg_reduced(call: Call) -> Axes:
    """Indices along what is reduced."""
    return _reduced(call)


@rule("max", "min")
def extreme(call: Call) -> Axes | list[Axes]:
    """Of all, along a dimension (with indices), or of two tensors."""
    if isinstance(call.get(1, "other"), Tensor):
        return other(call)
    if isinstance(call.result, Tensor):
        return _reduced(call)
    axes = _reduced(call, of=call.result[0])
    return [axes, axes]


def _reduced(call: Call, *, mean: bool = False, zero: bool = False, of: Tensor | None = None) -> Axes:
    result = call.result if of is None else of
    given = operand(call)
    if call.name in ("norm",) and len(call.args) > 2:
        dim = call.args[2]
    elif call.name in ("norm", "vector_norm", "linalg_vector_norm"):
        dim = call.kwargs.get("dim")
    else:
        dim = call.get(1, "dim", call.kwargs.get("axis"))
    if isinstance(dim, bool):
        raise Unruled
    gone = dims_of(dim, len(given))
    for i in gone:
        pin(given[i].dim, f"{call.where} reduces it")
    stay = [axis for i, axis in enumerate(given) if i not in gone]
    if result.ndim == len(given):
        return tuple(
            plain(1) if i in gone else keeping((a,), mean=mean, zero=zero)[0] for i, a in enumerate(given)
        )
    return keeping(tuple(stay), mean=mean, zero=zero)


@rule("softmax", "log_softmax", "softmin", "cumsum", "cumprod", "normalize", "logcumsumexp")
def along(call: Call) -> Axes:
    """Each position depends on all others along one dimension."""
    given = operand(call)
    position = 2 if call.name == "normalize" else 1
    dim = call.get(position, "dim", 1 if call.name == "normalize" else None)
    for i in dims_of(dim, len(given)):
        pin(given[i].dim, f"{call.where} mixes it")
    return keeping(given)
