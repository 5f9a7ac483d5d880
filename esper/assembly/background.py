"""Inventing while a run trains: a process of its own, which training never waits for."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from omegaconf import DictConfig, OmegaConf
from torch import nn

from esper.assembly.inventing import build_inventor, places_of
from esper.assembly.storage import library_url
from esper.errors import ConfigError, StorageError
from esper.tolaria.events import Recorder

GRACE_SECONDS = 2.0
"""How long the process may take to end by itself before it is killed; it needs milliseconds."""

_QUEUE = b'{"event": "compile_queue"'


def check_background(cfg: DictConfig) -> None:
    """Refuse before training what would end the process at once; raises ConfigError."""
    if library_url(cfg).removeprefix("sqlite://") in ("", "/", "/:memory:"):
        raise ConfigError(
            "karn=on invents in a process of its own, which cannot see a library in this one's memory",
            hint="choose one that is stored: urza=sqlite",
        )
    for key, (least, most) in {"budget": (1, 10_000), "batch": (1, 10_000), "nice": (0, 19)}.items():
        if not least <= cfg.karn[key] <= most:
            raise ConfigError(f"karn.{key} must be between {least} and {most}, not {cfg.karn[key]}")
    build_inventor(cfg)


class BackgroundInventor:
    """The process, as a listener of the run's events: told of each epoch, it says what was invented since.

    It starts with the run, ends with it, and ends by itself when this process is gone, however that went. If
    it fails, that is told once, and training goes on. Nothing here waits for it but ``close``.
    """

    def __init__(
        self, cfg: DictConfig, model: Callable[[], nn.Module], recorder: Recorder, run_id: str
    ) -> None:
        """``model`` gives the wrapped network, ``recorder`` is the one of the run; starts nothing yet."""
        self._cfg = cfg
        self._model = model
        self._recorder = recorder
        self._run_id = run_id
        self._process: subprocess.Popen[bytes] | None = None
        self._heard: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._in = -1
        self._unsent = b""
        self._asked: str = ""
        self._trials = 0
        self._last_words = ""

    def __call__(self, event: str, _fields: Mapping[str, Any]) -> None:
        """Take one event of the run in."""
        if event == "run_started":
            self._start()
        elif event == "trial":
            self._trials += 1
        elif event in ("epoch", "checkpoint"):
            self._hear()
            if self._process is not None:
                self._ask()

    def close(self) -> None:
        """End the process; what it was compiling is lost, what it stored is whole."""
        process, self._process = self._process, None
        if process is None:
            return
        _close_stdin(process)  # at which it ends
        try:
            process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._reader.join(GRACE_SECONDS)

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "esper.assembly.background_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)},
            start_new_session=True,  # Ctrl-C is for training, which then ends this
        )
        assert self._process.stdin is not None
        self._in = self._process.stdin.fileno()
        os.set_blocking(self._in, False)
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
        self._reader.start()
        self._send({"config": OmegaConf.to_yaml(self._cfg, resolve=True), "run_id": self._run_id})
        self._ask()

    def _ask(self) -> None:
        """Ask for inventions where the run could take them, unless nothing has changed since."""
        places = [asdict(place) for place in places_of(self._model())]
        asked = json.dumps({"places": places, "trials": self._trials})
        if asked != self._asked and places:
            self._asked = asked
            self._send({"places": places})

    def _send(self, message: Mapping[str, Any]) -> None:
        """Hand over as much as the pipe takes now; the rest goes with the next message."""
        self._unsent += json.dumps(message).encode() + b"\n"
        with suppress(BlockingIOError, BrokenPipeError):
            sent = os.write(self._in, self._unsent)
            self._unsent = self._unsent[sent:]

    def _hear(self) -> None:
        while not self._heard.empty():
            line = self._heard.get()
            try:
                told = json.loads(line)
                event, fields = told["event"], told["fields"]
            except (ValueError, TypeError, KeyError):
                self._last_words = line.strip() or self._last_words  # a traceback, or a warning
                continue
            if event == "ended":
                self._ended()
            else:
                self._recorder.emit(event, **fields)

    def _ended(self) -> None:
        """The process is gone before the run was over."""
        process, self._process = self._process, None
        assert process is not None
        code = process.wait()
        _close_stdin(process)
        why = self._last_words or f"exit code {code}"
        self._recorder.emit("inventing_ended", reason=why)

    def _read(self, source: IO[bytes]) -> None:
        """Keep what comes for the end of the epoch, but for what is of interest now alone; in a thread."""
        with source:
            for line in source:
                if line.startswith(_QUEUE):
                    self._tell_queue(json.loads(line)["fields"])
                else:
                    self._heard.put(line.decode(errors="replace"))
        self._heard.put(json.dumps({"event": "ended", "fields": {}}))

    def _tell_queue(self, fields: Mapping[str, Any]) -> None:
        journal = self._recorder.journal
        if self._process is not None and journal is not None:  # else the run is at its end
            with suppress(StorageError):  # training writes there as well, and fails of it
                journal.write("compile_queue", **fields)


def _close_stdin(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    with suppress(OSError):
        process.stdin.close()
