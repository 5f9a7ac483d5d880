"""Run a function in several processes that train together, as torchrun would start them.

    python -m drills.together MODULE:FUNCTION ARGUMENTS FOLDER

is one of them: it calls the function with the group and the arguments, a list in JSON, and writes what that
returns into FOLDER.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Any

from servers.redis import free_port

TESTS = Path(__file__).parent.parent


def environment(rank: int, size: int, port: int, job: str) -> dict[str, str]:
    """What torchrun tells a process."""
    path = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    told |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": job}
    told |= {"TORCHELASTIC_RESTART_COUNT": 0, "OMP_NUM_THREADS": 1, "PYTHONPATH": path}
    return {**os.environ, **{name: str(value) for name, value in told.items()}}


def run_together(size: int, function: str, *arguments: Any, timeout: float = 200.0) -> list[Any]:
    """What ``function``, as MODULE:NAME, returns in each of ``size`` processes; RuntimeError if one fails."""
    port, job = free_port(), uuid.uuid4().hex
    with tempfile.TemporaryDirectory() as name:
        command = [sys.executable, "-m", "drills.together", function, json.dumps(arguments), name]
        processes = [
            subprocess.Popen(
                command,
                env=environment(rank, size, port, job),
                stderr=subprocess.PIPE,
                text=True,
                cwd=TESTS.parent,
            )
            for rank in range(size)
        ]
        try:
            said = [process.communicate(timeout=timeout)[1] for process in processes]
        finally:
            for process in processes:
                process.kill()
        if any(process.returncode for process in processes):
            raise RuntimeError("\n".join(said))
        return [json.loads(Path(name, f"{rank}.json").read_text()) for rank in range(size)]


def main() -> None:
    """One of the processes."""
    from esper.tolaria.distributed import join, leave

    module, _, name = sys.argv[1].partition(":")
    group = join("cpu")
    result = getattr(importlib.import_module(module), name)(group, *json.loads(sys.argv[2]))
    Path(sys.argv[3], f"{group.rank}.json").write_text(json.dumps(result))
    leave()


if __name__ == "__main__":
    main()
