"""Noticing that training is unstable: pure detectors, and a watch that rarely waits for the device."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Final

import torch
from torch import Tensor, nn

from esper.errors import ConfigError
from esper.messages import EpochRecord, Symptom

MAD_TO_DEVIATION: Final = 1.4826
"""A normal distribution's standard deviation over its median absolute deviation."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Beyond which training counts as unstable. ``chance`` is ln(classes), the loss (nats) of a guess.

    A step's loss is a spike when it lies more than ``spike`` robust deviations above the median of the last
    ``window`` losses and is larger than ``spike_chances * chance``. A gradient explodes when its norm is more
    than ``gradient`` times the highest before. Training has collapsed when the median of the window is back
    at ``chance``, after one of ``learned * chance`` or less. It diverges after an adaptation when within
    ``adaptation_epochs`` the held-out loss is ``divergence * chance`` above what it was before.
    """

    chance: float
    window: int = 64
    spike: float = 20.0
    spike_chances: float = 2.0
    gradient: float = 100.0
    learned: float = 0.5
    adaptation_epochs: int = 4
    divergence: float = 0.5

    def __post_init__(self) -> None:
        if self.window < 8:
            raise ConfigError(f"tolaria.recovery.window must be at least 8, not {self.window}")
        for name in ("spike", "spike_chances", "gradient", "learned", "divergence"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"tolaria.recovery.{name} must be above 0, not {getattr(self, name)}")
        if self.adaptation_epochs < 0:
            raise ConfigError(
                f"tolaria.recovery.adaptation_epochs must be at least 0, not {self.adaptation_epochs}"
            )


@dataclass(slots=True)
class Past:
    """The steps before: the last losses, how many there were, the highest norm, the best full window."""

    losses: tuple[float, ...] = ()
    steps: int = 0
    highest_norm: float = 0.0
    best: float = math.inf

    def add(self, loss: float, norm: float, limits: Limits) -> None:
        """Count a step that was stable."""
        self.losses = (*self.losses, loss)[-limits.window :]
        self.steps += 1
        self.highest_norm = max(self.highest_norm, norm)
        if self.steps % limits.window == 0:
            self.best = min(self.best, statistics.median(self.losses))


def is_spike(loss: float, losses: Sequence[float], limits: Limits) -> bool:
    """Whether ``loss`` stands out of ``losses``, the ones before it, and is far worse than guessing."""
    if loss <= limits.spike_chances * limits.chance or len(losses) < limits.window // 4:
        return False
    median = statistics.median(losses)
    deviation = MAD_TO_DEVIATION * statistics.median(abs(each - median) for each in losses)
    return loss - median > limits.spike * deviation


def has_collapsed(losses: Sequence[float], best: float, limits: Limits) -> bool:
    """Whether a full window of losses is back at guessing, after a window that was far better."""
    if len(losses) < limits.window or best > limits.learned * limits.chance:
        return False
    return statistics.median(losses) >= limits.chance


def judge_step(loss: float, norm: float, past: Past, limits: Limits) -> tuple[Any, str] | None:
    """The kind of instability that a step shows after ``past``, and its words; None for a stable one."""
    if not math.isfinite(loss):
        return "non-finite loss", f"the loss is {loss}"
    if not math.isfinite(norm):
        return "non-finite gradient", f"the norm of the gradient is {norm}"
    if is_spike(loss, past.losses, limits):
        return "loss spike", f"a loss of {loss:.4g} after a median of {statistics.median(past.losses):.4g}"
    if past.steps >= limits.window // 4 and norm > limits.gradient * past.highest_norm > 0:
        return (
            "gradient explosion",
            f"a gradient norm of {norm:.4g}, at most {past.highest_norm:.4g} before",
        )
    if loss >= limits.chance and has_collapsed((*past.losses, loss)[-limits.window :], past.best, limits):
        return "collapse", f"the loss is back at {loss:.4g}, that of a guess, after {past.best:.4g}"
    return None


def divergence(
    history: Sequence[EpochRecord], adapted: Iterable[tuple[int, str]], limits: Limits
) -> tuple[str, str] | None:
    """The newest adaptation, of pairs (epoch, target), after which the held-out loss ran away, and words."""
    newest_first = sorted(adapted, reverse=True)
    if not newest_first:
        return None
    oldest = newest_first[-1][0]
    losses = {
        each.epoch: each.loss for each in takewhile(lambda each: each.epoch >= oldest, reversed(history))
    }
    last = history[-1]
    for epoch, target in newest_first:
        before = losses.get(epoch)
        if before is None or not epoch < last.epoch <= epoch + limits.adaptation_epochs:
            continue
        if last.loss > before + limits.divergence * limits.chance:
            return target, f"the held-out loss went from {before:.4g} to {last.loss:.4g} after {target}"
    return None


@torch.no_grad()
def first_non_finite(model: nn.Module) -> str | None:
    """Name of the first parameter or buffer with a NaN or an infinity; one transfer from the device."""
    named = [(n, t) for n, t in model.state_dict().items() if t.is_floating_point()]
    if not named:
        return None
    finite = torch.stack([torch.isfinite(tensor).all() for _, tensor in named])
    if bool(finite.all()):
        return None
    return named[int((~finite).int().argmax())][0]


class StepWatch:
    """Gathers loss and gradient norm of each step on the device, and judges them when asked.

    A step costs a norm of each gradient and no wait, ``look`` one transfer for all steps since the last.
    """

    def __init__(self, limits: Limits, device: torch.device) -> None:
        self.limits = limits
        self.past = Past()
        self._noted = torch.zeros((limits.window, 2), device=device)
        self._places: list[tuple[int, int, int]] = []

    @property
    def full(self) -> bool:
        """Whether ``look`` has to be called before the next step."""
        return len(self._places) == self.limits.window

    def note(self, place: tuple[int, int, int], loss: Tensor, parameters: Iterable[Tensor]) -> None:
        """Note the step at ``place`` (epoch, step in it, steps before it), once it has its gradients."""
        row = self._noted[len(self._places)]
        self._places.append(place)
        row[0].copy_(loss)
        gradients = [p.grad for p in parameters if p.grad is not None]
        if gradients:
            row[1].copy_(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients))))
        else:
            row[1].zero_()

    def look(self) -> Symptom | None:
        """The first unstable step since the last look; nothing after it is judged, or remembered."""
        places, self._places = self._places, []
        if not places:
            return None
        for place, (loss, norm) in zip(places, self._noted[: len(places)].tolist(), strict=True):
            if found := judge_step(loss, norm, self.past, self.limits):
                kind, detail = found
                epoch, step, before = place
                return Symptom(kind, epoch, None if kind == "collapse" else step, before, detail)
            self.past.add(loss, norm, self.limits)
        return None

    def state(self) -> dict[str, Any]:
        """What is remembered, for a checkpoint; call ``look`` first."""
        past = self.past
        return {
            "losses": past.losses,
            "steps": past.steps,
            "highest_norm": past.highest_norm,
            "best": past.best,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Put back what ``state`` returned; nothing of it is older than the checkpoint."""
        self.past = Past(**{**state, "losses": tuple(state.get("losses", ()))})
        self._places = []
