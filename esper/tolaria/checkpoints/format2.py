"""Checkpoints of format 2, one file of ``torch.save`` beside ``latest.json``: read, no longer written.

They were not sealed. They are looked at only where there is no sealed one: none can take its place.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
from pathlib import Path
from typing import Any

import torch

from esper.errors import CheckpointError
from esper.tolaria.checkpoints.folder import LATEST


def load(folder: Path) -> dict[str, Any]:
    """The state of the newest one; CheckpointError before torch sees damaged bytes."""
    latest = folder / LATEST
    try:
        manifest = json.loads(latest.read_bytes())
        path = folder / manifest["file"]
        data = path.read_bytes()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"cannot read {latest}: {error}") from error
    if hashlib.sha256(data).hexdigest() != manifest.get("sha256"):
        reason = "its SHA-256 is not that of latest.json"
        raise CheckpointError(f"{path} is damaged: {reason}", hint="start the run again")
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path} is not a checkpoint of Esper", hint="start the run again") from error
    if state.pop("format", None) != 2:
        raise CheckpointError(f"{path} is of an unknown format", hint="use the Esper that wrote it")
    del state["epoch"]
    return state
