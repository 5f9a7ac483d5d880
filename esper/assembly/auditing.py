"""The audit trail of a configuration. Importing this does not import PyTorch."""

from __future__ import annotations

import getpass
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

from omegaconf import DictConfig

from esper.security import Keys
from esper.security.audit import Signer
from esper.security.audit_heads import KeptHeads
from esper.urza.trail import Auditor


def build_auditor(cfg: DictConfig, keys: Keys) -> Auditor:
    """What the trail is written with, as ``cfg.audit`` says; by default in runs from before there was one."""
    return build_auditor_for(Signer(keys), kept_heads(cfg), names=named(cfg))


def build_auditor_for(signer: Signer, heads: KeptHeads, *, names: bool) -> Auditor:
    """As :func:`build_auditor`, of its parts."""
    return Auditor(signer, user_of(signer, names=names), heads)


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
