"""One seed: its lifecycle, the gates between its states, its kernel and its blending weight.

::

    DORMANT -> GERMINATED -> TRAINING -> BLENDING -> HOLDING -> FOSSILIZED
                     \\____________\\___________\\________\\-> CULLED -> EMBARGOED -> DORMANT
    any state with a kernel -> ERROR_RECOVERY -> DORMANT
    FOSSILIZED -> DORMANT, once the kernel is folded into the host's weights

What reaches the layer's output, and the gradient, by state (``y`` the host's chunk, ``k`` the kernel's)::

    DORMANT GERMINATED CULLED EMBARGOED ERROR_RECOVERY   y; the kernel does not run
    TRAINING                       y; the kernel sees a detached input and learns from the loss gradient at y
    BLENDING HOLDING FOSSILIZED    y + alpha*k (residual) or (1-alpha)*y + alpha*k (lerp)
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from esper.errors import GraftError
from esper.messages import Blend, SeedState, Site

Evidence = Mapping[str, float | str]
"""The numbers and words that a transition rests on; each gate names the keys that it asks for."""


@dataclass(frozen=True, slots=True)
class Gate:
    """What one transition asks for: evidence by name, and a check that must hold."""

    requires: tuple[str, ...]
    asks: str
    holds: Callable[[Seed, Evidence], bool]


class Seed(nn.Module):
    """A place in a layer's output where one kernel can grow.

    ``alpha`` is a 0-dim buffer while a kernel is held and None otherwise, so that a dormant seed adds nothing
    to ``state_dict()``. ``running`` is shared with the layer and lists the seeds that its forward must visit.
    """

    alpha: torch.Tensor | None
    kernel: nn.Module | None

    def __init__(self, index: int, running: list[int]) -> None:
        super().__init__()
        self.index = index
        self.state = SeedState.DORMANT
        self.kernel_id: str | None = None
        self.site: Site = "parallel"
        self.blend: Blend = "residual"
        self.embargoed_until: float | None = None
        # Kept because every step reads them, and walking a kernel's modules costs more than its gradients.
        self.kernel_parameters: tuple[nn.Parameter, ...] = ()
        self.register_module("kernel", None)
        self.register_buffer("alpha", None)
        self._enabled = True
        self._running = running

    @property
    def enabled(self) -> bool:
        """False while the seed is switched off for judging; its state stays what it is."""
        return self._enabled

    @enabled.setter
    def enabled(self, on: bool) -> None:
        self._enabled = on
        self._announce()

    @property
    def trainable_parameters(self) -> int:
        """Number of elements of the kernel's parameters that ask for a gradient; 0 without a kernel."""
        return sum(p.numel() for p in self.kernel_parameters if p.requires_grad)

    def transition(self, to: SeedState, evidence: Evidence) -> None:
        """Move to state ``to``, given ``evidence`` for its gate.

        Raises:
            GraftError: the transition is not in ``TRANSITIONS``, evidence is missing, or its gate is shut.
        """
        gate = TRANSITIONS.get((self.state, to))
        if gate is None:
            allowed = ", ".join(b for a, b in TRANSITIONS if a is self.state)
            raise GraftError(f"a seed cannot go from {self.state} to {to}", hint=f"from here: {allowed}")
        missing = [key for key in gate.requires if key not in evidence]
        if missing:
            raise GraftError(f"{self.state} -> {to} needs evidence: {', '.join(missing)}", hint=gate.asks)
        if not gate.holds(self, evidence):
            given = ", ".join(f"{key}={evidence[key]}" for key in gate.requires)
            raise GraftError(f"the gate {self.state} -> {to} does not hold ({given})", hint=gate.asks)
        if to is SeedState.EMBARGOED:
            self.embargoed_until = float(evidence["until_epoch"])
        self._enter(to)

    def weight(self, dtype: torch.dtype) -> torch.Tensor:
        """Alpha as a 0-dim tensor of ``dtype``; the seed must hold a kernel."""
        alpha = self.alpha
        assert alpha is not None
        return alpha if alpha.dtype == dtype else alpha.to(dtype)

    def set_alpha(self, alpha: float) -> None:
        """Set the blending weight, in [0, 1]; allowed while the seed is BLENDING.

        Raises:
            GraftError: the seed is in another state, or ``alpha`` is out of range.
        """
        if self.state is not SeedState.BLENDING or self.alpha is None:
            raise GraftError(f"alpha is fixed while a seed is {self.state}", hint="set it while BLENDING")
        if not 0.0 <= alpha <= 1.0:
            raise GraftError(f"alpha {alpha} is not between 0 and 1")
        self.alpha.fill_(alpha)

    def hold(self, kernel: nn.Module, kernel_id: str, site: Site, blend: Blend, like: torch.Tensor) -> None:
        """Take ``kernel`` in, with alpha 0 of the device and dtype of ``like``; the state is unchanged.

        ``esper.kasmina.graft.graft`` checks the fit first; call that instead.
        """
        self.kernel, self.kernel_parameters = kernel, tuple(kernel.parameters())
        self.kernel_id, self.site, self.blend = kernel_id, site, blend
        self.alpha = torch.zeros((), dtype=like.dtype, device=like.device)

    def remove_kernel(self) -> nn.Module | None:
        """Take the kernel out and return it, so that its parameters can leave the optimizer.

        Raises:
            GraftError: the kernel is still in use (a state other than CULLED, EMBARGOED or ERROR_RECOVERY).
        """
        if self.state not in (SeedState.CULLED, SeedState.EMBARGOED, SeedState.ERROR_RECOVERY):
            raise GraftError(f"the kernel of a {self.state} seed is in use", hint="cull the seed first")
        return self._drop()

    def restore(self, state: SeedState, *, embargoed_until: float | None = None) -> None:
        """Set ``state`` as a checkpoint recorded it, past the gates.

        Raises:
            GraftError: the state needs a kernel and none is held.
        """
        if state in WITH_KERNEL and self.kernel is None:
            raise GraftError(f"seed {self.index} cannot be {state} without a kernel", hint="graft it first")
        self.embargoed_until = embargoed_until
        self._enter(state)

    def reset(self) -> nn.Module | None:
        """Return to DORMANT from any state and return the kernel; for restoring an earlier checkpoint."""
        kernel = self._drop()
        self.embargoed_until = None
        self._enter(SeedState.DORMANT)
        return kernel

    def __deepcopy__(self, memo: dict[int, Any]) -> Seed:
        # A TorchScript kernel copies its parameters by recorded operations: the copies would be no leaves of
        # the graph, or without recording ask for no gradient.
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        with torch.no_grad():
            twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        twin.kernel_parameters = tuple(twin.parameters())
        for ours, theirs in zip(self.kernel_parameters, twin.kernel_parameters, strict=True):
            theirs.requires_grad_(ours.requires_grad)
        return twin

    def _drop(self) -> nn.Module | None:
        kernel = self.kernel
        self.kernel, self.kernel_id, self.alpha = None, None, None
        self.kernel_parameters = ()
        return kernel

    def _enter(self, state: SeedState) -> None:
        self.state = state
        self._announce()

    def _announce(self) -> None:
        runs = self._enabled and self.state in RUNNING
        self._running[:] = sorted({*self._running, self.index} if runs else {*self._running} - {self.index})
        # nn.TransformerEncoderLayer's fused inference path reads the weights of its children and never calls
        # them. It steps aside when any module inside it carries a hook; nothing calls this one.
        self._forward_pre_hooks.clear()
        if runs:
            self.register_forward_pre_hook(_never_called)


def _never_called(module: nn.Module, args: object) -> None:
    """Mark a seed as running for nn.TransformerEncoderLayer; see ``Seed._announce``."""


@contextmanager
def seed_off(*seeds: Seed) -> Iterator[None]:
    """Switch ``seeds`` off inside the block: the layer gives what it would without them."""
    before = [seed.enabled for seed in seeds]
    for seed in seeds:
        seed.enabled = False
    try:
        yield
    finally:
        for seed, enabled in zip(seeds, before, strict=True):
            seed.enabled = enabled


RUNNING = frozenset({SeedState.TRAINING, SeedState.BLENDING, SeedState.HOLDING, SeedState.FOSSILIZED})
"""States in which the kernel is called."""

WITH_KERNEL = RUNNING | {SeedState.GERMINATED}
"""States that need a kernel."""


def _number(evidence: Evidence, key: str) -> float:
    value = evidence[key]
    if isinstance(value, str):
        raise GraftError(f"evidence {key!r} must be a number, not {value!r}")
    return value


def _reached_target(seed: Seed, evidence: Evidence) -> bool:
    target = _number(evidence, "alpha_target")
    return seed.alpha is not None and target > 0 and abs(float(seed.alpha) - target) < 1e-3


def _kept_by_held_out_loss(_: Seed, evidence: Evidence) -> bool:
    improves = _number(evidence, "gain_lower") > _number(evidence, "threshold")
    return improves and evidence["split"] == "held_out"


FOLD_TOLERANCE = 1e-5
"""How far a folded host may be from host and kernel, relative to the largest output."""

_CULL = Gate(("reason",), "say why the seed is taken out", lambda _, e: bool(e["reason"]))
_FAIL = Gate(("kind", "message"), "say what the kernel did", lambda _, e: bool(e["kind"]))

TRANSITIONS: Mapping[tuple[SeedState, SeedState], Gate] = {
    (SeedState.DORMANT, SeedState.GERMINATED): Gate(
        ("kernel_id",), "graft a kernel that fits", lambda seed, e: seed.kernel_id == e["kernel_id"]
    ),
    (SeedState.GERMINATED, SeedState.TRAINING): Gate(
        ("optimizer_parameters",),
        "give every trainable parameter of the kernel to the optimizer",
        lambda seed, e: _number(e, "optimizer_parameters") == seed.trainable_parameters,
    ),
    (SeedState.TRAINING, SeedState.BLENDING): Gate(
        ("steps",), "train the kernel for one step at least", lambda _, e: _number(e, "steps") >= 1
    ),
    (SeedState.BLENDING, SeedState.HOLDING): Gate(
        ("alpha_target",), "blend until alpha has reached its target", _reached_target
    ),
    (SeedState.HOLDING, SeedState.FOSSILIZED): Gate(
        ("gain_lower", "threshold", "split"),
        "the lower bound of the gain, loss with the seed off minus on, on the split 'held_out', "
        "must exceed the threshold",
        _kept_by_held_out_loss,
    ),
    (SeedState.GERMINATED, SeedState.CULLED): _CULL,
    (SeedState.TRAINING, SeedState.CULLED): _CULL,
    (SeedState.BLENDING, SeedState.CULLED): _CULL,
    (SeedState.HOLDING, SeedState.CULLED): _CULL,
    (SeedState.CULLED, SeedState.EMBARGOED): Gate(
        ("until_epoch",), "remove the kernel first", lambda seed, _: seed.kernel is None
    ),
    (SeedState.EMBARGOED, SeedState.DORMANT): Gate(
        ("epoch",),
        "wait until the embargo is over",
        lambda seed, e: seed.embargoed_until is None or _number(e, "epoch") >= seed.embargoed_until,
    ),
    (SeedState.GERMINATED, SeedState.ERROR_RECOVERY): _FAIL,
    (SeedState.TRAINING, SeedState.ERROR_RECOVERY): _FAIL,
    (SeedState.BLENDING, SeedState.ERROR_RECOVERY): _FAIL,
    (SeedState.HOLDING, SeedState.ERROR_RECOVERY): _FAIL,
    (SeedState.FOSSILIZED, SeedState.ERROR_RECOVERY): _FAIL,
    (SeedState.FOSSILIZED, SeedState.DORMANT): Gate(
        ("folded_error",),
        f"fold the kernel into the host: the outputs must agree to {FOLD_TOLERANCE:g}",
        lambda _, e: 0 <= _number(e, "folded_error") <= FOLD_TOLERANCE,
    ),
    (SeedState.ERROR_RECOVERY, SeedState.DORMANT): Gate(
        (), "remove the kernel first", lambda seed, _: seed.kernel is None
    ),
}
"""Every allowed transition with its gate."""
