"""One line an error, one exit code a kind of error, and tables that survive a pipe."""

import errno
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from cli_support import KERNEL, LAYERS, RUN_ID, decision, events, make_run

from esper.errors import ConfigError, EsperError, KernelNotFound
from esper.nissa.journal import JOURNAL_NAME, Journal
from esper_cli import app, terminal


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ESPER_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("COLUMNS", raising=False)
    return tmp_path


def esper(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    code = app.run(list(args))
    out, err = capsys.readouterr()
    return code, out, err


def test_an_error_is_one_line_with_its_next_step() -> None:
    error = ConfigError("unknown key\n  'x'.", hint="did you mean y?")
    assert app.error_line(error) == "esper: error: unknown key 'x'. Did you mean y?"
    assert app.error_line(ConfigError("unknown. Is it?", hint="esper runs ls")) == (
        "esper: error: unknown. Is it? esper runs ls"
    )
    assert app.error_line(EsperError("it broke")) == "esper: error: it broke"


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["--nope"], "esper: error: No such option: --nope. See: esper --help"),
        (["trian"], "esper: error: No such command 'trian'. Did you mean 'train'? See: esper --help"),
        (
            ["kernels", "ls", "--limit", "x"],
            "Invalid value for '--limit'",
        ),
        (["kernels", "ls", "--layout", "rows"], "--layout takes features, tokens, channels, not 'rows'"),
        (["kernels", "verify"], "verify takes kernel ids, or --all"),
        (["train", "--cfg", "jb"], "--cfg takes job, hydra, all, not 'jb'"),
        (["train", "--resume", "x", "-m"], "--resume goes on with one run as it was configured"),
        (["train", "-m", "--cfg", "job"], "--multirun and --cfg exclude each other"),
        (["train", "--resolve"], "--resolve and --package say what --cfg prints"),
        (["compile"], "no blueprint to compile was named"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_code_2(
    args: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = esper(capsys, *args)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert line in err


@pytest.mark.parametrize("args", [[], ["kernels"], ["runs"]])
def test_a_missing_command_prints_the_help(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = esper(capsys, *args)
    assert code == 2
    assert "Commands" in out + err


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = esper(capsys, "--version")
    assert (code, out.split()[0]) == (0, "esper")


def raising(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(app, "app", fail)


def test_a_deliberate_error_gives_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raising(monkeypatch, KernelNotFound("kernel_x"))
    code, _, err = esper(capsys)
    assert (code, err) == (
        6,
        "esper: error: no kernel 'kernel_x' in the library. List them with: esper kernels ls\n",
    )


def test_a_full_disk_anywhere_is_a_storage_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raising(monkeypatch, OSError(errno.ENOSPC, "No space left on device", "/runs/x"))
    code, _, err = esper(capsys)
    assert code == 10
    assert err == (
        "esper: error: cannot write to /runs/x: No space left on device. "
        "Free some space and run the command again\n"
    )


def test_ctrl_c_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    raising(monkeypatch, KeyboardInterrupt())
    assert app.run([]) == 130


@pytest.mark.parametrize("error", [ZeroDivisionError("x"), FileNotFoundError(errno.ENOENT, "gone", "/x")])
def test_a_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    raising(monkeypatch, error)
    with pytest.raises(type(error)):
        app.run([])


def test_numbers_are_short_enough_to_read() -> None:
    assert [terminal.count(n) for n in (0, 812, 19810, 3.14e6, 2.4e9, 7e12)] == [
        "0", "812", "19.8k", "3.14M", "2.4G", "7T",
    ]  # fmt: skip
    assert [terminal.duration(s) for s in (0.42, 12.3, 59.96, 185, 7800)] == [
        "0.4 s", "12 s", "60 s", "3 min 05 s", "2 h 10 min",
    ]  # fmt: skip
    assert terminal.percent(0.876) == "87.6 %"


def test_a_pipe_gets_whole_lines_without_colour(capsys: pytest.CaptureFixture[str]) -> None:
    rows = terminal.table(("id", "text"), whole=("id",))
    rows.add_row("kernel_0123456789abcdef", "word " * 60)
    terminal.print_lines(rows)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert "\x1b" not in "".join(lines)
    assert ("word " * 60).strip() in lines[2]


def test_a_terminal_of_80_columns_is_not_exceeded_and_ids_stay_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    make_run(Path("runs"))
    esper(capsys, "runs", "ls")
    code, out, _ = esper(capsys, "runs", "show", "latest")
    assert code == 0
    table = out[out.index("epoch  where") : out.index("decision 1")]
    assert all(len(line) <= 80 for line in table.splitlines())
    assert table.count(KERNEL) == 2


@pytest.mark.parametrize("command", ["ls", "show"])
def test_in_a_terminal_too_narrow_for_a_table_nothing_is_cut(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    make_run(Path("runs"))
    _, out, _ = esper(capsys, "runs", command, *(["latest"] if command == "show" else []))
    assert RUN_ID in out
    for part in ("run ", "status finished", "epochs 12/12") if command == "ls" else (KERNEL, "verdict kept"):
        assert part in out


def test_runs_are_listed_shown_and_compared(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(workplace / "runs")
    control = "20261123-190000-control-0000"
    folder = make_run(workplace / "runs", control)
    (folder / "config.yaml").write_text("experiment: resnet\nseed: 1\ntamiyo: {first_epoch: 3}\n")
    code, out, _ = esper(capsys, "runs", "ls", "--json")
    assert code == 0
    assert {run["run_id"] for run in json.loads(out)} == {RUN_ID, control}
    _, out, _ = esper(capsys, "runs", "ls", "--limit", "1")
    assert len(out.splitlines()) == 3

    code, out, _ = esper(capsys, "runs", "show", RUN_ID[:17])
    assert code == 0
    for part in (
        f"{RUN_ID}: finished",
        "evidence: slope -0.0012",
        "next best: stage2.0.conv1 0.61",
        "kept",
        "refused",
        "3 dormant, 1 fossilized",
        "kernel faults, contained: 1 non-finite",
        "19,810",
        "+1.6 %",
    ):
        assert part in out
    _, out, _ = esper(capsys, "runs", "show", RUN_ID, "--json")
    shown = json.loads(out)
    assert len(shown["trials"]) == 2
    assert len(shown["adaptations"]) == 3

    code, out, _ = esper(capsys, "runs", "compare", RUN_ID, control)
    assert code == 0
    assert "Their losses are equal bit for bit up to epoch 12." in out
    assert "seed: 0 in A, 1 in B" in out


def write_run(folder: Path, *last: tuple[str, dict[str, Any]], refusals: int = 0) -> None:
    """A run's journal up to its first decision, ``refusals`` of it, and then ``last``."""
    folder.mkdir(parents=True)
    started, *_ = events()
    with Journal(folder / JOURNAL_NAME, fsync=False) as journal:
        journal.write(started[0], **started[1])
        for epoch in range(refusals):
            reason = "no untried kernel for features 4->4"
            outcome = {"status": "refused", "kernel_id": None, "reason": reason}
            journal.write("decision", epoch=epoch, decision=decision(LAYERS[epoch % 2], 0), outcome=outcome)
        for event, fields in last:
            journal.write(event, **fields)


def test_refusals_for_one_reason_are_shown_once(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(workplace / "runs/a", refusals=30)
    _, out, _ = esper(capsys, "runs", "show", "a")
    assert out.count("no untried kernel for features 4->4") == 2
    (row,) = [line for line in out.splitlines() if "30 refused" in line]
    assert row.split()[0] == "1-30"
    assert f"{LAYERS[0]}, {LAYERS[1]}" in row
    assert "decision 1 (refused, and 29 more up to epoch 30)" in out


@pytest.mark.parametrize(
    ("last", "why"),
    [
        (
            [],
            "its process ended without a word: killed, out of memory, or the power failed; nothing was saved",
        ),
        ([("run_interrupted", {"epoch": 3})], "it was interrupted, by Ctrl-C or SIGTERM; nothing was saved"),
        ([("run_failed", {"error": "the loss is not finite"})], "it failed: the loss is not finite"),
    ],
)
def test_a_run_says_why_it_did_not_finish(
    last: list[tuple[str, dict[str, Any]]], why: str, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(workplace / "runs/a", *last)
    _, out, _ = esper(capsys, "runs", "show", "a")
    assert f"{why}\n" in out
    (workplace / "runs/a/checkpoints/step-000000010").mkdir(parents=True)
    (workplace / "runs/a/checkpoints/step-000000010/manifest.json").touch()
    _, out, _ = esper(capsys, "runs", "show", "a")
    assert ("go on with: esper train --resume a" in out) == ("nothing was saved" in why)


def test_a_run_without_events_or_configuration_is_shown_and_not_compared(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(workplace / "runs")
    (workplace / "runs/empty").mkdir()
    (workplace / "runs/empty" / JOURNAL_NAME).touch()
    code, out, _ = esper(capsys, "runs", "show", "empty")
    assert (code, "training never began" in out) == (0, True)
    for damage in (None, "a: [1,", "- 1"):
        if damage is not None:
            (workplace / "runs/empty/config.yaml").write_text(damage)
        code, out, err = esper(capsys, "runs", "compare", RUN_ID, "empty")
        assert (code, out, err.count("\n")) == (7, "", 1)
        assert "cannot read runs/empty/config.yaml" in err


def test_a_run_that_is_not_there_has_exit_code_7(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = esper(capsys, "runs", "show", "latest")
    assert code == 7
    assert "no runs in runs" in err
    make_run(workplace / "runs")
    code, _, err = esper(capsys, "runs", "show", "20261123-181502-resnet-3f2b")
    assert code == 7
    assert RUN_ID in err


def test_runs_of_another_folder_are_found_by_an_override(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(workplace / "elsewhere")
    assert RUN_ID in esper(capsys, "runs", "ls", f"runs={workplace / 'elsewhere'}")[1]
    assert "No runs in runs yet" in esper(capsys, "runs", "ls")[1]


def test_the_command_line_starts_without_pytorch_and_other_commands() -> None:
    import subprocess

    code = (
        "import sys; from esper_cli import app; assert not {'numpy', 'hydra'} & set(sys.modules);"
        "app.run(['runs', 'ls']); app.run(['kernels', 'ls']);"
        "assert not {'matplotlib', 'esper_cli.train', 'esper_cli.watch'} & set(sys.modules);"
        "app.run(['train', '--help']);"
        "sys.exit(int('torch' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_help_page_breaks_its_paragraphs_where_the_terminal_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    _, out, _ = esper(capsys, "compile", "--help")
    assert "One bad blueprint does not stop the others; it makes the exit code 1." in out
