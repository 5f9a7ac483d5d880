"""Find out the sizes and layouts of a network's layers by running an example through it.

The example runs without gradients and in eval mode; train flags, buffers and random state are as before
afterwards. When a layer gives three axes, a second pass with twice the batch shows which of them is the
batch: ``nn.TransformerEncoder`` puts time first unless told otherwise, and a kernel that mixes along time
must never mix samples. Where neither of the first two axes turns out to be the batch, kernels see plain
features, which are safe on any axis order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
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


def probe(model: nn.Module, example: Any, hosts: Mapping[str, tuple[nn.Module, Kind]]) -> dict[str, Geometry]:
    """The geometry of each of ``hosts`` (name -> module, kind) that the example passes through.

    ``example`` is a tensor, a tuple of positional or a dict of keyword arguments of the model.

    Raises:
        GraftError: the example does not run through the model, or a host gives something without features.
    """
    try:
        calls = _record(model, example, hosts)
    except GraftError:
        raise
    except Exception as error:
        raise GraftError(
            f"the example input does not run through the network: {type(error).__name__}: {error}",
            hint="give an example of the shape and type that the network is trained on",
        ) from error
    three_axes = any(len(call.output_shape) == 3 for made in calls.values() for call in made)
    doubled: dict[str, list[Call]] = {}
    if three_axes:
        try:
            doubled = _record(model, _double(example), hosts)
        except (RuntimeError, ValueError, AssertionError):
            doubled = {}  # a network of a fixed batch size: its batch axis stays unknown
    return {
        name: _agree(
            name, [_geometry(*hosts[name], call, second) for call, second in _paired(name, calls, doubled)]
        )
        for name in calls
    }


def _paired(
    name: str, calls: Mapping[str, list[Call]], doubled: Mapping[str, list[Call]]
) -> list[tuple[Call, Call | None]]:
    first, second = calls[name], doubled.get(name, [])
    return list(zip(first, second if len(second) == len(first) else [None] * len(first), strict=True))


def _record(
    model: nn.Module, example: Any, hosts: Mapping[str, tuple[nn.Module, Kind]]
) -> dict[str, list[Call]]:
    calls: dict[str, list[Call]] = {}
    handles = []
    for name, (host, _) in hosts.items():

        def note(_: nn.Module, args: Any, kwargs: Any, output: Any, name: str = name) -> None:
            calls.setdefault(name, []).append(_read(name, args, kwargs, output))

        handles.append(host.register_forward_hook(note, with_kwargs=True))
    try:
        with _undisturbed(model):
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


def _double(example: Any) -> Any:
    """``example`` with each tensor repeated along its first axis, when it is as long as that of the first."""
    values = list(example.values()) if isinstance(example, Mapping) else list(example)
    values = [example] if isinstance(example, torch.Tensor) else values
    lengths = [len(v) for v in values if isinstance(v, torch.Tensor) and v.ndim]

    def twice(value: Any) -> Any:
        batched = isinstance(value, torch.Tensor) and value.ndim and len(value) == lengths[0]
        return torch.cat([value, value]) if batched else value

    if isinstance(example, Mapping):
        return {key: twice(value) for key, value in example.items()}
    return tuple(twice(v) for v in example) if isinstance(example, tuple) else twice(example)


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
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


def _geometry(host: nn.Module, kind: Kind, call: Call, doubled: Call | None) -> Geometry:
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
    batch_axis = None
    if len(y) == 3:
        batch_axis = _batch_axis(y, doubled.output_shape if doubled else None)
        if isinstance(host, nn.MultiheadAttention):
            batch_axis = 0 if host.batch_first else 1
    refusal = ""
    if x[:-1] != y[:-1] or not call.floating:
        refusal = f"its input {x} does not become its output {y} position by position"
    layout: Layout = "tokens" if batch_axis is not None else "features"
    return Geometry(layout, x[-1], y[-1], time_first=batch_axis == 1, refusal=refusal)


def _batch_axis(shape: tuple[int, ...], doubled: tuple[int, ...] | None) -> int | None:
    """Which of the first two axes grew with the batch, if exactly one did."""
    if doubled is None or len(doubled) != len(shape):
        return None
    grown = [axis for axis in (0, 1) if doubled[axis] == 2 * shape[axis]]
    same = [axis for axis in (0, 1) if doubled[axis] == shape[axis]]
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
