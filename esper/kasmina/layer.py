"""A host layer with seeds along its feature axis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from esper.errors import GraftError
from esper.kasmina.blending import apply_seeds
from esper.kasmina.counters import Fault, FaultKind, FaultProbe, HealthCounters
from esper.kasmina.seed import Seed
from esper.messages import Layout, SeedState, Site, Slot

Kind = Literal["linear", "conv2d", "attention", "block"]
"""How a host is treated: by its type, or as a block whose layout is read from its output."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """What probing found out about a host.

    ``in_features`` and ``out_features`` count features (channels); ``stride`` is input size over output size
    of each spatial axis. ``refusal`` says why no parallel kernel fits, and is empty when one does.
    ``time_first`` marks tokens that come as (T, batch, F).
    """

    layout: Layout
    in_features: int
    out_features: int
    stride: int = 1
    time_first: bool = False
    refusal: str = ""

    @property
    def axis(self) -> int:
        """The feature axis of input and output."""
        return 1 if self.layout == "channels" else -1


def chunk_sizes(features: int, chunks: int) -> list[int]:
    """Sizes that ``torch.tensor_split`` gives: the first ``features % chunks`` are one larger."""
    size, larger = divmod(features, chunks)
    return [size + 1] * larger + [size] * (chunks - larger)


class SeededLayer(nn.Module):
    """Wraps one host layer and divides its output into one chunk a seed.

    While no seed runs and nothing is observed, ``forward`` returns the host's output object itself.
    Attributes that the wrapper does not have are those of the host, so code that reads ``layer.weight`` still
    works.

    Args:
        host: the layer to wrap; it keeps its parameters and buffers.
        kind: how it was recognised.
        geometry: its sizes, from probing.
        seeds: number of seeds.
        name: its name in the network, for messages.

    Raises:
        GraftError: there are more seeds than output features.
    """

    host: nn.Module

    def __init__(self, host: nn.Module, kind: Kind, geometry: Geometry, seeds: int, name: str) -> None:
        if seeds < 1:
            raise GraftError(f"{name}: {seeds} seeds", hint="a layer needs one seed at least")
        if geometry.out_features < seeds:
            raise GraftError(
                f"{name}: {seeds} seeds do not fit into {geometry.out_features} output features",
                hint=f"use at most {geometry.out_features} seeds, or exclude this layer",
            )
        super().__init__()
        self.host = host
        self.kind = kind
        self.geometry = geometry
        self.name = name
        self.observing = False
        self.out_sizes = chunk_sizes(geometry.out_features, seeds)
        self.in_sizes = chunk_sizes(geometry.in_features, seeds)
        self.running: list[int] = []
        self.seed_list = [Seed(i, self.running) for i in range(seeds)]
        self.seeds = nn.ModuleList(self.seed_list)
        self._index: torch.Tensor | None = None
        self.health = HealthCounters()
        self.probe = FaultProbe()
        self.pending_faults: list[Fault] = []
        # nn.TransformerEncoder passes nested tensors on while this flag of its is set; grafting clears it.
        self.nesting_encoders: tuple[nn.TransformerEncoder, ...] = ()
        self.train(host.training)

    @property
    def layout(self) -> Layout:
        """The layout that kernels of this layer see."""
        return self.geometry.layout

    def seed(self, seed_idx: int) -> Seed:
        """Seed ``seed_idx``.

        Raises:
            GraftError: there is no such seed.
        """
        if not 0 <= seed_idx < len(self.seed_list):
            last = len(self.seed_list) - 1
            raise GraftError(f"{self.name} has no seed {seed_idx}", hint=f"0 to {last} exist")
        return self.seed_list[seed_idx]

    def parallel_refusal(self) -> str:
        """Why no parallel kernel fits this layer; empty when one does."""
        if self.geometry.refusal or self.in_sizes[-1] > 0:
            return self.geometry.refusal
        return f"{self.geometry.in_features} input features cannot be cut into {len(self.seeds)} chunks"

    def slot(self, site: Site, seed_idx: int) -> Slot:
        """The place that a kernel at ``site`` of seed ``seed_idx`` must fit.

        Raises:
            GraftError: no such seed, or no parallel kernel fits this layer.
        """
        self.seed(seed_idx)
        size = self.out_sizes[seed_idx]
        if site == "series":
            return Slot(self.layout, size, size)
        if refusal := self.parallel_refusal():
            raise GraftError(f"{self.name}: no parallel kernel fits, {refusal}", hint="use the site 'series'")
        return Slot(self.layout, self.in_sizes[seed_idx], size, self.geometry.stride)

    def fail(self, seed: Seed, kind: FaultKind, message: str) -> None:
        """Put ``seed`` into ERROR_RECOVERY and keep the fault for ``pop_faults``."""
        fault = Fault(self.name, seed.index, seed.kernel_id or "", kind, message, seed.state)
        self.pending_faults.append(fault)
        seed.transition(SeedState.ERROR_RECOVERY, {"kind": kind, "message": message})

    def chunk_index(self, device: torch.device) -> torch.Tensor:
        """For each output feature the seed that it belongs to: int64, (out_features,)."""
        if self._index is None or self._index.device != device:
            sizes = torch.tensor(self.out_sizes, device=device)
            self._index = torch.arange(len(self.out_sizes), device=device).repeat_interleave(
                sizes, output_size=self.geometry.out_features
            )
        return self._index

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The host's output, with the chunks of running seeds blended in."""
        output = self.host(*args, **kwargs)
        if self.running or self.observing:
            if torch.compiler.is_compiling():
                # Imported here because it loads the compiler, which takes a second.
                from esper.kasmina.uncompiled import apply_seeds as uncompiled_apply_seeds

                return uncompiled_apply_seeds(self, output, args, kwargs)
            return apply_seeds(self, output, args, kwargs)
        return output

    def __getattr__(self, name: str) -> Any:
        modules: dict[str, nn.Module] = self.__dict__.get("_modules", {})
        if name in modules:
            return modules[name]
        if "host" not in modules:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(modules["host"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        host = self.__dict__.get("_modules", {}).get("host")
        if host is not None and (name in host._parameters or name in host._buffers):
            setattr(host, name, value)
        else:
            super().__setattr__(name, value)


def seeded_layers(model: nn.Module) -> dict[str, SeededLayer]:
    """The wrapped layers by the name that they were wrapped under, outer before inner, in order."""
    # Not model.modules(): training calls this in every step, and most modules are inside seeds.
    layers: dict[str, SeededLayer] = {}
    seen: set[int] = set()
    stack: list[nn.Module] = [model]
    while stack:
        module = stack.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        if isinstance(module, SeededLayer):
            layers[module.name] = module
            stack.append(module.host)
        else:
            stack.extend(child for child in reversed(module._modules.values()) if child is not None)
    return layers
