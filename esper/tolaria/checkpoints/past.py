"""The log beside the checkpoints of a run: what only grows, written once. Importing this takes no PyTorch.

A frame has what was added since the frame before it, whose place it names. Each checkpoint names the frame
that ends its past, so a run that went back goes on from that one; what was left is never read again. All
checkpoints need the log, so there are two files of the same bytes: what is damaged in one is read from the
other.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from io import FileIO
from pathlib import Path
from typing import Any, Final

from esper.errors import CheckpointError, EsperError, SealBroken, UnknownKey
from esper.security import Envelope
from esper.tolaria.append_only import AppendOnly, Place
from esper.tolaria.checkpoints.manifest import damaged, identity
from esper.tolaria.durable import write_all

NAMES: Final = ("past.sealed", "past-copy.sealed")


class PastLog:
    """The log of ``run`` in ``folder``. One process appends; any number may read."""

    def __init__(self, folder: Path, run: str, envelope: Envelope) -> None:
        self._paths = [folder / name for name in NAMES]
        self._run = run
        self._envelope = envelope

    def opened(self, stack: ExitStack) -> list[FileIO]:
        """Its files, to be added to, until ``stack`` closes them. Raises OSError."""
        return [stack.enter_context(FileIO(path, "w", opener=_not_truncated)) for path in self._paths]

    def append(self, files: Sequence[FileIO], past: Mapping[str, AppendOnly[Any]]) -> Place | None:
        """Write to ``files`` what the log does not have of ``past``; where all of it ends then.

        They are not synced. Raises OSError, after which the log has what it had.
        """
        from esper.tolaria.checkpoints.tree import plain

        places = {each.place for each in past.values()}
        before = places.pop() if len(places) == 1 else None
        new = {path: plain(each[each.saved if before else 0 :]) for path, each in past.items()}
        if not any(new.values()):
            return before
        number, start = secrets.token_hex(16), max(file.seek(0, os.SEEK_END) for file in files)
        frame = json.dumps({"before": before, "new": new}, separators=(",", ":")).encode()
        sealed = self._envelope.seal(frame, self._identity(number))
        for file in files:
            file.seek(start)
            write_all(file, [sealed])
        return Place(start, len(sealed), number)

    def read(
        self, place: Place | None, where: Path, told: list[EsperError], *, copy_first: bool = False
    ) -> dict[str, list[Any]]:
        """The items of each sequence, as documents, up to ``place``, which the checkpoint ``where`` names.

        ``told`` gets an error for a file that is damaged where the other is not. Raises CheckpointError, or
        UnknownKey where the key that they were sealed with is not at hand.
        """
        frames: list[dict[str, list[Any]]] = []
        wrong: dict[Path, EsperError] = {}
        with ExitStack() as stack:
            paths = self._paths[:: -1 if copy_first else 1] if place else ()
            files = {path: _opened(path, where, stack) for path in paths}
            while place is not None:
                frame = self._frame(files, place, where, wrong)
                frames.append(frame["new"])
                place = frame["before"] and Place(*frame["before"])
        for path in wrong:
            (other,) = {*NAMES} - {path.name}
            told.append(CheckpointError(f"{path} is damaged; {other} beside it has what it lacks"))
        past: dict[str, list[Any]] = {}
        for new in reversed(frames):
            for name, items in new.items():
                past.setdefault(name, []).extend(items)
        return past

    def _frame(
        self,
        files: Mapping[Path, FileIO | EsperError],
        place: Place,
        where: Path,
        wrong: dict[Path, EsperError],
    ) -> dict[str, Any]:
        """A frame, from the first file that has it; ``wrong`` keeps what was the matter with each other."""
        for path, file in files.items():
            try:
                if isinstance(file, EsperError):
                    raise file
                sealed = os.pread(file.fileno(), place.size, place.start)
                frame: dict[str, Any] = json.loads(self._envelope.open(sealed, self._identity(place.id)))
            except SealBroken:
                wrong.setdefault(path, _damaged(where, f"{path.name} beside it is not what was sealed"))
            except (CheckpointError, UnknownKey) as error:
                wrong.setdefault(path, error)
            except OSError as error:
                wrong.setdefault(path, CheckpointError(f"cannot read {path}: {error.strerror}"))
            else:
                return frame
        raise next(iter(wrong.values()))

    def _identity(self, number: str) -> str:
        return identity(self._run, number, NAMES[0])


def _opened(path: Path, where: Path, stack: ExitStack) -> FileIO | EsperError:
    try:
        return stack.enter_context(path.open("rb", buffering=0))
    except FileNotFoundError:
        return _damaged(where, f"{path.name} beside it is missing")
    except OSError as error:
        return CheckpointError(f"cannot read {path}: {error.strerror}")


def _damaged(where: Path, reason: str) -> CheckpointError:
    error = damaged(str(where), reason)
    error.hint = f"{error.hint}; and its weights can be trained on, in a new run: tolaria.start=RUN"
    return error


def _not_truncated(path: str, _flags: int) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
