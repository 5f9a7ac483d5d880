"""The ``esper`` command, and ``python -m esper_cli``."""

from __future__ import annotations

import os
import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line; Ctrl-C while its modules are still being imported ends it quietly, too."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by who started it: what is written goes nowhere
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115
    try:
        from esper_cli.app import main as run_and_exit
    except KeyboardInterrupt:
        sys.exit(130)
    run_and_exit()


if __name__ == "__main__":
    main()
