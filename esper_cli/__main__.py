"""The ``esper`` command, and ``python -m esper_cli``."""

from __future__ import annotations

import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line; Ctrl-C while its modules are still being imported ends it quietly, too."""
    try:
        from esper_cli.app import main as run_and_exit
    except KeyboardInterrupt:
        sys.exit(130)
    run_and_exit()


if __name__ == "__main__":
    main()
