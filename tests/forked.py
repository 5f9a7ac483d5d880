"""``esper`` in a process of its own that has imported PyTorch already: tests do not wait for that again.

The process is forked from a server that has imported what a command imports; all else is the command as it
is: arguments, environment, folder, the two streams, signals, the exit code. What is tested of the very start,
or through a shell, runs ``python -m esper_cli`` instead.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from waiting import LONG, until

_PRELOADED = [
    "torch",
    "torch._dynamo",  # which the first optimizer of a process imports
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
    "esper.assembly.training",
    "esper_cli.app",
    "esper_cli.train",
]


def esper(
    *args: str,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    before: Callable[[], object] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run ``esper`` with ``args`` and wait; ``before`` is called in its process, like ``preexec_fn``."""
    with command(*args, cwd=cwd, env=env, before=before) as process:
        return process.wait()


def command(
    *args: str,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    before: Callable[[], object] | None = None,
    terminal: str | None = None,
) -> Forked:
    """The same, but do not wait; with ``terminal``, the path of one, both streams go there."""
    return Forked(_command, (args, before), cwd, env, terminal)


def begun(
    *args: str,
    log: Path,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    before: Callable[[], object] | None = None,
) -> BaseProcess:
    """The same, but both streams go to the end of ``log``, and whoever asks ends it."""
    return _start(_command, (args, before), log, log, cwd, env)


def call(
    function: Callable[..., None],
    *given: Any,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Call ``function`` of a module with ``given`` in such a process and wait for its end."""
    with Forked(function, given, cwd, env) as process:
        return process.wait(3 * LONG)  # a whole drill, on a machine that does much else


class Forked:
    """A process that runs; killed at the end of the block, if it has not ended by then."""

    def __init__(
        self,
        function: Callable[..., None],
        given: tuple[Any, ...],
        cwd: Path | None,
        env: Mapping[str, str] | None,
        terminal: str | None = None,
    ) -> None:
        self._given = given
        self._folder = tempfile.TemporaryDirectory()
        self._streams = [Path(self._folder.name, name) for name in ("out", "err")]
        for stream in self._streams:
            stream.touch()
        out, err = self._streams if terminal is None else [Path(terminal)] * 2
        self._process = _start(function, given, out, err, cwd, env)
        self.pid: int = self._process.pid or 0

    def __enter__(self) -> Forked:
        return self

    def __exit__(self, *_: object) -> None:
        if self.poll() is None:
            self._process.kill()
            self._process.join()
        self._process.close()
        self._folder.cleanup()

    @property
    def said(self) -> tuple[str, str]:
        """What it has written to stdout and to stderr."""
        out, err = (stream.read_text() for stream in self._streams)
        return out, err

    def poll(self) -> int | None:
        """The exit code, if it has ended."""
        return self._process.exitcode

    def wait(self, seconds: float = LONG) -> subprocess.CompletedProcess[str]:
        """What came of it; raises TimeoutExpired."""
        self._process.join(seconds)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired(str(self._given), seconds, *self.said)
        return subprocess.CompletedProcess(self._given, code, *self.said)

    def until(self, pattern: str) -> re.Match[str]:
        """Wait until it has written ``pattern`` to stdout."""

        def found() -> re.Match[str] | None:
            ended = self.poll() is not None  # asked first: what it has said by then is all
            said = re.search(pattern, self.said[0])
            assert said or not ended, self.said
            return said

        return until(found, lambda: self.said)

    def send(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)


def context() -> ForkServerContext:
    """What forks from that server, for code that takes a context of ``multiprocessing``.

    The server runs when this returns: all that is forked from it has the signal mask that it was started
    with, and code that takes this may block signals while it starts processes.
    """
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(_PRELOADED)
    forkserver.ensure_running()
    return found


def _start(
    function: Callable[..., None],
    given: tuple[Any, ...],
    out: Path,
    err: Path,
    cwd: Path | None,
    env: Mapping[str, str] | None,
) -> BaseProcess:
    place = (str(cwd or Path.cwd()), dict(os.environ if env is None else env))
    process = context().Process(target=_in_place, args=(*place, str(out), str(err), function, given))
    process.start()
    return process


def _in_place(
    cwd: str, env: dict[str, str], out: str, err: str, function: Callable[..., None], given: tuple[Any, ...]
) -> None:
    for number, path in ((0, os.devnull), (1, out), (2, err)):
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(file, number)
        os.close(file)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w", buffering=1)  # noqa: SIM115
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.path[:0] = filter(None, env.get("PYTHONPATH", "").split(os.pathsep))  # as Python does at its start
    function(*given)


def _command(args: tuple[str, ...], before: Callable[[], object] | None) -> None:
    sys.argv = ["esper", *args]
    if before is not None:
        sys.dont_write_bytecode = True  # a limit of ``before`` would cut off what all later processes load
        before()
    from esper_cli.__main__ import main

    main()
