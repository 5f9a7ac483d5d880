"""Eager: no compiler at all. A program is a blueprint and its weights, rebuilt through the table of ops.

Nothing of it is code or a pickle: one safetensors file, whose header holds the blueprint and the slot.
"""

from __future__ import annotations

import json
from dataclasses import asdict

import safetensors.torch
import torch
from torch import nn

from esper.blueprint import from_json, plan
from esper.errors import BlueprintError
from esper.messages import Slot
from esper.tezzeret.builder import plan_of, unweighted

_LENGTH = 8
"""Bytes of the number before the header of a safetensors file."""

_KEY = "kernel"
"""What the header has the blueprint and slot under; of several keys the order would change."""


class EagerTarget:
    """Keeps networks as they were built. They train, and take every shape and dtype that their ops take."""

    name = "eager"

    def compile(self, module: nn.Module) -> nn.Module:
        """``module`` itself, a network of ``esper.tezzeret.builder``."""
        plan_of(module)
        return module

    def optimise(self, program: nn.Module, device: torch.device) -> tuple[str, ...]:  # noqa: ARG002
        """Nothing: the weights are kept as plain rows."""
        return ()

    def check(self, program: nn.Module) -> None:
        """Raises ``RuntimeError`` for what was not built here; what was holds only ops of the table."""
        plan_of(program)

    def save(self, program: nn.Module) -> bytes:
        """``program`` as safetensors with its blueprint and slot in the header."""
        made = plan_of(program)
        about = {"blueprint": made.blueprint.canonical_json(), "slot": asdict(made.slot)}
        weights = {name: value.detach().cpu().contiguous() for name, value in program.state_dict().items()}
        return safetensors.torch.save(weights, {_KEY: json.dumps(about)})

    def load(self, program: bytes, device: torch.device | str = "cpu") -> nn.Module:
        """A fresh module, in training mode. Allocates no more than the weights that ``program`` holds."""
        try:
            length = int.from_bytes(program[:_LENGTH], "little")
            about = json.loads(json.loads(program[_LENGTH : _LENGTH + length])["__metadata__"][_KEY])
            module = unweighted(plan(from_json(about["blueprint"]), Slot(**about["slot"])))
            module.load_state_dict(safetensors.torch.load(program), assign=True)  # else RuntimeError
        except (ValueError, KeyError, TypeError, BlueprintError, safetensors.SafetensorError) as error:
            raise RuntimeError(f"no blueprint with its weights: {error}") from error
        return module.to(device)
