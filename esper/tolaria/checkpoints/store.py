"""A folder of checkpoints, a folder each.

::

    checkpoints/
      step-000001200/
        state.sealed      JSON: progress, growth, policy, generators, where each tensor belongs
        tensors-000.sealed  safetensors, up to PART_BYTES each
        manifest.json     written last: marks, sizes, SHA-256 of each part, authenticated

A checkpoint is written under another name, every file of it and the folder fsynced, then renamed, and its
parent fsynced: under its own name it is whole. Parts are sealed with AES-256-GCM by ``esper.security``.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from esper.errors import CheckpointError, EsperError, SealBroken, StorageError, UnknownKey
from esper.security import Envelope
from esper.tolaria.checkpoints import format2
from esper.tolaria.checkpoints.manifest import MOST_BYTES, NAME, Manifest, Mark, Part, damaged, identity
from esper.tolaria.checkpoints.retention import Retention
from esper.tolaria.checkpoints.tree import join, split, to_json
from esper.tolaria.durable import sync_folder, write_durably

PART_BYTES: Final = 2**25
"""Tensors are packed into parts of about this size, so that sealing takes little memory of its own."""

_STATE: Final = "state.sealed"
_FOLDER: Final = re.compile(r"step-(\d{9,})(?:\.(\d+))?")


@dataclass(frozen=True, slots=True)
class Found:
    """A checkpoint in its folder: a manifest that is good, or why it cannot be used."""

    path: Path
    manifest: Manifest | None
    error: CheckpointError | UnknownKey | None = None

    @property
    def name(self) -> str:
        """What it is called on the command line."""
        return self.path.name


class Checkpoints:
    """The checkpoints of one run, in ``folder``. One process writes them; any number may read."""

    def __init__(self, folder: Path, envelope: Envelope, retention: Retention | None = None) -> None:
        self.folder = folder
        self._envelope = envelope
        self._retention = retention or Retention()
        self._run = folder.parent.name
        self._marks: dict[Path, Mark] | None = None

    def save(self, mark: Mark, state: Mapping[str, Any]) -> Path:
        """Write ``state`` as the checkpoint at ``mark``; it is on the disk when this returns its path.

        Raises StorageError, after which the checkpoints are those of before.
        """
        document, tensors = split(state)
        return self.write(mark, document, tensors)

    def write(self, mark: Mark, document: Any, tensors: Mapping[str, Tensor]) -> Path:
        """As :meth:`save`, of a state that was split."""
        path = self.folder
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            marks = self._written()
            path = _unused(self.folder, mark.step)
            temporary = self.folder / f".{path.name}.tmp"
            try:
                temporary.mkdir()
                parts = tuple(self._written_parts(temporary, mark, document, tensors))
                created_at = datetime.now(UTC).isoformat(timespec="seconds")
                manifest = Manifest(self._run, mark, created_at, parts)
                write_durably(temporary / NAME, [manifest.signed(self._envelope)])
                sync_folder(temporary)
                temporary.rename(path)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
            sync_folder(self.folder)
            marks[path] = mark
            self._drop_superfluous(marks)
        except OSError as error:
            raise StorageError.from_os(error, path, "cannot write the checkpoint") from error
        return path

    def all(self) -> list[Found]:
        """Every checkpoint, newest first, those too that cannot be used; parts are not looked at."""
        return [self._found(path) for path in _folders(self.folder)]

    def find(self, name: str | None = None) -> Found:
        """The checkpoint of that folder name or step, the newest if ``name`` is None; CheckpointError."""
        folders = _folders(self.folder)
        if not folders:
            raise _none(self.folder)
        for path in folders:
            if name is None or name in (path.name, str(_place(path)[0])):
                return self._found(path)
        raise CheckpointError(
            f"no checkpoint {name} in {self.folder}", hint="esper checkpoints ls lists those that are there"
        )

    def load(self, name: str | None = None) -> dict[str, Any]:
        """The state of a checkpoint, the newest if ``name`` is None, its tensors on the CPU.

        All of it is authenticated before any of it is read. Raises CheckpointError, or UnknownKey where the
        key that it was sealed with is not at hand.
        """
        if not _folders(self.folder) and name is None and format2.is_there(self.folder):
            return format2.load(self.folder)
        return self.open(self.find(name))

    def load_newest_good(self) -> tuple[dict[str, Any], list[EsperError]]:
        """The state of the newest checkpoint that is whole, and what was wrong with those after it."""
        if not _folders(self.folder) and format2.is_there(self.folder):
            return format2.load(self.folder), []
        errors: list[EsperError] = []
        for found in self.all():
            try:
                return self.open(found), errors
            except (CheckpointError, UnknownKey) as error:
                errors.append(error)
        raise errors[0] if errors else _none(self.folder)

    def open(self, found: Found) -> dict[str, Any]:
        """The state of a checkpoint that was found; raises as :meth:`load` does."""
        manifest = self.verify(found)
        opened = {part.name: self._opened(found.path, manifest, part) for part in manifest.parts}
        try:
            document = json.loads(opened.pop(_STATE))
            tensors = {name: t for data in opened.values() for name, t in load_tensors(data).items()}
            state: dict[str, Any] = join(document, tensors)
        except (KeyError, ValueError, SafetensorError) as error:
            raise damaged(str(found.path), f"its parts do not fit together: {error}") from error
        return state

    def verify(self, found: Found) -> Manifest:
        """The manifest of a checkpoint whose every part has the size and the digest that it should have."""
        if found.manifest is None:
            assert found.error is not None
            raise found.error
        for part in found.manifest.parts:
            self._read(found.path, part)
        return found.manifest

    def remove(self, found: Found) -> None:
        """Remove a checkpoint: out of sight at once, whatever ends this in between."""
        doomed = found.path.with_name(f".{found.path.name}.gone.tmp")
        try:
            found.path.rename(doomed)
            shutil.rmtree(doomed)
            sync_folder(self.folder)
        except OSError as error:
            raise StorageError.from_os(error, found.path, "cannot remove the checkpoint") from error

    # Writing

    def _written(self) -> dict[Path, Mark]:
        """Those on the disk, oldest first; what a killed process left unfinished is removed."""
        if self._marks is None:
            for left_over in self.folder.glob(".step-*.tmp"):
                shutil.rmtree(left_over)
            found = [each for each in reversed(self.all()) if each.manifest is not None]
            self._marks = {each.path: each.manifest.mark for each in found if each.manifest}
        return self._marks

    def _written_parts(
        self, folder: Path, mark: Mark, document: Any, tensors: Mapping[str, Tensor]
    ) -> Iterator[Part]:
        yield self._write_part(folder, mark, _STATE, to_json(document))
        for number, group in enumerate(_groups(tensors)):
            yield self._write_part(folder, mark, f"tensors-{number:03d}.sealed", save_tensors(group))

    def _write_part(self, folder: Path, mark: Mark, name: str, data: bytes) -> Part:
        sealed = self._envelope.seal(data, identity(self._run, mark, name))
        write_durably(folder / name, [sealed])
        return Part(name, len(sealed), hashlib.sha256(sealed).hexdigest())

    def _drop_superfluous(self, marks: dict[Path, Mark]) -> None:
        paths = list(marks)
        for position in self._retention.superfluous(list(marks.values())):
            path = paths[position]
            del marks[path]
            if path.exists():
                self.remove(Found(path, None))

    # Reading

    def _found(self, path: Path) -> Found:
        try:
            with (path / NAME).open("rb") as file:
                manifest = Manifest.read(file.read(MOST_BYTES), str(path), self._envelope)
        except FileNotFoundError:
            return Found(path, None, damaged(str(path), "it has no manifest"))
        except OSError as error:
            return Found(path, None, CheckpointError(f"cannot read {path}: {error.strerror}"))
        except (CheckpointError, UnknownKey) as error:
            return Found(path, None, error)
        if (manifest.run, manifest.mark.step) != (self._run, _place(path)[0]):
            of = f"run {manifest.run}, step {manifest.mark.step}"
            return Found(path, None, damaged(str(path), f"it is that of {of}, put under another name"))
        return Found(path, manifest)

    def _read(self, path: Path, part: Part) -> bytes:
        try:
            with (path / part.name).open("rb") as file:
                data = file.read(part.size + 1)
        except FileNotFoundError:
            raise damaged(str(path), f"{part.name} is missing") from None
        except OSError as error:
            raise CheckpointError(f"cannot read {path / part.name}: {error.strerror}") from error
        if len(data) != part.size or hashlib.sha256(data).hexdigest() != part.sha256:
            raise damaged(str(path), f"{part.name} is not what was written")
        return data

    def _opened(self, path: Path, manifest: Manifest, part: Part) -> bytes:
        try:
            return self._envelope.open(self._read(path, part), manifest.identity(part.name))
        except SealBroken as error:
            raise damaged(str(path), f"{part.name} is not what was sealed") from error


def _groups(tensors: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """``tensors`` in groups of about ``PART_BYTES``, in their order."""
    group: dict[str, Tensor] = {}
    held = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        if group and held + size > PART_BYTES:
            yield group
            group, held = {}, 0
        group[name] = tensor.contiguous()
        held += size
    if group:
        yield group


def _folders(folder: Path) -> list[Path]:
    """The folders of checkpoints, newest first."""
    try:
        found = [path for path in folder.iterdir() if _FOLDER.fullmatch(path.name)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(found, key=_place, reverse=True)


def _place(path: Path) -> tuple[int, int]:
    """Step, and which one at that step: a run that was rolled back comes by again."""
    match = _FOLDER.fullmatch(path.name)
    assert match is not None
    return int(match[1]), int(match[2] or 0)


def _unused(folder: Path, step: int) -> Path:
    path, again = folder / f"step-{step:09d}", 0
    while path.exists():
        again += 1
        path = folder / f"step-{step:09d}.{again}"
    return path


def _none(folder: Path) -> CheckpointError:
    hint = "the run ended before its first epoch; start it again"
    return CheckpointError(f"no checkpoint in {folder}", hint=hint)
