"""What many processes have in common and only the first of them holds: the library, and the checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from esper.errors import EsperError
from esper.messages import FieldReport, InventionRecord, KernelMetadata, Slot
from esper.tolaria.checkpoints import Checkpoints, Mark
from esper.tolaria.checkpoints.tree import Parts
from esper.tolaria.distributed import Group, from_first
from esper.urza.library import Kernel, KernelLibrary
from esper.urza.ranking import TrialContext, Wanted
from esper.urza.tiers import TierCounts

Rebuild = Callable[[str, Slot, str], nn.Module]
"""Makes the module of a kernel from its blueprint (canonical JSON), slot and target; weights come later."""


class Kernels(Protocol):
    """What a training run asks of a kernel library; see ``KernelLibrary`` for what each raises."""

    def find(
        self,
        slot: Slot,
        *,
        context: TrialContext | None = None,
        tags: Collection[str] = (),
        dtype: str | None = None,
        limit: int = 20,
    ) -> list[KernelMetadata]:
        """The kernels for ``slot``, best first."""
        ...

    def fetch(self, kernel_id: str) -> Kernel:
        """A kernel, ready to be grafted."""
        ...

    def inventions(self, kernel_id: str | None = None) -> list[InventionRecord]:
        """What invented kernels were made of."""
        ...

    def prefetch(self, kernels: Iterable[KernelMetadata]) -> None:
        """Have these fetched in the background."""
        ...

    def prefetch_best(self, wanted: Sequence[Wanted]) -> None:
        """Have the best for these places fetched in the background."""
        ...

    def record_trial(self, report: FieldReport, run_id: str) -> None:
        """Keep the report of a trial."""
        ...

    def tier_counts(self) -> dict[str, TierCounts]:
        """Hits and misses of each tier."""
        ...

    def close(self) -> None:
        """Release what is held."""
        ...


class SharedLibrary:
    """The first process's library, for all processes of ``group``; the others have None for ``library``.

    What it finds is the same everywhere, and so are the weights of what it fetches: the others make the
    kernel from its blueprint by ``rebuild``.
    """

    def __init__(self, library: KernelLibrary | None, group: Group, rebuild: Rebuild) -> None:
        self._library = library
        self._group = group
        self._rebuild = rebuild

    @property
    def _first(self) -> KernelLibrary:
        assert self._library is not None
        return self._library

    def find(
        self,
        slot: Slot,
        *,
        context: TrialContext | None = None,
        tags: Collection[str] = (),
        dtype: str | None = None,
        limit: int = 20,
    ) -> list[KernelMetadata]:
        """The kernels for ``slot``, best first."""
        return from_first(
            self._group,
            lambda: self._first.find(slot, context=context, tags=tags, dtype=dtype, limit=limit),
        )

    def fetch(self, kernel_id: str) -> Kernel:
        """A kernel, ready to be grafted: a module for each process, of the same weights."""
        fetched: list[Kernel] = []

        def read() -> tuple[KernelMetadata, str, dict[str, Tensor]]:
            kernel = self._first.fetch(kernel_id)
            fetched.append(kernel)
            weights = {name: tensor.cpu() for name, tensor in kernel.module.state_dict().items()}
            return kernel.metadata, kernel.blueprint, weights

        metadata, blueprint, weights = from_first(self._group, read)
        if fetched:
            return fetched[0]
        module = self._rebuild(blueprint, metadata.slot, metadata.target)
        module.load_state_dict(weights)
        return Kernel(metadata, blueprint, module)

    def inventions(self, kernel_id: str | None = None) -> list[InventionRecord]:
        """What invented kernels were made of."""
        return from_first(self._group, lambda: self._first.inventions(kernel_id))

    def prefetch(self, kernels: Iterable[KernelMetadata]) -> None:
        """Have these fetched in the background, where the library is."""
        if self._library is not None:
            self._library.prefetch(kernels)

    def prefetch_best(self, wanted: Sequence[Wanted]) -> None:
        """Have the best for these places fetched in the background, where the library is."""
        if self._library is not None:
            self._library.prefetch_best(wanted)

    def record_trial(self, report: FieldReport, run_id: str) -> None:
        """Keep the report of a trial, once."""
        from_first(self._group, lambda: self._first.record_trial(report, run_id))

    def tier_counts(self) -> dict[str, TierCounts]:
        """Hits and misses of each tier of the library; nothing in the other processes."""
        return {} if self._library is None else self._library.tier_counts()

    def close(self) -> None:
        """Release what the library holds."""
        if self._library is not None:
            self._library.close()


class SharedCheckpoints:
    """The first process's checkpoints, for all of ``group``; the others have None for ``checkpoints``."""

    def __init__(self, checkpoints: Checkpoints | None, group: Group) -> None:
        self._checkpoints = checkpoints
        self._group = group

    @property
    def _first(self) -> Checkpoints:
        assert self._checkpoints is not None
        return self._checkpoints

    def write(self, mark: Mark, state: Parts) -> Path:
        """Write a checkpoint; the first process alone calls this."""
        return self._first.write(mark, state)

    def load(self, name: str | None = None) -> dict[str, Any]:
        """The state of a checkpoint, the newest if ``name`` is None."""
        return from_first(self._group, lambda: self._first.load(name))

    def marks(self) -> list[tuple[str, Mark]]:
        """The name of each checkpoint that can be used, newest first, and where the run stood."""

        def read() -> list[tuple[str, Mark]]:
            return [(found.name, found.manifest.mark) for found in self._first.all() if found.manifest]

        return from_first(self._group, read)

    def load_newest_good(self) -> tuple[dict[str, Any], list[EsperError]]:
        """The newest state that is whole, and why newer ones are not."""
        return from_first(self._group, lambda: self._first.load_newest_good())

    def load_before(self, step: int) -> tuple[str, dict[str, Any], list[EsperError]]:
        """The newest whole state of at most ``step`` steps; see ``Checkpoints``."""
        return from_first(self._group, lambda: self._first.load_before(step))

    def forget_after(self, name: str) -> None:
        """Remove what is newer than the checkpoint ``name``."""
        from_first(self._group, lambda: self._first.forget_after(name))

    def pin(self, steps: Iterable[int]) -> None:
        """Let the checkpoints of these ``steps``, and of those alone, stay whatever the retention says."""
        if self._checkpoints is not None:
            self._checkpoints.pinned = frozenset(steps)
