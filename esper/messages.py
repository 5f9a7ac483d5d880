"""The frozen records that cross packages, and their JSON.

``SystemStatePacket``, ``AdaptationDecision`` and ``KernelMetadata`` carry the fields of the system flow by
the same names; further fields follow them. Records hold data only: no tensors, no behaviour beyond
``to_json`` and ``from_json``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal

Layout = Literal["features", "tokens", "channels"]
"""Shape a kernel sees: ``features`` is (..., F), ``tokens`` (batch, T, F), ``channels`` (batch, C, H, W)."""

Site = Literal["parallel", "series"]
"""A parallel kernel maps chunk i of the layer's input, a series kernel chunk i of the host's output."""

Blend = Literal["residual", "lerp"]
"""Residual: ``y + a*k``. Lerp: ``(1-a)*y + a*k``."""

INVENTED = "invented"
"""The tag of kernels whose blueprint was made, and neither shipped nor written."""


class SeedState(StrEnum):
    """The lifecycle of a seed; ``esper.kasmina.seed`` draws the allowed transitions."""

    DORMANT = "DORMANT"
    GERMINATED = "GERMINATED"
    TRAINING = "TRAINING"
    BLENDING = "BLENDING"
    HOLDING = "HOLDING"
    FOSSILIZED = "FOSSILIZED"
    CULLED = "CULLED"
    EMBARGOED = "EMBARGOED"
    ERROR_RECOVERY = "ERROR_RECOVERY"


@dataclass(frozen=True, slots=True)
class Slot:
    """The place a kernel must fit: chunk sizes along the feature axis, and the spatial reduction.

    ``in_features`` and ``out_features`` count features (channels for ``channels``); ``stride`` is input size
    over output size of each spatial axis, 1 for the other layouts.
    """

    layout: Layout
    in_features: int
    out_features: int
    stride: int = 1

    def accepts(self, layout: Layout) -> bool:
        """Whether a kernel written for ``layout`` can run here: tokens are features with one more axis."""
        return layout == self.layout or (layout == "features" and self.layout == "tokens")

    def __str__(self) -> str:
        stride = f"/{self.stride}" if self.stride != 1 else ""
        return f"{self.layout} {self.in_features}->{self.out_features}{stride}"


@dataclass(frozen=True, slots=True)
class HealthSignal:
    """What one seed's chunk looked like over the sampled steps of an epoch.

    ``activation_mean``, ``activation_variance`` and ``dead_share`` (share of features that never rose above
    zero or never varied) describe the layer's output chunk; ``gradient_norm`` the loss gradient there;
    ``latency_ms`` the sampled time of the seed's kernel, 0 when dormant. ``health`` is in [0, 1].
    """

    activation_mean: float
    activation_variance: float
    gradient_norm: float
    dead_share: float
    latency_ms: float
    health: float


@dataclass(frozen=True, slots=True)
class LayerMetrics:
    """One wrapped layer at the end of an epoch; sequences have one entry per seed."""

    gradient_norm: float
    activation_variance: float
    seed_health: tuple[float, ...]
    kind: str = ""
    parameters: int = 0
    seed_states: tuple[SeedState, ...] = ()
    parallel_slots: tuple[Slot, ...] = ()
    series_slots: tuple[Slot, ...] = ()
    signals: tuple[HealthSignal, ...] = ()


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """One finished epoch: mean training loss, held-out loss and held-out accuracy."""

    epoch: int
    train_loss: float
    loss: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class FieldReport:
    """One finished seed trial: where, what, what was expected and what the held-out split said.

    ``gain`` is the mean over held-out samples of (loss with the seed off) - (loss with it on), in nats;
    ``gain_error`` its standard error over the paired samples; ``threshold`` what the lower bound of the gain
    had to exceed. ``confidence`` is the probability of being kept that the decision gave it, None where
    none was recorded. ``loss_before`` and ``accuracy_before`` are held-out values before the graft,
    ``loss_after`` and ``accuracy_after`` after the verdict was carried out. ``tags`` are those of the kernel.

    ``task`` names the data set, its classes and the model. ``depth`` is the place of the layer among the
    ``layers`` that are wrapped, from 0 in the order of the model. ``gradient_norm``, ``activation_variance``
    and ``health`` are the seed's signals in the epoch before the graft. The kernel's own pass took
    ``latency_ms`` when it was validated; the epochs of the trial took ``seconds``. None where older versions
    recorded none, and where nothing was measured.
    """

    layer: str
    layer_kind: str
    seed_idx: int
    slot: Slot
    site: Site
    kernel_id: str
    blueprint_id: str
    started_epoch: int
    ended_epoch: int
    verdict: Literal["kept", "culled", "failed"]
    reason: str
    expected_impact: float
    gain: float
    gain_error: float
    threshold: float
    loss_before: float
    loss_after: float
    accuracy_before: float
    accuracy_after: float
    parameters: int
    confidence: float | None = None
    tags: tuple[str, ...] = ()
    task: str = ""
    depth: int | None = None
    layers: int | None = None
    gradient_norm: float | None = None
    activation_variance: float | None = None
    health: float | None = None
    latency_ms: float | None = None
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """A decision that could not be carried out; ``seed_idx`` is -1 where it was about no seed."""

    epoch: int
    layer: str
    seed_idx: int
    reason: str


@dataclass(frozen=True, slots=True)
class WidthMetrics:
    """A width of the host that can grow: its units, what they come in multiples of, and what one costs."""

    size: int
    granularity: int
    parameters_per_unit: int


@dataclass(frozen=True, slots=True)
class GrowthReport:
    """A change of the host's own shape that was carried out: what, where, and what it did at its birth.

    ``sizes`` maps each width that grew to its (old, new) units; losses (nats) and accuracies are held-out
    values of the same weights just before and just after. Of a new block, ``like`` says how it was made
    ("residual" or "copy") and ``hidden`` how many features it has inside, where that was chosen.
    """

    epoch: int
    operator: str
    target: str
    sizes: Mapping[str, tuple[int, int]]
    parameters: int
    loss_before: float
    loss_after: float
    accuracy_before: float
    accuracy_after: float
    like: str = ""
    hidden: int | None = None


@dataclass(frozen=True, slots=True)
class SystemStatePacket:
    """Everything a policy may know, at the end of one epoch.

    ``loss`` is the mean training loss (nats), ``accuracy`` and ``held_out_loss`` come from the held-out split
    that also judges seeds; the reported test split is never in a packet. ``history`` holds the epochs up to
    and including this one, ``trials`` the finished seed trials, ``refusals`` the decisions that could not be
    carried out, ``growths`` the changes of the host's shape, all oldest first. ``widths`` are those that can
    grow, where the policy asks for them. ``rate_share`` is the learning rate, over its peak, that what grows
    now would learn with, ``progress`` the share of the run that is done. ``inventions`` are the slots of
    dormant seeds for which the library has an invented kernel that this run has not tried, where such are
    made while it trains.
    """

    epoch: int
    global_step: int
    loss: float
    accuracy: float
    layer_metrics: Mapping[str, LayerMetrics]
    held_out_loss: float = 0.0
    total_epochs: int = 0
    learning_rate: float = 0.0
    history: Sequence[EpochRecord] = ()
    trials: Sequence[FieldReport] = ()
    refusals: Sequence[Refusal] = ()
    growths: Sequence[GrowthReport] = ()
    widths: Mapping[str, WidthMetrics] = field(default_factory=dict)
    rate_share: float = 1.0
    progress: float = 0.0
    inventions: tuple[Slot, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``json.dumps``."""
        history, trials = tuple(self.history), tuple(self.trials)
        refusals, growths = tuple(self.refusals), tuple(self.growths)
        return asdict(replace(self, history=history, trials=trials, refusals=refusals, growths=growths))


@dataclass(frozen=True, slots=True)
class Symptom:
    """Instability as it was seen: its ``kind``, and in words what was found.

    ``global_step`` counts the optimizer steps before the one that it began with, ``step`` those within
    ``epoch``; None where it was not seen at one step.
    """

    kind: Literal[
        "non-finite loss",
        "non-finite gradient",
        "non-finite value",
        "loss spike",
        "gradient explosion",
        "collapse",
        "divergence",
    ]
    epoch: int
    step: int | None
    global_step: int
    detail: str


Cause = Literal["batch", "adaptation", "training"]
"""Of instability: data, a kernel or growth just before, or neither (a rate that is too high, mostly)."""


@dataclass(frozen=True, slots=True)
class Emergency:
    """A symptom with its cause; ``earlier`` rollbacks for that cause have not helped.

    ``target`` names the adaptation that is the cause, and is empty where none is.
    """

    symptom: Symptom
    cause: Cause
    target: str
    earlier: int


@dataclass(frozen=True, slots=True)
class AdaptationDecision:
    """What the policy wants changed, how sure it is, and why.

    ``parameters`` of an ``add_seed`` decision: ``seed_idx``, ``alpha_blend``, ``site``, ``blend``, ``tags``
    and, if there are kernels that are not to be tried again, ``avoid``; ``kernel_id`` is filled in once the
    orchestrator has picked one. Of a ``modify_architecture`` decision: ``operator``, and words for
    ``moments`` and ``rates`` unless as by default; to ``widen``, ``sizes`` (width to units) and ``start``; to
    ``deepen``, ``target`` (the module that a block follows), ``like`` and ``hidden``, as
    ``esper.kasmina.operators.deepen`` takes them. Of a ``rollback`` decision, whose target is what caused it:
    ``skip`` (epoch and step of a batch that is not to be used again, or None), ``rate`` (what the learning
    rate is multiplied by), ``lasting`` (whether for good) and ``least_rate`` (how far down, then).
    ``confidence`` is a probability; ``expected_impact`` the expected fall of the held-out loss as a share of
    it. ``evidence`` holds the numbers behind the decision, ``alternatives`` the other candidates with their
    scores, best first.
    """

    adaptation_type: Literal["add_seed", "remove_seed", "modify_architecture", "rollback"]
    target_component: str
    parameters: Mapping[str, Any]
    confidence: float
    expected_impact: float
    reason: str = ""
    evidence: Mapping[str, float] = field(default_factory=dict)
    alternatives: tuple[Mapping[str, Any], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``json.dumps``."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class KernelMetadata:
    """What the library knows of a kernel without loading it.

    ``input_shape`` and ``output_shape`` are without batch, time and space: ``(128,)``. ``compilation_time``
    and ``latency_ms`` as their names say, in seconds and milliseconds; ``latency_ratio`` is the latency over
    that of the default transform of the slot. ``performance_score`` in [0, 1] is measured when the kernel is
    validated (see ``esper.tezzeret.validation``). ``author`` made it; ``parent_blueprint``, ``parent_kernel``
    and ``run_id`` are what it came from, ``decision`` the epoch, layer and seed in that run; each empty where
    there is none.
    """

    kernel_id: str
    blueprint_id: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    compilation_time: float
    performance_score: float
    tags: tuple[str, ...]
    name: str = ""
    layout: Layout = "features"
    stride: int = 1
    target: str = "torchscript"
    device: str = "cpu"
    dtype: str = "float32"
    status: Literal["validated", "retired"] = "validated"
    parameters: int = 0
    latency_ms: float = 0.0
    latency_ratio: float = 0.0
    program_digest: str = ""
    weights_digest: str = ""
    program_bytes: int = 0
    weights_bytes: int = 0
    created_at: str = ""
    author: str = ""
    parent_blueprint: str = ""
    parent_kernel: str = ""
    run_id: str = ""
    decision: str = ""

    @property
    def slot(self) -> Slot:
        """The slot that the kernel was compiled for."""
        return Slot(self.layout, self.input_shape[-1], self.output_shape[-1], self.stride)

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``json.dumps``."""
        # Not ``asdict``, which copies what cannot change, and takes as long as to read the kernel.
        return {each.name: getattr(self, each.name) for each in fields(self)}


@dataclass(frozen=True, slots=True)
class KernelArtefact:
    """A compiled kernel on its way into the library: data only.

    ``blueprint`` is canonical JSON, ``program`` the compiled form (for TorchScript its archive), ``weights``
    safetensors. The digests in ``metadata`` are the SHA-256 of ``program`` and ``weights``.
    """

    metadata: KernelMetadata
    blueprint: str
    program: bytes
    weights: bytes


@dataclass(frozen=True, slots=True)
class CompilationRecord:
    """One attempt to compile a blueprint for a slot, whether it succeeded or not."""

    blueprint_id: str
    blueprint_name: str
    slot: Slot
    target: str
    status: Literal["compiled", "failed"]
    seconds: float
    at: str
    kernel_id: str | None = None
    stage: str | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class CompileQueue:
    """How many kernels wait to be compiled, how many are being compiled, and by how many workers.

    ``oldest`` is since when the one waits that has waited longest, ISO 8601 in UTC; None where none waits.
    """

    waiting: int
    compiling: int
    workers: int
    oldest: str | None = None

    def __str__(self) -> str:
        waiting = f"{self.waiting} {'waits' if self.waiting == 1 else 'wait'}"
        compiling = f"{self.compiling} {'is' if self.compiling == 1 else 'are'} being compiled"
        return f"{waiting}, {compiling} by {self.workers} worker{'' if self.workers == 1 else 's'}"

    def oldest_seconds(self, now: datetime) -> float:
        """For how long it waits; 0 where none waits."""
        if self.oldest is None:
            return 0.0
        return max(0.0, (now - datetime.fromisoformat(self.oldest)).total_seconds())


@dataclass(frozen=True, slots=True)
class InventionRecord:
    """A blueprint that was invented for a slot: of what, why, and the kernel that came of it.

    ``parents`` are ids of blueprints. ``predicted_impact`` (a gain in nats, as of ``FieldReport``) and its
    standard deviation ``uncertainty`` are None where there was too little to predict from. ``kernel_id`` is
    None where it could not be compiled; then ``failure`` says why.
    """

    graph_id: str
    blueprint_id: str
    blueprint_name: str
    slot: Slot
    layer_kind: str
    origin: str
    parents: tuple[str, ...]
    reason: str
    predicted_impact: float | None
    uncertainty: float | None
    run_id: str
    at: str
    kernel_id: str | None = None
    failure: str | None = None
