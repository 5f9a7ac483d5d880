"""``esper`` in a process of its own that has imported PyTorch already: tests do not wait for that again.

The process is forked from a server that has imported what a command imports; all else is the command as it
is: arguments, environment, folder, the two streams, the exit code. What is tested of signals, of the very
start, or through a shell runs ``python -m esper_cli`` instead.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_PRELOADED = [
    "torch",
    "torch._dynamo",  # which the first optimizer of a process imports
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
    "esper.assembly.training",
    "esper_cli.app",
    "esper_cli.train",
]

_SECONDS = 120


def esper(
    *args: str,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    before: Callable[[], None] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run ``esper`` with ``args`` and wait; ``before`` is called in its process, like ``preexec_fn``."""
    return call(_command, args, before, cwd=cwd, env=env)


def call(
    function: Callable[..., None],
    *given: Any,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Call ``function`` of a module with ``given`` in such a process and wait for its end."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        place = (str(cwd or Path.cwd()), dict(os.environ if env is None else env))
        process = context.Process(target=_in_place, args=(*place, str(out), str(err), function, given))
        process.start()
        process.join(_SECONDS)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired((function.__name__, *map(str, given)), _SECONDS)
        code = process.exitcode
        process.close()
        return subprocess.CompletedProcess(given, code, out.read_text(), err.read_text())


def _in_place(
    cwd: str, env: dict[str, str], out: str, err: str, function: Callable[..., None], given: tuple[Any, ...]
) -> None:
    for number, path in ((0, os.devnull), (1, out), (2, err)):
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.dup2(file, number)
        os.close(file)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w", buffering=1)  # noqa: SIM115
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.path[:0] = filter(None, env.get("PYTHONPATH", "").split(os.pathsep))  # as Python does at its start
    function(*given)


def _command(args: tuple[str, ...], before: Callable[[], None] | None) -> None:
    sys.argv = ["esper", *args]
    if before is not None:
        before()
    from esper_cli.__main__ import main

    main()
