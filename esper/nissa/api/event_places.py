"""How far somebody has read the journals of all runs, as an id that a stream of events can be gone on from.

An id says up to which byte each journal was read that anything came from of late, and when that was: of
every other journal what is later than that is new. So an id is short however many runs there are, nothing is
missed, and nothing comes twice; with more than ``MAX_PLACES`` journals that grow at once something may.
Where a stream leaves something out, its ids say so: with another one what it left out would be missing.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection
from dataclasses import dataclass, field

LATE_SECONDS = 10.0
"""From the time that an event bears to its being told it takes less than this."""

MAX_PLACES = 128

EVENT_ID = rf"[0-9]{{1,15}}(-[0-9a-f]{{12}})?(\.[0-9a-f]{{12}}-[0-9]{{1,15}}){{0,{MAX_PLACES}}}"
"""What an id looks like, as a regular expression."""


@dataclass(slots=True)
class Places:
    """``at`` (Unix seconds) everything was read that is told within ``scope``; and by a run's key the byte of
    its journal, and when.
    """

    at: float
    scope: str = ""
    ends: dict[str, tuple[int, float]] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Places | None:
        """The places that ``text`` was written of; None when it is no id."""
        if re.fullmatch(EVENT_ID, text) is None:
            return None
        first, *ends = text.split(".")
        milliseconds, _, scope = first.partition("-")
        at = int(milliseconds) / 1000
        pairs = (end.split("-") for end in ends)
        return cls(at, scope, {key: (int(end), at) for key, end in pairs})

    def text(self) -> str:
        """The id: a word without a meaning to whoever sends it back."""
        latest = list(self.ends.items())[-MAX_PLACES:]
        scope = f"-{self.scope}" if self.scope else ""
        return f"{int(self.at * 1000)}{scope}" + "".join(f".{key}-{end}" for key, (end, _) in latest)

    def end(self, run_id: str) -> int | None:
        """Up to where the journal of a run was read; None where the time says it."""
        place = self.ends.get(key_of(run_id))
        return None if place is None else place[0]

    def move(self, run_id: str, end: int, now: float) -> None:
        """Note that the journal of a run was read up to ``end``."""
        key = key_of(run_id)
        self.ends.pop(key, None)
        self.ends[key] = (end, now)

    def all_read(self, now: float) -> None:
        """Note that nothing older than now is left to read; what was quiet for long needs no place then."""
        self.at = now
        for key, (_, moved) in list(self.ends.items()):
            if now - moved < 2 * LATE_SECONDS:
                break
            del self.ends[key]


def key_of(run_id: str) -> str:
    """A run's id, short."""
    return hashlib.blake2b(os.fsencode(run_id), digest_size=6).hexdigest()


def scope_of(run_id: str | None, kinds: Collection[str]) -> str:
    """What a stream tells of, short: one run, or some kinds alone; nothing where it leaves nothing out."""
    if run_id is None and not kinds:
        return ""
    return key_of("/".join([*sorted(kinds), run_id or ""]))
