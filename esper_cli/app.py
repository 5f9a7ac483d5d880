"""The root of the command line, and the one place where an error becomes a line and an exit code."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from types import FrameType
from typing import Annotated, NoReturn

import typer

from esper.errors import ConfigError, EsperError, StorageError
from esper.security.logs import install, tell_traceback
from esper.security.redaction import register_environment
from esper_cli.commands import Commands
from esper_cli.terminal import error_line

INTERRUPTED = 130
TERMINATED = 143
BROKEN_PIPE = 141

_FULL_OR_CLOSED = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)

app = typer.Typer(
    name="esper",
    cls=Commands,
    no_args_is_help=True,
    epilog="Example: esper train +experiment=resnet",
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"esper {version('esper-morph')}")
        raise typer.Exit


@app.callback()
def root(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Train PyTorch networks that grow while they train."""


def main() -> NoReturn:
    """Run the command line and leave with its exit code (see ``esper.errors``)."""
    register_environment(os.environ)
    install(os.environ.get("ESPER_LOG", "text"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without Unicode shows ? and goes on
    interrupted_as = INTERRUPTED

    def terminate(_signal: int, _frame: FrameType | None) -> NoReturn:
        nonlocal interrupted_as
        interrupted_as = TERMINATED
        raise KeyboardInterrupt(signal.SIGTERM)

    # A cluster that takes its machine back says so with SIGTERM: what goes on ends as with Ctrl-C.
    signal.signal(signal.SIGTERM, terminate)
    try:
        code = run()
    except Exception as error:  # a defect; left to Python, Typer's own hook would print it with its secrets
        tell_traceback(error)
        sys.exit(1)
    sys.exit(interrupted_as if code == INTERRUPTED else code)


def run(args: list[str] | None = None) -> int:
    """Run one command line and return its exit code; a deliberate error becomes one line on stderr.

    Anything else that is raised is a defect of Esper and keeps its traceback.
    """
    try:
        code = app(args, prog_name="esper", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except EsperError as error:
        return fail(error)
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has gone. Python flushes stdout once more at exit, which must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return BROKEN_PIPE
    except OSError as error:
        if error.errno not in _FULL_OR_CLOSED:
            raise
        return fail(StorageError.from_os(error, error.filename or "the disk", "cannot write to"))
    except Exception as error:
        return _fail_usage(error)


def fail(error: EsperError) -> int:
    """Print ``error`` as one line on stderr and return its exit code."""
    typer.echo(error_line(error), err=True)
    return error.exit_code


def _fail_usage(error: Exception) -> int:
    """Report a wrong flag or argument as one of our errors; raise anything else again.

    Typer raises the exceptions of its parser, which it does not export; they are known by what they offer.
    """
    describe = getattr(error, "format_message", None)
    code = getattr(error, "exit_code", None)
    if describe is None or not isinstance(code, int):
        raise error
    message = describe()
    if not message:
        return code  # the help was asked for by giving no command, and is printed already
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "esper"
    return fail(ConfigError(message, hint=f"see: {command} --help"))
