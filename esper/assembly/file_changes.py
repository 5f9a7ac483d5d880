"""Changes of the files of keys and tokens, which no transaction of the library reaches, in its audit trail.

What is begun is entered first, with digests of what there is and of what is to be; then the file is renamed
into its place; then it is entered as done. Whether a change was done of which the last is missing is told by
what was there when the next one began, else by the file. Importing this does not import PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from omegaconf import DictConfig

from esper.assembly.keys import build_key_source
from esper.assembly.tokens import build_token_authority
from esper.errors import EsperError
from esper.security.audit import Action, Entry
from esper.security.audit_check import Unfinished
from esper.security.sources import Announce
from esper.urza.library import KernelLibrary
from esper.urza.trail import TrailQuery

DONE: Final = {
    "key.adding": "key.added",
    "key.removing": "key.removed",
    "token_key.adding": "token_key.added",
    "token_key.retiring": "token_key.retired",
    "token.revoking": "token.revoked",
    "token.revoking_all": "token.revoked_all",
}
"""What is entered as begun, and as what once it is done."""

_FILES: Final = ("key.", "token_key.", "token.rev")
"""What changes one file, by the start of its actions."""

_TEXTS: Final = {
    True: "it was done; its process ended before it said so",
    False: "it was not done: its process ended before that, or is at it now",
    None: "whether it was done cannot be told: what is there now is neither what was nor what was to be",
}


@contextmanager
def entered(library: KernelLibrary, what: str, subject: str) -> Iterator[Announce]:
    """Inside the block ``what`` is done to ``subject``, and whoever does it calls what this yields before."""
    announced: list[Action] = []

    def announce(before: str, after: str) -> None:
        library.note(Action(what, subject, before, after))
        announced.append(Action(DONE[what], subject, before, after))

    yield announce
    for action in announced:
        library.note(action)


def unfinished(cfg: DictConfig, library: KernelLibrary) -> Iterator[Unfinished]:
    """What was begun and not entered as done, the oldest first of each file."""
    for start in _FILES:
        entries = library.trail.entries(TrailQuery(action=start))[::-1]
        for place, entry in enumerate(entries):
            later = entries[place + 1 :]
            if entry.action in DONE and entry.after and not _is_done(entry, later):
                done = _done_by(entry, [each.before for each in later])
                text = None
                if done is None:
                    done, text = _done_now(cfg, start, entry)
                yield Unfinished(entry.sequence, entry.action, entry.subject, done, text or _TEXTS[done])


def _is_done(entry: Entry, later: Sequence[Entry]) -> bool:
    said = DONE[entry.action], entry.subject, entry.after
    return any((each.action, each.subject, each.after) == said for each in later)


def _done_by(entry: Entry, states: Sequence[str]) -> bool | None:
    """Whether it was done, by the first of ``states`` that tells."""
    for state in states:
        if state in (entry.before, entry.after):
            return state == entry.after
    return None


def _done_now(cfg: DictConfig, start: str, entry: Entry) -> tuple[bool | None, str | None]:
    try:
        done = _done_by(entry, [_state(cfg, start)])
        retired = done and entry.action == "token_key.retiring"
        if retired and entry.subject in build_token_authority(cfg).published():
            go_on = f"go on with: esper token keys retire {entry.subject}"
            return False, f"it was begun, and tokens of that key are valid still; {go_on}"
    except EsperError as error:
        return None, f"whether it was done cannot be told: {error.message}"
    return done, None


def _state(cfg: DictConfig, start: str) -> str:
    """The digest of what is there now."""
    authority = build_token_authority(cfg)
    states: dict[str, Callable[[], str]] = {
        "key.": lambda: build_key_source(cfg).load().digest,
        "token_key.": lambda: authority.keys().digest if authority.has_keys() else "",
        "token.rev": lambda: trusted.digest if (trusted := authority.trusted()) else "",
    }
    return states[start]()
