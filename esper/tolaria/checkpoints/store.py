"""Writing and loading checkpoints.

One is written under another name, every file of it and the folder fsynced, then renamed, and its parent
fsynced: under its own name it is whole.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from esper.errors import CheckpointError, EsperError, StorageError, UnknownKey
from esper.security import Envelope
from esper.tolaria.append_only import AppendOnly, Place
from esper.tolaria.checkpoints import format2
from esper.tolaria.checkpoints.folder import CheckpointFolder, Found, none_in
from esper.tolaria.checkpoints.manifest import NAME, Manifest, Mark, Part, damaged, identity
from esper.tolaria.checkpoints.retention import Retention
from esper.tolaria.checkpoints.tensors import described, empty, memory_of
from esper.tolaria.checkpoints.tree import Parts, join, split, to_json
from esper.tolaria.durable import sync_folder, write_all

_STATE: Final = "state.sealed"
_TENSORS: Final = "tensors.sealed"


class Checkpoints(CheckpointFolder):
    """The checkpoints of one run, in ``folder``. One process writes them; any number may read."""

    def __init__(self, folder: Path, envelope: Envelope, retention: Retention | None = None) -> None:
        super().__init__(folder, envelope)
        self._retention = retention or Retention()
        self._marks: dict[Path, Mark] | None = None
        self.pinned: frozenset[int] = frozenset()
        """Steps whose checkpoints stay whatever the retention says."""

    def save(self, mark: Mark, state: Mapping[str, Any]) -> Path:
        """Write ``state`` as the checkpoint at ``mark``; it is on the disk when this returns its path.

        Raises StorageError, after which the checkpoints are those of before.
        """
        return self.write(mark, split(state))

    def write(self, mark: Mark, state: Parts) -> Path:
        """As :meth:`save`, of a state that was split."""
        path = self.folder
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            marks = self._written()
            path = _unused(self.folder, mark.step)
            temporary = self.folder / f".{path.name}.tmp"
            try:
                temporary.mkdir()
                past = self._write_files(temporary, mark, state)
                sync_folder(temporary)
                temporary.rename(path)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
            sync_folder(self.folder)
            if past is not None:
                for sequence in state.past.values():
                    sequence.note_saved(past)
            marks[path] = mark
            self._drop_superfluous(marks)
        except OSError as error:
            raise StorageError.from_os(error, path, "cannot write the checkpoint") from error
        return path

    def load(self, name: str | None = None, *, past: bool = True) -> dict[str, Any]:
        """The state of a checkpoint, the newest if ``name`` is None, its tensors on the CPU.

        Nothing of it is given out before all of it is authenticated. Without ``past`` what only grows is
        empty, and the log of it may be damaged: for those who want the network alone. Raises CheckpointError,
        or UnknownKey where the key that it was sealed with is not at hand.
        """
        if name is None and self.is_older():
            return format2.load(self.folder)
        return self.open(self.find(name), past=past)

    def load_newest_good(self) -> tuple[dict[str, Any], list[EsperError]]:
        """The state of the newest checkpoint that is whole, and what was passed over for being damaged."""
        if self.is_older():
            return format2.load(self.folder), []
        errors: list[EsperError] = []
        for found in self.all():
            try:
                return self.open(found, told=errors), errors
            except (CheckpointError, UnknownKey) as error:
                errors.append(error)
        raise errors[0] if errors else none_in(self.folder)

    def open(
        self, found: Found, *, past: bool = True, told: list[EsperError] | None = None
    ) -> dict[str, Any]:
        """The state of a checkpoint that was found; raises as :meth:`load` does.

        ``told`` gets what is damaged and was read from a copy.
        """
        manifest = self._good(found)
        parts = {part.name: part for part in manifest.parts}
        try:
            stored = json.loads(self._opened(found.path, manifest, parts[_STATE]))
            tensors = empty(stored["tensors"], parts[_TENSORS].size)
            self._authenticate(found.path, manifest, parts[_TENSORS], memory_of(tensors.values()))
            whole = self._past_of(found, manifest, [] if told is None else told) if past else None
            state: dict[str, Any] = join(stored["state"], tensors, whole)
        except (KeyError, ValueError, TypeError) as error:
            raise damaged(str(found.path), f"its parts do not fit together: {error}") from error
        return state

    def load_before(self, step: int) -> tuple[str, dict[str, Any], list[EsperError]]:
        """The newest whole checkpoint of at most ``step`` steps, the oldest if all are later: name and state.

        With them what was wrong with those that were passed over. Raises CheckpointError when none is whole.
        """
        found = [each for each in self.all() if each.manifest is not None]
        early = [each for each in found if each.manifest and each.manifest.mark.step <= step]
        errors: list[EsperError] = []
        for each in (*early, *reversed(found)):
            try:
                return each.name, self.open(each, told=errors), errors
            except (CheckpointError, UnknownKey) as error:
                errors.append(error)
        raise errors[0] if errors else none_in(self.folder)

    def forget_after(self, name: str) -> None:
        """Remove all that is newer than the checkpoint ``name``: the run went back to it. StorageError."""
        for newer in self.all():
            if newer.name == name:
                return
            self.remove(newer)
            if self._marks is not None:
                self._marks.pop(newer.path, None)

    # Writing

    def _written(self) -> dict[Path, Mark]:
        """Those on the disk, oldest first; what a killed process left unfinished is removed."""
        if self._marks is None:
            for left_over in self.folder.glob(".step-*.tmp"):
                shutil.rmtree(left_over)
            found = [each for each in reversed(self.all()) if each.manifest is not None]
            self._marks = {each.path: each.manifest.mark for each in found if each.manifest}
        return self._marks

    def _write_files(self, folder: Path, mark: Mark, state: Parts) -> Place | None:
        """Write all before any is synced: together they are one turn of the file system's journal.

        Returns where the log has what is past.
        """
        number, parts = secrets.token_hex(16), []
        document = to_json({"state": state.document, "tensors": described(state.tensors)})
        contents: dict[str, Sequence[memoryview]] = {
            _STATE: [memoryview(document)],
            _TENSORS: memory_of(tensor.cpu().contiguous() for tensor in state.tensors.values()),
        }
        with ExitStack() as opened:
            files, past = [], None
            if state.past:
                files += self._past.opened(opened)
                past = self._past.append(files, state.past)
            for name, pieces in contents.items():
                files.append(opened.enter_context((folder / name).open("wb", buffering=0)))
                sealed = self._envelope.seal_stream(pieces, identity(self._run, number, name))
                parts.append(Part(name, write_all(files[-1], sealed)))
            created_at = datetime.now(UTC).isoformat(timespec="seconds")
            manifest = Manifest(number, self._run, mark, created_at, tuple(parts), past)
            files.append(opened.enter_context((folder / NAME).open("wb", buffering=0)))
            write_all(files[-1], [manifest.signed(self._envelope)])
            for file in files:
                os.fsync(file.fileno())
        return past

    def _drop_superfluous(self, marks: dict[Path, Mark]) -> None:
        paths = list(marks)
        for position in self._retention.superfluous(list(marks.values())):
            path = paths[position]
            if marks[path].step in self.pinned:
                continue
            del marks[path]
            if path.exists():
                self.remove(Found(path, None))

    # Reading

    def _past_of(
        self, found: Found, manifest: Manifest, told: list[EsperError]
    ) -> dict[str, AppendOnly[Any]]:
        read = self._past.read(manifest.past, found.path, told)
        return {path: AppendOnly(join(items, {}, {}), manifest.past) for path, items in read.items()}

    def _opened(self, path: Path, manifest: Manifest, part: Part) -> bytes:
        data = bytearray(self._envelope.plain_length(part.size))
        self._authenticate(path, manifest, part, [memoryview(data)])
        return bytes(data)


def _unused(folder: Path, step: int) -> Path:
    path, again = folder / f"step-{step:09d}", 0
    while path.exists():
        again += 1
        path = folder / f"step-{step:09d}.{again}"
    return path
