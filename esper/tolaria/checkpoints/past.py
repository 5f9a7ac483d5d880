"""The log beside the checkpoints of a run: what only grows, written once. Importing this takes no PyTorch.

A frame has what was added since the frame before it, whose place it names. Each checkpoint names the frame
that ends its past, so a run that went back goes on from that one; what was left is never read again.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from typing import Any, Final

from esper.errors import CheckpointError, SealBroken
from esper.security import Envelope
from esper.tolaria.append_only import AppendOnly, Place
from esper.tolaria.checkpoints.manifest import damaged, identity
from esper.tolaria.durable import write_all

NAME: Final = "past.sealed"


class PastLog:
    """The log of ``run`` in ``folder``. One process appends; any number may read."""

    def __init__(self, folder: Path, run: str, envelope: Envelope) -> None:
        self.path = folder / NAME
        self._run = run
        self._envelope = envelope

    def append(self, file: FileIO, past: Mapping[str, AppendOnly[Any]]) -> Place | None:
        """Write to ``file``, the log, what it does not have of ``past``; where all of it ends then.

        It is not synced. Raises OSError, after which the log has what it had.
        """
        from esper.tolaria.checkpoints.tree import plain

        places = {each.place for each in past.values()}
        before = places.pop() if len(places) == 1 else None
        new = {path: plain(each[each.saved if before else 0 :]) for path, each in past.items()}
        if not any(new.values()):
            return before
        number, start = secrets.token_hex(16), file.seek(0, os.SEEK_END)
        frame = json.dumps({"before": before, "new": new}, separators=(",", ":")).encode()
        sealed = self._envelope.seal(frame, identity(self._run, number, NAME))
        return Place(start, write_all(file, [sealed]), number)

    def read(self, place: Place | None, where: Path) -> dict[str, list[Any]]:
        """The items of each sequence, as documents, up to ``place``, which the checkpoint ``where`` names.

        Raises CheckpointError, or UnknownKey where the key that they were sealed with is not at hand.
        """
        if place is None:
            return {}
        frames: list[dict[str, list[Any]]] = []
        try:
            with self.path.open("rb", buffering=0) as file:
                while place is not None:
                    sealed = os.pread(file.fileno(), place.size, place.start)
                    frame = json.loads(self._envelope.open(sealed, identity(self._run, place.id, NAME)))
                    frames.append(frame["new"])
                    place = frame["before"] and Place(*frame["before"])
        except FileNotFoundError:
            raise damaged(str(where), f"{NAME} beside it is missing") from None
        except SealBroken as error:
            raise damaged(str(where), f"{NAME} beside it is not what was sealed") from error
        except OSError as error:
            raise CheckpointError(f"cannot read {self.path}: {error.strerror}") from error
        past: dict[str, list[Any]] = {}
        for new in reversed(frames):
            for path, items in new.items():
                past.setdefault(path, []).extend(items)
        return past
