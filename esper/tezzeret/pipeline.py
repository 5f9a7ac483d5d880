"""From a blueprint to a validated artefact: parse, build, compile, optimise, validate, metadata."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field
from datetime import UTC, datetime
from functools import cache

import safetensors.torch
import torch
from torch import Tensor, nn

from esper.blueprint import Blueprint, plan
from esper.errors import BlueprintError, CompilationError
from esper.messages import KernelArtefact, KernelMetadata, Slot
from esper.tezzeret.budget import Budget, count_parameters, measure
from esper.tezzeret.builder import build_plan
from esper.tezzeret.randomness import seeded
from esper.tezzeret.scoring import performance_score
from esper.tezzeret.target import Target
from esper.tezzeret.targets import target_named
from esper.tezzeret.validation import TOLERANCE, measure_latency, validate

VERSION = 1
"""Part of every kernel id: raise it when the same blueprint would give another kernel."""

STAGES = ("parse", "build", "compile", "optimise", "validate", "metadata")
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in TOLERANCE}


@dataclass(slots=True)
class StageClock:
    """Seconds spent in each stage so far; ``stage`` is the one entered last, as ``on_stage`` was told."""

    stage: str = STAGES[0]
    seconds: dict[str, float] = field(default_factory=dict)
    on_stage: Callable[[str], None] = lambda _: None

    @property
    def total(self) -> float:
        """Seconds in all stages."""
        return sum(self.seconds.values())

    @contextmanager
    def time(self, stage: str, subject: str) -> Iterator[None]:
        """Times ``stage``; whatever fails in it becomes a ``CompilationError`` about ``subject``.

        A ``BlueprintError`` stays one: then it is the blueprint that is to blame, not the compilation.
        """
        self.stage = stage
        self.on_stage(stage)
        start = time.perf_counter()
        try:
            yield
        except BlueprintError:
            raise
        except Exception as error:  # torch raises RuntimeError, TypeError, NotImplementedError and others
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise CompilationError(f"{subject}: {stage}: {lines[-1].strip()}", stage=stage) from error
        finally:
            self.seconds[stage] = time.perf_counter() - start


@dataclass(frozen=True, slots=True)
class Trained:
    """Weights that a kernel learned in a run, by the names of its program, and where that was."""

    weights: Mapping[str, Tensor]
    parent_kernel: str
    run_id: str
    decision: str

    def digest(self) -> str:
        """SHA-256 of the weights, which tells this kernel from others of its blueprint."""
        return hashlib.sha256(_safetensors(self.weights)).hexdigest()


@dataclass(frozen=True, slots=True)
class Pipeline:
    """How blueprints are compiled; immutable, and may be shared by threads.

    ``optimise`` off leaves the program as the compiler made it. ``fallbacks`` name the targets that are tried
    where this one fails, see ``esper.tezzeret.attempts``; ``instead_of`` is what such an attempt takes the
    place of: a target, the id of a larger blueprint, or ``optimised``. Global random state is afterwards what
    it was.
    """

    target: Target
    device: str = "cpu"
    dtype: str = "float32"
    seed: int = 0
    budget: Budget = field(default_factory=Budget)
    optimise: bool = True
    fallbacks: Sequence[str] = ()
    instead_of: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.fallbacks, str):
            raise CompilationError(
                f"tezzeret.fallbacks must be a list of targets, not {self.fallbacks!r}", stage="parse"
            )
        object.__setattr__(self, "fallbacks", tuple(self.fallbacks))
        for name in self.fallbacks:
            target_named(name)
        if self.dtype not in DTYPES:
            raise CompilationError(
                f"unknown dtype {self.dtype!r}", stage="parse", hint=f"one of: {', '.join(DTYPES)}"
            )

    @property
    def configuration(self) -> str:
        """In a few words, what an attempt may be tried again without."""
        optimised = "optimised" if self.optimise else "not optimised"
        instead = f", instead of {self.instead_of}" if self.instead_of not in ("", "optimised") else ""
        return f"{self.target.name}, {self.device}, {self.dtype}, {optimised}{instead}"

    def kernel_id(self, blueprint: Blueprint, slot: Slot, trained: Trained | None = None) -> str:
        """The id of the kernel that ``compile`` will make: a hash of all that decides what it computes."""
        device = torch.device(self.device).type
        content = [VERSION, blueprint.canonical_json(), astuple(slot), self.target.name]
        content += [self.instead_of] if self.instead_of else []
        start = self.seed if trained is None else trained.digest()
        key = json.dumps([*content, self.dtype, device, start])
        return f"kernel_{hashlib.sha256(key.encode()).hexdigest()[:16]}"

    def compile(
        self,
        blueprint: Blueprint,
        slot: Slot,
        clock: StageClock | None = None,
        *,
        trained: Trained | None = None,
    ) -> KernelArtefact:
        """The validated kernel of ``blueprint`` for ``slot``, with weights of its own or ``trained`` ones.

        Raises ``BlueprintError`` where the blueprint does not fit the slot or the budget, and
        ``CompilationError``, which names the stage, for everything else. ``clock`` learns the time of each
        stage, of those before a failure too.
        """
        clock = clock or StageClock()
        subject = f"{blueprint.where()} for {slot}"
        _warm_up()
        with clock.time("parse", subject):
            planned = plan(blueprint, slot)
        with clock.time("build", subject):
            eager = build_plan(planned, seed=self.seed, budget=self.budget)
            if trained is not None:
                eager.load_state_dict(trained.weights)
            eager.to(self.device, DTYPES[self.dtype])
        with clock.time("compile", subject):
            program = self.target.compile(eager)
        with clock.time("optimise", subject):
            changes = self.target.optimise(program, torch.device(self.device)) if self.optimise else ()
            saved = self.target.save(program)
        with clock.time("validate", subject), seeded(self.seed, torch.device(self.device)):
            loaded = self.target.load(saved, self.device)
            self.target.check(loaded)
            validate(loaded, eager, slot, seed=self.seed)
            latency = measure_latency(loaded, slot)
            score = performance_score(loaded, slot)  # last: it trains
        with clock.time("metadata", subject):
            weights = _safetensors(program.state_dict())
            metadata = KernelMetadata(
                kernel_id=self.kernel_id(blueprint, slot, trained),
                blueprint_id=blueprint.blueprint_id,
                input_shape=(slot.in_features,),
                output_shape=(slot.out_features,),
                compilation_time=clock.total,
                performance_score=score,
                tags=self._tags(blueprint, changes, trained),
                name=blueprint.name,
                layout=slot.layout,
                stride=slot.stride,
                target=self.target.name,
                device=torch.device(self.device).type,
                dtype=self.dtype,
                parameters=count_parameters(eager),
                latency_ms=latency.milliseconds,
                latency_ratio=latency.ratio,
                program_digest=hashlib.sha256(saved).hexdigest(),
                weights_digest=hashlib.sha256(weights).hexdigest(),
                program_bytes=len(saved),
                weights_bytes=len(weights),
                created_at=datetime.now(UTC).isoformat(timespec="seconds"),
                parent_kernel=trained.parent_kernel if trained else "",
                run_id=trained.run_id if trained else "",
                decision=trained.decision if trained else "",
                parent_blueprint=self.instead_of if self.instead_of.startswith("blueprint_") else "",
            )
        return KernelArtefact(metadata, blueprint.canonical_json(), saved, weights)

    def _tags(
        self, blueprint: Blueprint, changes: tuple[str, ...], trained: Trained | None
    ) -> tuple[str, ...]:
        """The blueprint's own tags, ``validated``, and ``optimized``, ``trained`` or ``fallback``."""
        more = {"optimized": changes, "trained": trained, "fallback": self.instead_of}
        return tuple(sorted({*blueprint.tags, "validated", *(tag for tag, holds in more.items() if holds)}))


def _safetensors(state: Mapping[str, Tensor]) -> bytes:
    """Parameters and buffers as safetensors, which holds contiguous tensors only."""
    return safetensors.torch.save({name: t.detach().cpu().contiguous() for name, t in state.items()})


@cache
def _warm_up() -> None:
    """Lets torch import what its first pass on the meta device needs (1.4 s), outside any kernel's time."""
    with torch.device("meta"):
        layer = nn.Linear(1, 1)
        measure(layer, lambda: [layer(torch.empty(1, 1))])
