"""The audit trail of a configuration. Importing this does not import PyTorch."""

from __future__ import annotations

import getpass
import logging
import os
import platform
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from esper.assembly.keys import build_keys
from esper.errors import EsperError
from esper.security import Keys
from esper.security.audit import Action, Signer, digest_of
from esper.security.audit_heads import KeptHeads
from esper.security.audit_lines import LineTrail
from esper.urza.trail import Auditor

if TYPE_CHECKING:
    from esper.urza.library import KernelLibrary

log = logging.getLogger(__name__)


def build_auditor(cfg: DictConfig, keys: Keys) -> Auditor:
    """What the trail is written with, as ``cfg.audit`` says; by default in runs from before there was one."""
    signer = Signer(keys)
    return Auditor(signer, user_of(signer, names=named(cfg)), kept_heads(cfg))


def build_run_trail(cfg: DictConfig, on_made: Callable[[str], None] = lambda _: None) -> LineTrail:
    """What gives the lines of a run's journal their entries; ``on_made`` as in :func:`build_keys`."""
    signer = Signer(build_keys(cfg, on_made))
    return LineTrail(signer, user_of(signer, names=named(cfg)))


def notes_beginning(library: KernelLibrary, folder: Path) -> Callable[[str, Mapping[str, Any]], None]:
    """A listener that enters in the library's trail that a run began: its folder is then missed once gone."""

    def listen(event: str, _fields: Mapping[str, Any]) -> None:
        if event == "run_started":
            _note(library, Action("run.began", folder.name, detail={"below": place_of_runs(folder.parent)}))

    return listen


def note_run_ended(library: KernelLibrary, run_id: str, trail: LineTrail) -> None:
    """Enter in the library's trail how far that of a run went: cutting the run's end then shows there."""
    number, link = trail.newest
    if number:
        _note(library, Action("run.ended", run_id, after=link, detail={"entries": number}))


def place_of_runs(root: Path) -> str:
    """What tells a folder of runs from those of other machines and folders, and does not say where it is."""
    return digest_of([platform.node(), str(root.absolute())])[:16]


def _note(library: KernelLibrary, action: Action) -> None:
    """No run is failed for it."""
    try:
        library.note(action)
    except EsperError as error:
        log.warning("%s %s is not in the library's audit trail: %s", action.what, action.subject, error)


def kept_heads(cfg: DictConfig) -> KeptHeads:
    """Where this machine keeps what it has seen of each trail."""
    folder = cfg.audit.heads if "audit" in cfg else f"{os.environ.get('ESPER_HOME', '.esper')}/audit"
    return KeptHeads(Path(str(folder)).expanduser())


def named(cfg: DictConfig) -> bool:
    """Whether entries have the user's own name."""
    return bool(cfg.audit.names) if "audit" in cfg else False


def user_of(signer: Signer, *, names: bool) -> Callable[[], str]:
    """Says who uses this process: by name, or by a pseudonym that takes the key to be told."""

    @cache
    def who() -> str:
        try:
            name = getpass.getuser()
        except (KeyError, OSError):  # a user without an entry in the user database
            name = f"uid {os.getuid()}"
        return f"user {name}" if names else signer.pseudonym("user", name)

    return who
