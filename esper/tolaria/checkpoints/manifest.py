"""What a checkpoint says of itself, written last and authenticated."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Final

from esper.errors import CheckpointError, SealBroken
from esper.security import Envelope
from esper.tolaria.append_only import Place

FORMAT: Final = 4
"""Of the folder; format 2 was one file that ``torch.save`` wrote, see ``format2``."""

READ: Final = (3, FORMAT)
"""In format 3 each checkpoint had all of its past, and named no place in a log."""

NAME: Final = "manifest.json"
MOST_BYTES: Final = 2**20


@dataclass(frozen=True, slots=True)
class Mark:
    """Where a run stands: optimizer steps, whole epochs, and steps into the epoch after those.

    ``held_out_loss`` is that of the last whole epoch, None before the first.
    """

    step: int
    epochs: int
    step_in_epoch: int = 0
    held_out_loss: float | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """One file, sealed: ``size`` bytes long as it lies there."""

    name: str
    size: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """A checkpoint of ``run``: where the run stood, when it was written (ISO 8601, UTC), and its parts.

    Parts are sealed under ``id``, drawn anew for each checkpoint: the tags of their chunks are their digests.
    ``past`` is where its past ends in the log beside it, None where it has none.
    """

    id: str
    run: str
    mark: Mark
    created_at: str
    parts: tuple[Part, ...]
    past: Place | None = None
    format: int = FORMAT

    @property
    def size(self) -> int:
        """What its parts take on the disk."""
        return sum(part.size for part in self.parts)

    def identity(self, part: str) -> str:
        """What a part is sealed under: it opens as no other part, and in no other checkpoint."""
        return identity(self.run, self.id, part)

    def signed(self, envelope: Envelope) -> bytes:
        """The manifest as it is stored."""
        document = asdict(self)
        return json.dumps({**document, "tag": envelope.authenticate(_message(document))}, indent=1).encode()

    @staticmethod
    def read(data: bytes, where: str, envelope: Envelope) -> Manifest:
        """The manifest that ``data`` is; ``CheckpointError`` unless a holder of the keys wrote it."""
        try:
            document: dict[str, Any] = json.loads(data)
            tag = str(document.pop("tag"))
            if document["format"] not in READ:
                raise CheckpointError(
                    f"{where} has format {document['format']}, this Esper reads {READ[0]} to {FORMAT}",
                    hint="use the version of Esper that wrote it",
                )
            envelope.check(_message(document), tag)
            mark = Mark(**document.pop("mark"))
            parts = tuple(Part(**part) for part in document.pop("parts"))
            past = document.pop("past", None)
            return Manifest(mark=mark, parts=parts, past=past and Place(*past), **document)
        except SealBroken as error:
            raise damaged(where, "its manifest is not what was written") from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise damaged(where, "its manifest cannot be read") from error


def identity(run: str, checkpoint: str, part: str) -> str:
    """See :meth:`Manifest.identity`."""
    return f"checkpoint {run}/{checkpoint}/{part}"


def damaged(where: str, reason: str) -> CheckpointError:
    """The error for a checkpoint that must not be read."""
    return CheckpointError(
        f"the checkpoint {where} is damaged: {reason}", hint="an older one may be whole: esper checkpoints ls"
    )


def _message(document: dict[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
