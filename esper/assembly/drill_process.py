"""The process that a rehearsal lets die: it trains the configuration on its stdin until the fault."""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from esper.assembly.drill import short_data
from esper.assembly.training import build_training
from esper.errors import EsperError

CHECKPOINTS_BEFORE = 2
"""How many checkpoints are on the disk when the fault comes."""

FILE_BYTES = 2048
"""What a file may grow to on a disk that is full: less than any checkpoint."""


class Fault:
    """A listener that brings the fault once enough checkpoints are written."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.checkpoints = 0

    def __call__(self, event: str, _fields: Mapping[str, Any]) -> None:
        """Take one event in."""
        self.checkpoints += event == "checkpoint"
        if self.checkpoints < CHECKPOINTS_BEFORE:
            return
        if self.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, resource.RLIM_INFINITY))


def main() -> int:
    """Train until the fault named by the first argument; the exit code of what it led to."""
    cfg = DictConfig(OmegaConf.create(sys.stdin.read()))
    try:
        build_training(cfg, listeners=[Fault(sys.argv[1])], data=short_data(cfg)).run()
    except EsperError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
