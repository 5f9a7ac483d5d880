"""Find out the sizes and layouts of a network's layers by running an example through it.

The example runs without gradients and in eval mode; train flags, buffers and random state are as before
afterwards. When a layer gives three axes, a second pass with twice the batch shows which of them is the
batch: ``nn.TransformerEncoder`` puts time first unless told otherwise, and a kernel that mixes along time
must never mix samples. Where neither of the first two axes turns out to be the batch, kernels see plain
features, which are safe on any axis order; and so they do in a causal network, where a kernel that mixes
along time would show a position the very token that it has to predict.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from esper.errors import GraftError
from esper.kasmina.layer import Geometry, Kind
from esper.messages import Layout


@dataclass(frozen=True, slots=True)
class Call:
    """The tensors of one call of a layer: shapes of input and output, and whether the input is floating."""

    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    floating: bool


def probe(
    model: nn.Module, example: Any, hosts: Mapping[str, tuple[nn.Module, Kind]], batch_axis: int = 0
) -> dict[str, Geometry]:
    """The geometry of each of ``hosts`` (name -> module, kind) that the example passes through.

    ``example`` is a tensor, a tuple of positional or a dict of keyword arguments of the model; ``batch_axis``
    is the axis of its first tensor that counts samples.

    Raises:
        GraftError: the example does not run through the model, a host gives something without features, or an
            attention layer has its samples along another axis.
    """
    modules = {name: host for name, (host, _) in hosts.items()}
    attention = {
        f"{n} (attention)": m for n, m in model.named_modules() if isinstance(m, nn.MultiheadAttention)
    }
    try:
        calls = _record(model, example, modules | attention)
    except GraftError:
        raise
    except Exception as error:
        raise GraftError(
            f"the example input does not run through the network: {type(error).__name__}: {error}",
            hint="give an example of the shape and type that the network is trained on",
        ) from error
    samples, doubled = 0, dict[str, list[Call]]()
    if any(len(call.output_shape) == 3 for made in calls.values() for call in made):
        samples, twice = _double(example, batch_axis)
        try:
            doubled = _record(model, twice, modules | attention)
        except (RuntimeError, ValueError, AssertionError):
            doubled = {}  # a network of a fixed batch size: its batch axis stays unknown
    geometries: dict[str, Geometry] = {}
    for name, made in calls.items():
        again = doubled.get(name, [])
        axes = [_batch_axis(a, b, samples) for a, b in zip(made, again, strict=False)]
        axes = axes if len(made) == len(again) else [None] * len(made)
        if name in attention:
            _check_order(name, attention[name], axes)
        else:
            found = [_geometry(*hosts[name], call, axis) for call, axis in zip(made, axes, strict=True)]
            geometries[name] = _agree(name, found)
    if any(g.layout == "tokens" for g in geometries.values()) and _is_causal(model, example, batch_axis):
        geometries = {name: _position_by_position(g) for name, g in geometries.items()}
    return geometries


def _position_by_position(geometry: Geometry) -> Geometry:
    """``geometry`` for kernels that do not mix along time."""
    tokens = geometry.layout == "tokens"
    return replace(geometry, layout="features", time_first=False) if tokens else geometry


def _is_causal(model: nn.Module, example: Any, batch_axis: int) -> bool:
    """Whether the network answers each position of its input, and the last one moves no earlier answer."""
    x = next(iter(example.values()), None) if isinstance(example, Mapping) and len(example) == 1 else example
    time = 1 - batch_axis
    if not isinstance(x, torch.Tensor) or x.ndim < 2 or x.shape[time] < 2:
        return False
    last = x.select(time, -1)
    changed = x.clone()
    changed.select(time, -1).copy_(last + 1 if x.is_floating_point() else torch.where(last > 0, 0, 1))
    with undisturbed(model):
        before, after = call_with(model, x), call_with(model, changed)
    if not isinstance(before, torch.Tensor) or before.ndim != 3 or before.shape[:2] != x.shape[:2]:
        return False
    earlier = x.shape[time] - 1
    return torch.allclose(before.narrow(time, 0, earlier), after.narrow(time, 0, earlier), 1e-5, 1e-6)


def _check_order(name: str, attention: nn.MultiheadAttention, axes: list[int | None]) -> None:
    expected = 0 if attention.batch_first else 1
    if any(axis not in (None, expected) for axis in axes):
        raise GraftError(
            f"{name} has samples along axis {expected}, but another axis grows with the example's batch",
            hint=f"say along which axis the example counts samples: batch_axis={expected}",
        )


def _record(model: nn.Module, example: Any, modules: Mapping[str, nn.Module]) -> dict[str, list[Call]]:
    calls: dict[str, list[Call]] = {}
    handles = []
    for name, module in modules.items():

        def note(_: nn.Module, args: Any, kwargs: Any, output: Any, name: str = name) -> None:
            calls.setdefault(name, []).append(_read(name, args, kwargs, output))

        handles.append(module.register_forward_hook(note, with_kwargs=True))
    try:
        with undisturbed(model):
            call_with(model, example)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def call_with(model: nn.Module, example: Any) -> Any:
    """``model`` called with ``example``: a tensor, a tuple of positional or a dict of keyword arguments."""
    if isinstance(example, Mapping):
        return model(**example)
    return model(*example) if isinstance(example, tuple) else model(example)


def _double(example: Any, axis: int) -> tuple[int, Any]:
    """The number of samples along ``axis``, and ``example`` with each tensor that has as many repeated."""
    values = example.values() if isinstance(example, Mapping) else example
    values = [example] if isinstance(example, torch.Tensor) else list(values)
    samples = next((v.shape[axis] for v in values if isinstance(v, torch.Tensor) and v.ndim > axis), 0)

    def twice(value: Any) -> Any:
        batched = isinstance(value, torch.Tensor) and value.ndim > axis and value.shape[axis] == samples
        return torch.cat([value, value], axis) if batched else value

    if isinstance(example, Mapping):
        return samples, {key: twice(value) for key, value in example.items()}
    return samples, tuple(twice(v) for v in example) if isinstance(example, tuple) else twice(example)


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Eval mode, no gradients, no fused paths; modes, buffers and random state are restored afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(b, b.clone()) for b in model.buffers()]
    fused = torch.backends.mha.get_fastpath_enabled()
    devices = {t.device for t in (*model.parameters(), *model.buffers()) if t.device.type == "cuda"}
    model.eval()
    torch.backends.mha.set_fastpath_enabled(False)  # it would read the layers' weights and never call them
    try:
        with torch.random.fork_rng(devices=sorted(devices, key=str)), torch.no_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for module, training in modes:
            module.training = training
        with torch.no_grad():
            for buffer, before in buffers:
                if not torch.equal(buffer, before):
                    buffer.copy_(before)


def _read(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Call:
    y = output[0] if isinstance(output, tuple) and output else output
    inputs = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
    readable = isinstance(y, torch.Tensor) and y.is_floating_point() and 2 <= y.ndim <= 4
    if not readable or not inputs:
        gives = f"a {y.dtype} of {y.ndim} axes" if isinstance(y, torch.Tensor) else type(y).__name__
        raise GraftError(
            f"{name} cannot be wrapped: it gives {gives}, not a floating tensor of 2 to 4 axes",
            hint="exclude it, or wrap a layer inside it",
        )
    return Call(tuple(inputs[0].shape), tuple(y.shape), inputs[0].is_floating_point())


def _geometry(host: nn.Module, kind: Kind, call: Call, batch_axis: int | None) -> Geometry:
    x, y = call.input_shape, call.output_shape
    if len(y) == 4 and kind != "linear":
        stride, refusal = _stride(host, x, y)
        channels = x[1] if len(x) == 4 else 0
        return Geometry(
            "channels",
            channels,
            y[1],
            stride,
            refusal=refusal if call.floating else "its input is not floating",
        )
    if len(y) != 3:
        batch_axis = None
    elif isinstance(host, nn.MultiheadAttention):
        batch_axis = 0 if host.batch_first else 1
    refusal = ""
    if x[:-1] != y[:-1] or not call.floating:
        refusal = f"its input {x} does not become its output {y} position by position"
    layout: Layout = "tokens" if batch_axis is not None else "features"
    return Geometry(layout, x[-1], y[-1], time_first=batch_axis == 1, refusal=refusal)


def _batch_axis(call: Call, doubled: Call, samples: int) -> int | None:
    """Which of the first two axes of a three-axis output counts samples, if exactly one does.

    The first may count parts of samples as well (windows of an image), one after another.
    """
    shape, twice = call.output_shape, doubled.output_shape
    if len(shape) != 3 or len(twice) != 3 or not samples:
        return None
    whole = (shape[0] % samples == 0, shape[1] == samples)
    grown = [i for i in (0, 1) if twice[i] == 2 * shape[i] and whole[i]]
    same = [i for i in (0, 1) if twice[i] == shape[i]]
    return grown[0] if len(grown) == 1 and len(same) == 1 else None


def _stride(host: nn.Module, x: tuple[int, ...], y: tuple[int, ...]) -> tuple[int, str]:
    """The stride of a (batch, C, H, W) host, and why no parallel kernel fits, if none does."""
    if len(x) != 4 or x[0] != y[0]:
        return 1, f"its input {x} and output {y} are not both (batch, channels, height, width)"
    if isinstance(host, nn.Conv2d):
        if len(set(host.stride)) != 1:
            return 1, f"its stride {tuple(host.stride)} is not the same along both axes"
        candidates = [host.stride[0]]
    else:
        candidates = list(range(1, max(x[2:]) + 1))
    for stride in candidates:
        if all(-(-size // stride) == out for size, out in zip(x[2:], y[2:], strict=True)):
            return stride, ""
    return 1, f"its output of {y[2]}x{y[3]} is not its input of {x[2]}x{x[3]} over a stride, rounded up"


def _agree(name: str, found: list[Geometry]) -> Geometry:
    """One geometry for a layer that was called several times."""
    first = found[0]
    if all(geometry == first for geometry in found):
        return first
    layouts = {geometry.layout for geometry in found}
    sizes = {(geometry.in_features, geometry.out_features) for geometry in found}
    if "channels" in layouts or len(sizes) != 1:
        raise GraftError(
            f"{name} cannot be wrapped: it is called with different layouts ({len(found)} calls)",
            hint="exclude it, or wrap the layers around it",
        )
    refusal = next((geometry.refusal for geometry in found if geometry.refusal), "")
    return Geometry("features", first.in_features, first.out_features, refusal=refusal)
