"""What is in a folder of checkpoints: listed, authenticated, removed. Importing this does not import PyTorch.

::

    checkpoints/
      past.sealed       what only grows, such as the epochs that were: each checkpoint has its end in it
      past-copy.sealed  the same once more
      step-000001200/
        state.sealed    JSON: progress, growth, policy, generators, and which tensors follow
        tensors.sealed  their bytes, one after another
        manifest.json   written last: marks and sizes, authenticated

Parts are sealed with AES-256-GCM by ``esper.security``.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from esper.errors import CheckpointError, EsperError, SealBroken, StorageError, UnknownKey
from esper.security import Envelope
from esper.tolaria.checkpoints.manifest import MOST_BYTES, NAME, Manifest, Part, damaged
from esper.tolaria.checkpoints.past import PastLog
from esper.tolaria.durable import sync_folder

LATEST: Final = "latest.json"
"""What a folder of format 2 has: one file of ``torch.save`` and this beside it."""

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

    @property
    def step(self) -> int:
        """Optimizer steps before it, as its name says."""
        return _place(self.path)[0]


class CheckpointFolder:
    """The checkpoints of one run, in ``folder``, to be looked at and removed by any number of processes."""

    def __init__(self, folder: Path, envelope: Envelope) -> None:
        self.folder = folder
        self._envelope = envelope
        self._run = folder.parent.name
        self._past = PastLog(folder, self._run, envelope)

    def all(self) -> list[Found]:
        """Every checkpoint, newest first, those too that cannot be used; parts are not looked at."""
        return [self._found(path) for path in self._paths()]

    def is_older(self) -> bool:
        """Whether there is nothing but what an older Esper wrote, in format 2: it can be loaded, no more."""
        return not self._paths() and (self.folder / LATEST).exists()

    def find(self, name: str | None = None) -> Found:
        """The checkpoint of that folder name or step, the newest if ``name`` is None; CheckpointError."""
        folders = self._paths()
        if not folders:
            raise none_in(self.folder)
        for path in folders:
            if name is None or name in (path.name, str(_place(path)[0])):
                return self._found(path)
        raise CheckpointError(
            f"no checkpoint {name} in {self.folder}",
            hint=f"list those that are there with: esper checkpoints ls {self._run}",
        )

    def verify(self, found: Found) -> Manifest:
        """The manifest of a checkpoint of which every byte is what was sealed.

        Raises CheckpointError, or UnknownKey where the key that it was sealed with is not at hand.
        """
        manifest = self._good(found)
        for part in manifest.parts:
            self._authenticate(found.path, manifest, part)
        told: list[EsperError] = []
        for copy_first in (False, True):
            self._past.read(manifest.past, found.path, told, copy_first=copy_first)
        if told:  # the run can go on, but who asks should know
            raise told[0]
        return manifest

    def remove(self, found: Found) -> None:
        """Remove a checkpoint: out of sight at once, whatever ends this in between."""
        doomed = found.path.with_name(f".{found.path.name}.gone.tmp")
        try:
            found.path.rename(doomed)
            shutil.rmtree(doomed)
            sync_folder(self.folder)
        except OSError as error:
            raise StorageError.from_os(error, found.path, "cannot remove the checkpoint") from error

    def _paths(self) -> list[Path]:
        """The folders of checkpoints, newest first."""
        try:
            found = [path for path in self.folder.iterdir() if _FOLDER.fullmatch(path.name)]
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(found, key=_place, reverse=True)

    def _found(self, path: Path) -> Found:
        try:
            with (path / NAME).open("rb") as file:
                manifest = Manifest.read(file.read(MOST_BYTES), str(path), self._envelope)
            for part in manifest.parts:
                if (path / part.name).stat().st_size != part.size:
                    raise damaged(str(path), f"{part.name} is not what was written")
        except FileNotFoundError as error:
            return Found(path, None, damaged(str(path), f"{Path(error.filename).name} is missing"))
        except OSError as error:
            return Found(path, None, CheckpointError(f"cannot read {path}: {error.strerror}"))
        except (CheckpointError, UnknownKey) as error:
            return Found(path, None, error)
        if (manifest.run, manifest.mark.step) != (self._run, _place(path)[0]):
            of = f"run {manifest.run}, step {manifest.mark.step}"
            return Found(path, None, damaged(str(path), f"it is that of {of}, put under another name"))
        return Found(path, manifest)

    def _good(self, found: Found) -> Manifest:
        if found.manifest is None:
            assert found.error is not None
            raise found.error
        return found.manifest

    def _authenticate(
        self, path: Path, manifest: Manifest, part: Part, targets: Sequence[memoryview] | None = None
    ) -> None:
        """Read all of a part, into ``targets`` if any, which are worth nothing before this returns."""
        try:
            with (path / part.name).open("rb") as file:
                self._envelope.open_stream(file, part.size, manifest.identity(part.name), targets)
        except SealBroken as error:
            raise damaged(str(path), f"{part.name} is not what was sealed") from error
        except FileNotFoundError:
            raise damaged(str(path), f"{part.name} is missing") from None
        except OSError as error:
            raise CheckpointError(f"cannot read {path / part.name}: {error.strerror}") from error


def none_in(folder: Path) -> EsperError:
    """The error for a run without a checkpoint."""
    hint = "the run ended before its first epoch; start it again"
    return CheckpointError(f"no checkpoint in {folder}", hint=hint)


def _place(path: Path) -> tuple[int, int]:
    """Step, and which one at that step: a run that was rolled back comes by again."""
    match = _FOLDER.fullmatch(path.name)
    assert match is not None
    return int(match[1]), int(match[2] or 0)
