"""The words of the blueprint language: each op with its inputs, parameters, layouts and shape rule.

This table is data and arithmetic only, so that blueprints are read, checked and invented without torch.
``esper.tezzeret.ops`` builds the module of each op; a test holds the two tables to the same words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from esper.blueprint import expression
from esper.blueprint.expression import ExpressionError
from esper.messages import Layout

MAX_FEATURES = 1_000_000
LAYOUTS: tuple[Layout, ...] = ("features", "tokens", "channels")

Value = int | float | bool
"""A parameter with its number known."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What flows along an edge: features, and space as the kernel's input size over this size.

    ``pooled`` means that time or space has been reduced to one position, which broadcasts.
    """

    features: int
    stride: int = 1
    pooled: bool = False


class ShapeError(ValueError):
    """Input shapes that an op cannot take."""


@dataclass(frozen=True, slots=True)
class Size:
    """A whole number between ``low`` and ``high``; an expression is allowed."""

    low: int
    high: int
    default: int | None = None

    def normal(self, value: object) -> int | str:
        """The canonical spelling of ``value``; raises ``ExpressionError``."""
        size = canonical_size(value)
        return self.check(Fraction(size), size) if isinstance(size, int) else size

    def check(self, value: Fraction, text: object) -> int:
        """``value`` as an int within bounds; ``text`` is how it was written."""
        if value.denominator != 1:
            raise ExpressionError(f"{text} is {float(value):g}, not a whole number", f"write ceil({text})")
        if not self.low <= value <= self.high:
            told = str(value) if str(text) == str(value) else f"{text} = {value}"
            raise ExpressionError(f"{told} is outside {self.low} to {self.high}")
        return int(value)


@dataclass(frozen=True, slots=True)
class Real:
    """A finite number between ``low`` and ``high``."""

    low: float
    high: float
    default: float

    def normal(self, value: object) -> float:
        """``value`` as a float; raises ``ExpressionError``."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ExpressionError(f"{value!r:.40} is not a number")
        if not self.low <= value <= self.high:
            raise ExpressionError(f"{value} is outside {self.low:g} to {self.high:g}")
        return float(value) + 0.0  # -0.0 becomes 0.0: one spelling


@dataclass(frozen=True, slots=True)
class Flag:
    """True or false."""

    default: bool

    def normal(self, value: object) -> bool:
        """``value`` itself; raises ``ExpressionError`` unless it is true or false."""
        if not isinstance(value, bool):
            raise ExpressionError(f"{value!r:.40} is neither true nor false")
        return value


Parameter = Size | Real | Flag
ShapeRule = Callable[[Mapping[str, Value], Sequence[Shape]], Shape]


@dataclass(frozen=True, slots=True)
class Op:
    """One word: what it computes, how many inputs it takes, its parameters, layouts and shape rule.

    A shape rule gets the resolved parameters and the input shapes, and raises ``ShapeError``.
    """

    name: str
    summary: str
    shape: ShapeRule
    inputs: tuple[int, int] = (1, 1)
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    layouts: tuple[Layout, ...] = LAYOUTS


def canonical_size(value: object) -> int | str:
    """A size as an int when it is a plain number, else as a canonical expression."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ExpressionError(
            f"{value!r} is not a size", "write a whole number or an expression such as ceil(in/4)"
        )
    text = expression.render(expression.parse(str(value)))
    return int(text) if text.isdecimal() else text


def _same(_: Mapping[str, Value], inputs: Sequence[Shape]) -> Shape:
    return inputs[0]


def _spatial(shape: Shape, op: str) -> Shape:
    if shape.pooled:
        raise ShapeError(f"{op} needs positions, but its input is pooled to one")
    return shape


def _normalised(_: Mapping[str, Value], inputs: Sequence[Shape]) -> Shape:
    if inputs[0].features == 1:
        raise ShapeError("a single feature, normalised over itself, carries nothing")
    return inputs[0]


def _per_position(_: Mapping[str, Value], inputs: Sequence[Shape]) -> Shape:
    return _spatial(inputs[0], "this op")


def _linear(parameters: Mapping[str, Value], inputs: Sequence[Shape]) -> Shape:
    return Shape(int(parameters["out"]), inputs[0].stride, inputs[0].pooled)


def _convolution(parameters: Mapping[str, Value], inputs: Sequence[Shape]) -> Shape:
    given = _spatial(inputs[0], "a convolution")
    out, groups = int(parameters["out"]), int(parameters["groups"])
    if int(parameters["kernel"]) % 2 == 0:
        raise ShapeError(f"kernel {parameters['kernel']} is even, and an even kernel has no centre")
    _divides(groups, given.features, "groups", "input features")
    _divides(groups, out, "groups", "output features")
    return Shape(out, given.stride * int(parameters.get("stride", 1)))


def _divides(part: int, whole: int, part_name: str, whole_name: str) -> None:
    if whole % part:
        raise ShapeError(f"{part} {part_name} do not divide {whole} {whole_name}")


def _grouped(parameters: Mapping[str, Value], inputs: Sequence[Shape]) -> Shape:
    given = _spatial(inputs[0], "this op")
    _divides(int(parameters["groups"]), given.features, "groups", "features")
    return given


def _pool(parameters: Mapping[str, Value], inputs: Sequence[Shape]) -> Shape:
    given = inputs[0] if parameters["stride"] == 1 else _spatial(inputs[0], "pool")
    return Shape(given.features, given.stride * int(parameters["stride"]), given.pooled)


def _global_pool(_: Mapping[str, Value], inputs: Sequence[Shape]) -> Shape:
    given = _spatial(inputs[0], "global_pool")
    return Shape(given.features, given.stride, pooled=True)


def _elementwise(_: Mapping[str, Value], inputs: Sequence[Shape]) -> Shape:
    features = sorted({shape.features for shape in inputs})
    if len(features) > 1:
        raise ShapeError(f"inputs have {' and '.join(map(str, features))} features; they must be the same")
    return Shape(features[0], _one_stride(inputs), all(shape.pooled for shape in inputs))


def _one_stride(inputs: Sequence[Shape]) -> int:
    strides = sorted({shape.stride for shape in inputs})
    if len(strides) > 1:
        raise ShapeError(
            f"inputs are reduced by {' and '.join(map(str, strides))} in space; it must be the same"
        )
    return strides[0]


def _concat(_: Mapping[str, Value], inputs: Sequence[Shape]) -> Shape:
    if len({shape.pooled for shape in inputs}) > 1:
        raise ShapeError("some inputs are pooled to one position and some are not")
    total = sum(shape.features for shape in inputs)
    if total > MAX_FEATURES:
        raise ShapeError(f"{total} features; at most {MAX_FEATURES}")
    return Shape(total, _one_stride(inputs), inputs[0].pooled)


def _slice(parameters: Mapping[str, Value], inputs: Sequence[Shape]) -> Shape:
    start, size = int(parameters["start"]), int(parameters["size"])
    if start + size > inputs[0].features:
        raise ShapeError(f"features {start} to {start + size - 1} of an input with {inputs[0].features}")
    return Shape(size, inputs[0].stride, inputs[0].pooled)


def _attention(parameters: Mapping[str, Value], inputs: Sequence[Shape]) -> Shape:
    for shape in inputs:
        _spatial(shape, "attention")
    joint = _elementwise(parameters, inputs)
    _divides(int(parameters["heads"]), joint.features, "heads", "features")
    return joint


def _attention_pool(_: Mapping[str, Value], inputs: Sequence[Shape]) -> Shape:
    values, scores = (_spatial(shape, "attention_pool") for shape in inputs)
    if scores.features != 1:
        raise ShapeError(f"its second input, the scores, has {scores.features} features; it must have 1")
    return Shape(values.features, _one_stride(inputs), pooled=True)


_OUT = Size(1, MAX_FEATURES)
_GROUPS = Size(1, MAX_FEATURES, 1)
_GAIN = Real(0.0, 4.0, 1.0)
_CONVOLUTION: dict[str, Parameter] = {
    "out": _OUT,
    "kernel": Size(1, 31, 3),
    "dilation": Size(1, 16, 1),
    "groups": _GROUPS,
    "bias": Flag(True),
    "gain": _GAIN,
}
_SPACE: tuple[Layout, ...] = ("tokens", "channels")

OPS: dict[str, Op] = {
    op.name: op
    for op in (
        Op("linear", "affine map of the features at each position", _linear,
           parameters={"out": _OUT, "bias": Flag(True), "gain": _GAIN}),
        Op("conv2d", "convolution over space, padded to keep its size; groups = features is depthwise",
           _convolution, parameters={**_CONVOLUTION, "stride": Size(1, 16, 1)}, layouts=("channels",)),
        Op("conv1d", "convolution over time, padded to keep its length", _convolution,
           parameters=_CONVOLUTION, layouts=("tokens",)),
        Op("layer_norm", "normalises the features of each position; learned scale and shift",
           _normalised),
        Op("rms_norm", "unit root mean square over the features of each position; learned scale",
           _normalised),
        Op("group_norm", "normalises groups of channels over space; learned scale and shift", _grouped,
           parameters={"groups": _GROUPS}, layouts=("channels",)),
        Op("batch_norm", "normalises each channel over batch and space; learned scale and shift",
           _per_position, layouts=("channels",)),
        Op("relu", "max(x, 0)", _same),
        Op("gelu", "x times the Gaussian distribution function of x", _same),
        Op("silu", "x times the logistic function of x", _same),
        Op("tanh", "hyperbolic tangent", _same),
        Op("sigmoid", "logistic function", _same),
        Op("sin", "sin(frequency * x)", _same, parameters={"frequency": Real(0.01, 100.0, 1.0)}),
        Op("add", "sum; a pooled input broadcasts", _elementwise, inputs=(2, 8)),
        Op("mul", "product; a pooled input broadcasts", _elementwise, inputs=(2, 8)),
        Op("concat", "inputs side by side along the features", _concat, inputs=(2, 8)),
        Op("slice", "size features from start on", _slice,
           parameters={"start": Size(0, MAX_FEATURES, 0), "size": _OUT}),
        Op("shuffle", "interleaves groups of features, so that grouped layers mix", _grouped,
           parameters={"groups": _GROUPS}),
        Op("scale", "one learned factor a feature", _same, parameters={"init": Real(-4.0, 4.0, 1.0)}),
        Op("dropout", "zeroes a share p of the entries while training", _same,
           parameters={"p": Real(0.0, 0.9, 0.1)}),
        Op("pool", "mean over stride x stride blocks of space; stride 1 does nothing", _pool,
           parameters={"stride": Size(1, 16, 1)}),
        Op("global_pool", "mean over all positions", _global_pool, layouts=_SPACE),
        Op("attention", "scaled dot-product attention of queries, keys, values over positions", _attention,
           inputs=(3, 3), parameters={"heads": Size(1, 64, 1)}, layouts=_SPACE),
        Op("attention_pool", "mean of the first input over positions, weighted by the softmax of the second",
           _attention_pool, inputs=(2, 2), layouts=_SPACE),
        Op("fourier", "real part of the Fourier transform over positions and features", _per_position,
           layouts=_SPACE),
    )
}  # fmt: skip
