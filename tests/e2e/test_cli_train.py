"""Training through the real command: in a pipe, in a terminal, swept, interrupted and resumed."""

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from forked import command, esper
from waiting import LONG

ESPER = (sys.executable, "-m", "esper_cli")
SMOKE = ("train", "+experiment=smoke", "tamiyo=never", "urza=memory")


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ESPER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("COLUMNS", raising=False)
    return tmp_path


def environment() -> dict[str, str]:
    """Given to a process: readline, which pytest loads, puts COLUMNS where only children see it."""
    return dict(os.environ)


def test_a_run_says_what_it_does_and_where_everything_is(workplace: Path) -> None:
    (workplace / "experiments").mkdir()
    (workplace / "experiments/mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - smoke\ntolaria:\n  epochs: 2\n"
    )
    done = esper("train", "+experiment=mine", "tamiyo=never", "urza=memory")
    assert (done.returncode, done.stderr) == (0, "")
    key, *lines = done.stdout.splitlines()
    assert key.startswith("made a key in ")
    assert lines[0].startswith("run ")
    assert ": mine on digits" in lines[0]
    assert [line.split("  ")[0] for line in lines if line.startswith("epoch ")] == ["epoch 1/2", "epoch 2/2"]
    assert "\x1b" not in done.stdout
    wrote = [Path(line.removeprefix("wrote ")) for line in lines if line.startswith("wrote ")]
    (run,) = (workplace / "runs").glob("2*")
    files = {path for path in run.rglob("*") if path.is_file() and "checkpoints" not in path.parts}
    assert {path.resolve() for path in wrote} == files
    assert lines[-1] == f"2 checkpoints in runs/{run.name}/checkpoints"
    assert {"config.yaml", "journal.jsonl", "summary.json", "plot.png"} <= {path.name for path in wrote}
    # Hydra leaves nothing of its own.
    assert sorted(path.name for path in workplace.iterdir()) == ["experiments", "home", "runs"]


def test_a_sweep_trains_one_run_a_job_and_prints_only_json(workplace: Path) -> None:
    done = esper(*SMOKE, "-m", "tolaria.epochs=1", "seed=0,1,no", "--json")
    assert done.returncode == 2
    assert "seed must be a whole number, not 'no'" in done.stderr
    assert "1 of the sweep's jobs failed" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Error executing job" not in done.stderr
    decoder, text, summaries = json.JSONDecoder(), done.stdout.lstrip(), []
    while text:
        summary, end = decoder.raw_decode(text)
        summaries.append(summary)
        text = text[end:].lstrip()
    assert [summary["seed"] for summary in summaries] == [0, 1]
    runs = sorted(path.name for path in (workplace / "runs").iterdir() if not path.name.startswith("."))
    assert runs == sorted(summary["run_id"] for summary in summaries)


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_and_sigterm_save_and_the_run_goes_on(
    workplace: Path, sent: signal.Signals, code: int
) -> None:
    with command(*SMOKE, "tolaria.epochs=5000") as process:
        process.until("epoch    3/5000")
        process.send(sent)
        interrupted = process.wait()
    assert interrupted.returncode == code
    (run,) = (workplace / "runs").glob("2*")
    assert interrupted.stderr == f"esper: interrupted; saved; go on with: esper train --resume {run.name}\n"
    done = len(esper_json("runs", "show", "latest", "--json")["epochs"])
    assert done >= 3
    resumed = esper("train", "--resume", run.name[:15], f"tolaria.epochs={done + 1}", "--quiet")
    assert resumed.returncode == 0
    assert resumed.stderr.splitlines()[0] == f"esper: tolaria.epochs is {done + 1} from here on, and was 5000"
    assert resumed.stdout.startswith(f"run {run.name}: finished")
    assert len(esper_json("runs", "show", "latest", "--json")["epochs"]) == done + 1
    unknown = esper("train", "--resume", run.name, "tolaria.epoch=1")
    assert unknown.returncode == 2
    assert "unknown key 'tolaria.epoch'" in unknown.stderr


def test_ctrl_c_while_the_plot_is_drawn_says_that_the_run_had_finished(workplace: Path) -> None:
    done = esper(*SMOKE, "tolaria.epochs=1", before=interrupt_the_plot)
    (run,) = (workplace / "runs").glob("2*")
    assert (done.returncode, done.stderr) == (
        130,
        f"esper: interrupted; the run had finished: esper runs show {run.name}\n",
    )


def interrupt_the_plot() -> None:
    import esper_cli.plot

    def interrupted(*_: object) -> None:
        signal.raise_signal(signal.SIGINT)

    esper_cli.plot.plot_run = interrupted


def test_ctrl_c_before_training_leaves_no_run(workplace: Path) -> None:
    growing = [argument for argument in SMOKE if argument != "tamiyo=never"]
    with subprocess.Popen(
        [*ESPER, *growing], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("compile")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=LONG)
    assert process.returncode == 130
    assert err.startswith("esper: interrupted; training had not begun")
    assert not list((workplace / "runs").iterdir())


def esper_json(*args: str) -> dict:
    return json.loads(esper(*args).stdout)


def test_a_terminal_shows_a_live_region_and_survives_a_resize(workplace: Path) -> None:
    terminal, inner = pty.openpty()
    resize(terminal, 10, 40)
    env = {**environment(), "TERM": "xterm-256color"}
    shown = b""
    with command(*SMOKE, "tolaria.epochs=4", env=env, terminal=os.ttyname(inner)) as process:
        while select.select([terminal], [], [], 0.1)[0] or process.poll() is None:
            if not select.select([terminal], [], [], 0)[0]:
                continue
            read = os.read(terminal, 65536)
            if b"epoch" in read and b"epoch" not in shown:
                resize(terminal, 8, 30)
                process.send(signal.SIGWINCH)
            shown += read
        assert process.poll() == 0
    os.close(inner)
    os.close(terminal)
    text = shown.decode()
    assert "━" in text
    assert "s left" in text
    assert "wrote runs/" in text
    assert "samples/s" not in text
    assert "Traceback" not in text


def resize(terminal: int, rows: int, columns: int) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
