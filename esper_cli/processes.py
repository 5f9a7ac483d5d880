"""Training in many processes: starting them with torchrun's own agent, and what each of them runs."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from esper.errors import EsperError, ProcessLost, RunError

if TYPE_CHECKING:
    from omegaconf import DictConfig

COMMAND = "train-process"
"""The hidden command that each of the processes runs."""


@dataclass(frozen=True)
class Shown:
    """What the user wants to see of a run, and the run to go on with, if any."""

    quiet: bool
    as_json: bool
    resume: str | None


def start(cfg: DictConfig, shown: Shown) -> None:
    """Train in ``cfg.tolaria.processes`` processes of this machine, and wait for them.

    Raises KeyboardInterrupt when they were interrupted, typer.Exit where the first process has said what went
    wrong, and RunError when it could not.
    """
    from omegaconf import OmegaConf
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    received = 0
    with tempfile.TemporaryDirectory(prefix="esper-") as name, _quiet_agent():
        folder = Path(name)
        (folder / "config.yaml").write_text(OmegaConf.to_yaml(cfg))
        (folder / "shown.json").write_text(json.dumps(asdict(shown)))
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=cfg.tolaria.processes,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            max_restarts=cfg.tolaria.get("restarts") or 0,
            logs_specs=DefaultLogsSpecs(log_dir=str(folder)),
        )
        try:
            elastic_launch(config, sys.executable)("-m", "esper_cli", COMMAND, name)
        except ChildFailedError as error:
            _explain({rank: failure.exitcode for rank, failure in error.failures.items()}, config)
        except SignalException as error:
            received = int(error.sigval)
    if received:
        signal.raise_signal(received)  # now that it is ours again: as if there had been no agent


def _explain(exit_codes: Mapping[int, int], config: Any) -> None:
    """Say who was lost, unless the first process has told why it ended; its exit code, then."""
    # SIGTERM is what the agent ends the rest with.
    killed = {rank: -code for rank, code in exit_codes.items() if code < 0 and code != -signal.SIGTERM}
    if killed:
        rank, number = min(killed.items())
        raise ProcessLost(
            f"process {rank} of {config.nproc_per_node} was ended by {signal.Signals(number).name}",
            hint="go on with: esper train --resume latest; tolaria.restarts=N does so by itself",
        )
    if exit_codes.get(0, 0) > 0:
        raise typer.Exit(exit_codes[0])
    raise RunError(f"processes failed, with exit codes {dict(exit_codes)}", hint="see the lines above")


@contextmanager
def _quiet_agent() -> Iterator[None]:
    """Leave it to us to say what happened, and give back the signals that the agent takes."""
    before = logging.root.manager.disable
    logging.disable()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
    handlers = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        logging.disable(before)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def train_process(
    folder: Annotated[Path, typer.Argument(help="With the configuration, and what is to be shown.")],
) -> None:
    """Train as one of many processes; esper train starts them."""
    from omegaconf import DictConfig, OmegaConf

    from esper_cli.train_job import Output, run_once

    cfg = OmegaConf.load(folder / "config.yaml")
    assert isinstance(cfg, DictConfig)
    shown = Shown(**json.loads((folder / "shown.json").read_text()))
    try:
        run_once(cfg, Output(shown.quiet, shown.as_json), resume=shown.resume)
    except ProcessLost as error:
        raise typer.Exit(error.exit_code) from error  # esper train knows which, and says it
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # with which the agent ends what is ending


@contextmanager
def following() -> Iterator[None]:
    """For a process other than the first: that alone minds Ctrl-C, and says what goes wrong.

    On a machine that the first does not run on, one process says it too: it may be of that machine.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    except EsperError as error:
        if int(os.environ["LOCAL_RANK"]) == 0:
            raise
        raise typer.Exit(error.exit_code) from error
