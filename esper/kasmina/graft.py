"""Wrap a network's layers, put kernels into their seeds, and take the wrapping off again.

Nested wrapping is allowed: a block and a layer inside it each have their own seeds, and those of the block
see what the grown layer gives. A layer keeps the name that it had in the network before any wrapping.
"""

from __future__ import annotations

import copy
import difflib
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from esper.errors import GraftError
from esper.kasmina.blending import describe
from esper.kasmina.layer import Kind, SeededLayer, seeded_layers
from esper.kasmina.probing import probe
from esper.kasmina.seed import Seed
from esper.messages import Blend, SeedState, Site

TYPES: dict[str, type[nn.Module]] = {
    "linear": nn.Linear,
    "conv2d": nn.Conv2d,
    "attention": nn.MultiheadAttention,
}


@dataclass(frozen=True, slots=True)
class SeedRecord:
    """A seed that is not dormant, as a checkpoint keeps it; weights and alpha are in ``state_dict()``."""

    layer: str
    seed_idx: int
    state: SeedState
    kernel_id: str | None
    site: Site
    blend: Blend
    embargoed_until: float | None


def wrap(
    model: nn.Module,
    example_input: Any,
    *,
    include: Collection[str] = ("*",),
    exclude: Collection[str] = (),
    types: Collection[str] = ("linear", "conv2d", "attention"),
    seeds: int = 4,
    batch_axis: int = 0,
) -> list[str]:
    """Wrap layers of ``model`` in place and return their names, in the order of ``model.named_modules()``.

    A pattern of ``include`` (``fnmatch``, on module names) selects the modules of ``types`` that it matches;
    if there are none, it selects what it does match, outermost only, as blocks. Modules that the example
    never calls (a child of ``nn.MultiheadAttention``, say) are left alone when a type selects them. A module
    used under several names is wrapped once, for all of them.

    Args:
        model: any module; the root itself is not wrapped.
        example_input: a tensor, a tuple of positional or a dict of keyword arguments of ``model``.
        include: patterns of names to wrap.
        exclude: patterns of names to leave alone.
        types: among "linear", "conv2d" and "attention".
        seeds: seeds a layer.
        batch_axis: the axis of the example's first tensor that counts samples; 1 for (T, batch, F).

    Raises:
        GraftError: a pattern matches nothing, a layer has fewer output features than seeds or none at all,
            the example does not run, or parameters are sharded. The network is unchanged then.
    """
    _refuse_sharded(model)
    unknown = set(types) - TYPES.keys()
    if unknown:
        raise GraftError(
            f"unknown layer types: {', '.join(sorted(unknown))}", hint=f"known: {', '.join(TYPES)}"
        )
    hosts, named = _select(model, tuple(include), tuple(exclude), tuple(TYPES[name] for name in types))
    geometries = probe(model, example_input, hosts, batch_axis)
    for name in named:
        if name not in geometries:
            raise GraftError(f"{name} is never called by the example input", hint="wrap the module around it")
    layers = {
        hosts[name][0]: SeededLayer(*hosts[name], geometries[name], seeds, name)
        for name in hosts
        if name in geometries
    }
    encoders = [module for module in model.modules() if isinstance(module, nn.TransformerEncoder)]
    for host, layer in layers.items():
        layer.nesting_encoders = tuple(e for e in encoders if any(module is host for module in e.modules()))
    for _, parent, key, module in list(_named_modules(model)):
        if module in layers:
            setattr(parent, key, layers[module])
    return [layer.name for layer in layers.values()]


def unwrap(model: nn.Module) -> nn.Module:
    """Put back the host of every layer that holds no kernel, in place; return ``model``."""
    for parent in list(model.modules()):
        for key, child in list(parent._modules.items()):
            while isinstance(child, SeededLayer) and all(seed.kernel is None for seed in child.seed_list):
                child = child.host
                setattr(parent, key, child)
    return model


def graft(
    layer: SeededLayer, seed_idx: int, kernel: nn.Module, *, kernel_id: str, site: Site, blend: Blend
) -> Seed:
    """Put ``kernel`` into a dormant seed of ``layer``, which becomes GERMINATED; the function is unchanged.

    The kernel is moved to the layer's device, and must keep its dtype.

    Raises:
        GraftError: the seed is not dormant, the site is refused, or the kernel raises, does not map the
            slot's input to its output, or changes its input in place.
    """
    seed = layer.seed(seed_idx)
    if seed.state is not SeedState.DORMANT:
        raise GraftError(
            f"{layer.name}, seed {seed_idx}: it is {seed.state}", hint="graft into a dormant seed"
        )
    like = reference(layer)
    kernel.to(like.device)
    _check_fit(layer, seed_idx, kernel, site, like)
    kernel.train(layer.training)
    seed.hold(kernel, kernel_id, site, blend, like)
    seed.transition(SeedState.GERMINATED, {"kernel_id": kernel_id})
    for encoder in layer.nesting_encoders:
        encoder.use_nested_tensor = False
    return seed


def seed_records(model: nn.Module) -> list[SeedRecord]:
    """What a checkpoint needs beside ``state_dict()``, for every seed that is not plainly dormant."""
    return [
        SeedRecord(name, s.index, s.state, s.kernel_id, s.site, s.blend, s.embargoed_until)
        for name, layer in seeded_layers(model).items()
        for s in layer.seed_list
        if s.state is not SeedState.DORMANT
    ]


def restore_seeds(model: nn.Module, records: Iterable[SeedRecord], fetch: Callable[[str], nn.Module]) -> None:
    """Bring every seed to what ``records`` say; then ``load_state_dict`` fits. Other seeds become dormant.

    ``fetch`` gives a fresh module for a kernel id.

    Raises:
        GraftError: a record names a layer or seed that ``model`` lacks, or its kernel does not fit.
    """
    layers = seeded_layers(model)
    for layer in layers.values():
        layer.pending_faults.clear()
        layer.probe.sums.clear()
        for seed in layer.seed_list:
            seed.reset()
    for record in records:
        if record.layer not in layers:
            raise GraftError(f"no wrapped layer {record.layer!r}", hint=_nearest(record.layer, layers))
        layer = layers[record.layer]
        if record.kernel_id is not None:
            kernel = fetch(record.kernel_id)
            graft(
                layer,
                record.seed_idx,
                kernel,
                kernel_id=record.kernel_id,
                site=record.site,
                blend=record.blend,
            )
        layer.seed(record.seed_idx).restore(record.state, embargoed_until=record.embargoed_until)


def _named_modules(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module, str, nn.Module]]:
    """(name, parent, key, module) below ``model``, under every name; wrappers are looked through."""
    for key, child in model._modules.items():
        if child is None:
            continue
        name = f"{prefix}{key}"
        if isinstance(child, SeededLayer):
            yield from _named_modules(child.host, f"{name}.")
        else:
            yield name, model, key, child
            yield from _named_modules(child, f"{name}.")


def _refuse_sharded(model: nn.Module) -> None:
    """A graft needs whole chunks of a layer's output, and puts whole parameters into its place."""
    sharding = sys.modules.get("torch.distributed.tensor")
    if sharding is None:
        return  # nothing in this process was sharded
    for name, parameter in model.named_parameters():
        if isinstance(parameter, sharding.DTensor):
            raise GraftError(
                f"{name} is sharded over processes, as FSDP2 does, and no kernel can be grafted into a part",
                hint="give the network as it is; with tolaria=ddp each process has all of it",
            )


def _select(
    model: nn.Module, include: tuple[str, ...], exclude: tuple[str, ...], types: tuple[type[nn.Module], ...]
) -> tuple[dict[str, tuple[nn.Module, Kind]], list[str]]:
    """The hosts by name in the network's order, and the names among them that must be called."""
    modules: dict[str, nn.Module] = {}
    for name, parent, _, module in _named_modules(model):
        if isinstance(parent, torch.jit.ScriptModule):
            continue  # its children cannot be replaced
        if not any(module is seen for seen in modules.values()):
            modules[name] = module
    within_attention = {
        id(child)
        for module in modules.values()
        if isinstance(module, nn.MultiheadAttention)
        for child in module.modules()
        if child is not module
    }
    chosen: dict[str, Kind] = {}
    named: list[str] = []
    for pattern in include:
        matched = [name for name in modules if fnmatchcase(name, pattern)]
        if not matched and any(fnmatchcase(name, pattern) for name in seeded_layers(model)):
            raise GraftError(f"what {pattern!r} matches is wrapped already", hint="unwrap the network first")
        if not matched:
            raise GraftError(f"no module is named like {pattern!r}", hint=_nearest(pattern, modules))
        typed = [
            n for n in matched if isinstance(modules[n], types) and id(modules[n]) not in within_attention
        ]
        blocks = [] if typed else _outermost(matched)
        chosen.update({name: _kind(modules[name]) for name in typed})
        chosen.update(dict.fromkeys(blocks, "block"))
        named += blocks if not typed else [pattern] if pattern in typed else []
    kept = {
        name: (modules[name], chosen[name])
        for name in modules
        if name in chosen and not any(fnmatchcase(name, pattern) for pattern in exclude)
    }
    if not kept:
        raise GraftError(
            "every layer that was included is excluded too", hint="widen include or narrow exclude"
        )
    return kept, [name for name in named if name in kept]


def _kind(module: nn.Module) -> Kind:
    if isinstance(module, nn.Linear):
        return "linear"
    return "conv2d" if isinstance(module, nn.Conv2d) else "attention"


def _outermost(names: list[str]) -> list[str]:
    return [name for name in names if not any(name.startswith(f"{other}.") for other in names)]


def _nearest(name: str, names: Iterable[str]) -> str:
    known = list(names)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or known[:5]
    return f"nearest: {', '.join(close)}" if close else "the network has no modules to wrap"


def reference(layer: SeededLayer) -> torch.Tensor:
    """A tensor whose device and dtype are those that the layer's kernels must have."""
    for tensor in (*layer.host.parameters(), *layer.host.buffers()):
        if tensor.is_floating_point():
            return tensor
    return torch.empty(0)


def kernel_dtype(layer: SeededLayer) -> str:
    """The dtype that the layer's kernels must have, as their metadata names it: ``float32``."""
    return str(reference(layer).dtype).removeprefix("torch.")


def _check_fit(layer: SeededLayer, seed_idx: int, kernel: nn.Module, site: Site, like: torch.Tensor) -> None:
    """Run a copy of ``kernel`` on a small input of the slot's shape."""
    slot = layer.slot(site, seed_idx)
    where = f"{layer.name}, seed {seed_idx}: the kernel does not fit {slot}"
    leading = {"features": (2,), "tokens": (2, 3), "channels": (2,)}[slot.layout]
    size = 8 * slot.stride
    space = (size, size) if slot.layout == "channels" else ()
    out_space = (8, 8) if slot.layout == "channels" else ()
    x = torch.linspace(-1, 1, 1, device=like.device, dtype=like.dtype)
    x = x.expand(*leading, slot.in_features, *space).clone()
    version = x._version
    expected = (*leading, slot.out_features, *out_space)
    devices = [like.device] if like.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            y = copy.deepcopy(kernel).eval()(x)
    except Exception as error:
        raise GraftError(f"{where}: {describe(error)}", hint="choose another kernel") from error
    if not isinstance(y, torch.Tensor) or tuple(y.shape) != expected or y.dtype != like.dtype:
        got = f"{tuple(y.shape)} {y.dtype}" if isinstance(y, torch.Tensor) else type(y).__name__
        raise GraftError(
            f"{where}: it gives {got}, not {expected} {like.dtype}", hint="choose another kernel"
        )
    if x._version != version:
        raise GraftError(f"{where}: it changes its input in place", hint="choose another kernel")
