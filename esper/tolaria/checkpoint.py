"""Checkpoints: written whole or not at all, verified before they are read."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
from pathlib import Path
from typing import Any

import torch

from esper.errors import CheckpointError, StorageError

FORMAT = 2


class Checkpoints:
    """The checkpoints of one run, in ``folder``; the newest ``keep`` stay.

    ``latest.json`` names the newest file and its SHA-256 and is replaced last, so a process killed at any
    moment leaves it naming a file that is whole.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder = folder
        self.keep = keep

    def save(self, epoch: int, state: dict[str, Any]) -> Path:
        """Write ``state`` (tensors and plain data) as the checkpoint after ``epoch``; returns its path."""
        buffer = io.BytesIO()
        torch.save({"format": FORMAT, "epoch": epoch, **state}, buffer)
        data = buffer.getvalue()
        path = self.folder / f"epoch-{epoch:05d}.pt"
        manifest = {"epoch": epoch, "file": path.name, "sha256": hashlib.sha256(data).hexdigest()}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, data)
            write_atomically(self.folder / "latest.json", json.dumps(manifest).encode())
            for old in sorted(self.folder.glob("epoch-*.pt"))[: -self.keep]:
                old.unlink()
        except OSError as error:
            raise StorageError.from_os(error, path, "cannot write the checkpoint") from error
        return path

    def load(self) -> dict[str, Any]:
        """The newest checkpoint, its tensors on the CPU; CheckpointError before torch sees damaged bytes."""
        manifest_path = self.folder / "latest.json"
        try:
            manifest = json.loads(manifest_path.read_bytes())
            path = self.folder / manifest["file"]
            data = path.read_bytes()
        except FileNotFoundError as error:
            raise CheckpointError(
                f"no checkpoint in {self.folder}", hint="the run ended before its first epoch; start it again"
            ) from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"cannot read {manifest_path}: {error}") from error
        if hashlib.sha256(data).hexdigest() != manifest.get("sha256"):
            raise CheckpointError(
                f"{path} is damaged: its SHA-256 is not that of latest.json", hint="start the run again"
            )
        try:
            state: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except (RuntimeError, pickle.UnpicklingError) as error:
            raise CheckpointError(
                f"{path} is not a checkpoint of Esper", hint="start the run again"
            ) from error
        if state.get("format") != FORMAT:
            raise CheckpointError(
                f"{path} has format {state.get('format')}, this Esper reads {FORMAT}",
                hint="use the version of Esper that wrote it",
            )
        return state


def write_atomically(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data``: a reader, or a crash, sees the old file or the new one, whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
