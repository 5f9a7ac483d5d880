"""Run a function in several processes that train together, as torchrun would start them."""

from __future__ import annotations

import importlib
import json
import os
import tempfile
import uuid
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from forked import Forked
from servers.redis import free_port

from esper.tolaria.distributed import join, leave

TESTS = Path(__file__).parent.parent


def environment(rank: int, size: int, port: int, job: str) -> dict[str, str]:
    """What torchrun tells a process."""
    path = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    told |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": job}
    told |= {"TORCHELASTIC_RESTART_COUNT": 0, "OMP_NUM_THREADS": 1, "PYTHONPATH": path}
    return {**os.environ, **{name: str(value) for name, value in told.items()}}


def run_together(size: int, function: str, *arguments: Any, timeout: float = 200.0) -> list[Any]:
    """What ``function``, as MODULE:NAME, returns in each of ``size`` processes; RuntimeError if one fails.

    Arguments and results are those that JSON has.
    """
    port, job = free_port(), uuid.uuid4().hex
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        given = (function, arguments, name)
        processes = [
            stack.enter_context(Forked(take_part, given, TESTS.parent, environment(rank, size, port, job)))
            for rank in range(size)
        ]
        done = [process.wait(timeout) for process in processes]
        if any(each.returncode for each in done):
            raise RuntimeError("\n".join(each.stderr for each in done))
        return [json.loads(Path(name, f"{rank}.json").read_text()) for rank in range(size)]


def take_part(function: str, arguments: Sequence[Any], folder: str) -> None:
    """As one of them, call ``function`` with the group, and write what it returns into ``folder``."""
    torch.set_num_threads(1)
    module, _, name = function.partition(":")
    group = join("cpu")
    result = getattr(importlib.import_module(module), name)(group, *arguments)
    Path(folder, f"{group.rank}.json").write_text(json.dumps(result))
    leave()
