"""Ctrl-C and SIGTERM: held back where they would be lost, and told apart by their exit code."""

import gc
import os
import signal
import subprocess
import sys
import threading

import forked
import pytest

from esper_cli.importing import importing_pytorch
from esper_cli.train_job import _interrupted


def test_an_interruption_comes_at_the_end_of_the_block() -> None:
    reached = []
    before = signal.getsignal(signal.SIGINT)
    # A second thread would take a signal that only the main thread had masked.
    released = threading.Event()
    threading.Thread(target=released.wait, daemon=True).start()

    def interrupted_inside() -> None:
        with importing_pytorch():
            os.kill(os.getpid(), signal.SIGINT)
            reached.append("the end")

    with pytest.raises(KeyboardInterrupt):
        interrupted_inside()
    released.set()
    assert reached
    assert signal.getsignal(signal.SIGINT) is before


def interrupted_again(first: int) -> None:
    with importing_pytorch():
        for number in (first, signal.SIGINT):
            os.kill(os.getpid(), number)
            print("still importing", flush=True)


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_ctrl_c_during_the_import_ends_the_process_at_once(first: int) -> None:
    done = forked.call(interrupted_again, first)
    assert (done.returncode, done.stdout) == (-signal.SIGINT, "still importing\n")


def test_garbage_is_looked_for_again_after_the_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    with importing_pytorch():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_ctrl_c_during_the_first_imports_leaves_no_traceback() -> None:
    code = (
        "import builtins, signal\n"
        "from esper_cli.__main__ import main\n"
        "real = builtins.__import__\n"
        "def interrupted(name, *rest):\n"
        "    if name == 'typer':\n"
        "        signal.raise_signal(signal.SIGINT)\n"
        "    return real(name, *rest)\n"
        "builtins.__import__ = interrupted\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_one_of_many_processes_says_that_another_may_be_lost() -> None:
    assert "another one of the run is lost" in _interrupted(KeyboardInterrupt(signal.SIGTERM), 2)
    assert _interrupted(KeyboardInterrupt(signal.SIGTERM), 1) == "interrupted"
    assert _interrupted(KeyboardInterrupt(), 2) == "interrupted"
