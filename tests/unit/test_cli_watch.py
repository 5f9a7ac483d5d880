"""What ``esper watch`` draws: curves that follow the numbers, and a picture that fits any terminal."""

from __future__ import annotations

import io
import json
import math
import re
import threading
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cli_support import KERNEL, LAYERS, LIVE_ONLY, RUN_ID, decision, events, report
from rich.console import Console

from esper.messages import SeedState
from esper.nissa.journal import JOURNAL_NAME, Journal
from esper.nissa.replay import ToldRun
from esper_cli.app import run
from esper_cli.curves import Curves, Mark, Series
from esper_cli.watch_frame import WatchFrame

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)


def told(*more: tuple[str, dict[str, object]], alive: bool = False, total: int = 12) -> ToldRun:
    """The run of ``cli_support``, an epoch a minute up to now, and what is given after it."""
    made = ToldRun(Path(RUN_ID))
    at = NOW - timedelta(minutes=total)
    left_out = (*LIVE_ONLY, *(["run_finished"] if alive else []))
    for name, fields in [*(event for event in events(total) if event[0] not in left_out), *more]:
        at += timedelta(minutes=1 if name == "epoch" else 0)
        made.tell([{"event": name, "at": at.isoformat(), **fields}], alive=alive)
    return made


def draw(picture: object, width: int = 80, height: int = 24, encoding: str = "utf-8") -> list[str]:
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="replace")  # as esper_cli.app does
    Console(file=out, width=width, height=height, force_terminal=True, color_system=None).print(picture)
    out.flush()
    return out.buffer.getvalue().decode(encoding).splitlines()  # type: ignore[attr-defined]


def curve(values: dict[int, float], lines: int = 7, width: int = 30, **more: object) -> list[str]:
    return draw(Curves("loss", [Series("held-out", "", values)], lines, **more), width)  # type: ignore[arg-type]


def test_a_curve_falls_from_its_highest_to_its_lowest_value() -> None:
    lines = curve({epoch: 10.0 - epoch for epoch in range(6)})
    assert len(lines) == 7
    assert lines[0].rstrip() == "loss  held-out"
    assert lines[1].startswith("      10 ┤⠉")
    assert lines[5].startswith("       5 ┤")
    assert lines[5].rstrip()[-1] != "┤"
    assert lines[6] == "       1 └───────────────────6"
    filled = [row for row in range(1, 6) for cell in lines[row][10:] if cell != " "]
    assert filled == sorted(filled)
    columns = [next(c for c in range(10, 30) if lines[row][c] != " ") for row in range(1, 6)]
    assert columns == sorted(set(columns))  # each line begins further right


def test_curves_of_many_values_keep_their_extremes() -> None:
    values = dict.fromkeys(range(10_000), 1.0) | {5_000: 2.0}
    lines = curve(values)
    assert lines[1].strip(" ┤2⠀") != ""
    assert lines[1][10:].strip() != ""
    assert len(lines[1][10:].strip()) <= 2  # one of ten thousand, and it is seen


def test_values_that_are_no_numbers_leave_the_rest_as_it_was() -> None:
    broken = curve({0: 4.0, 1: math.nan, 2: 3.0, 3: math.inf, 4: 2.0})
    assert broken == curve({0: 4.0, 2: 3.0, 4: 2.0})


@pytest.mark.parametrize("values", [{}, {0: math.nan}])
def test_a_curve_without_values_says_so(values: dict[int, float]) -> None:
    assert curve(values)[1] == "no epoch yet"


@pytest.mark.parametrize("values", [{3: 0.5}, {0: 1.0, 1: 1.0}, {0: -1.0, 1: 0.0}, {0: 0.0, 1: 1e-9}])
def test_few_and_equal_values_are_drawn(values: dict[int, float]) -> None:
    assert any(cell not in " ┤│" for line in curve(values)[1:-1] for cell in line[9:])


def test_a_label_is_whole_or_not_there() -> None:
    assert curve({0: -1.2345e-100, 1: 0.0})[5].startswith("         ┤")


def test_marks_stand_on_the_axis_where_they_belong() -> None:
    mark = Mark(5, "▲", "^", "green")
    assert curve({0: 1.0, 10: 2.0}, marks=[mark])[-1] == "       1 └──────────▲───────11"
    assert curve({6: 1.0, 10: 2.0}, marks=[mark])[-1].count("▲") == 0
    last = curve({0: 1.0, 5: 2.0}, marks=[mark])[-1]
    assert last.endswith("─▲")


def test_a_terminal_without_unicode_gets_ascii() -> None:
    picture = draw(WatchFrame(told(), NOW), encoding="ascii")
    assert f"{LAYERS[0]} ..F." in "\n".join(picture)
    assert any("*" in line for line in picture[4:8])
    assert any("-^-" in line for line in picture)
    assert any("^ kept" in line for line in picture)
    assert not any("?" in line for line in picture[:12])  # of what follows the ends of long lines


@pytest.mark.parametrize(("width", "height"), [(80, 24), (60, 24), (40, 12), (200, 60), (20, 6), (132, 10)])
@pytest.mark.parametrize("upto", ["empty", "whole"])
def test_the_picture_fits(width: int, height: int, upto: str) -> None:
    view = ToldRun(Path(RUN_ID)) if upto == "empty" else told()
    lines = draw(WatchFrame(view, NOW), width, height)
    assert len(lines) <= max(height - 1, 6)
    assert max(map(len, lines)) <= width
    assert "…" in lines[0] or RUN_ID in lines[0]


def test_the_picture_shows_what_there_is_to_know() -> None:
    cache = {"memory": {"hits": 9, "misses": 3, "errors": 0, "state": None}}
    cache |= {"redis": {"hits": 1, "misses": 2, "errors": 4, "state": "open"}}
    saved = {"path": "c", "epoch": 12, "step": 1, "seconds": 0.05, "paused": 0.001}
    view = told(("cache", {"tiers": cache}), ("checkpoint", saved), alive=True)
    lines = draw(WatchFrame(view, NOW + timedelta(seconds=90)), 100, 40)
    text = "\n".join(lines)
    assert lines[0].endswith("running")
    assert lines[1].startswith("epoch 12/12")
    assert lines[2].startswith("loss 0.3459  held-out 0.3959  accuracy 89.0 %  best 89.0 %")
    assert f"{LAYERS[0]} ··●·" in text
    assert "● 1 fossilized" in text
    assert re.search(
        r"adapted +5  stage1.0.conv1 seed 2  ▲ kept +gain \+0.0120 ± 0.0021  0.4120 -> 0.3980", text
    )
    assert "refused" in text
    assert "caches  redis 33 % of 3, 4 errors, left alone  memory 75 % of 12" in text
    assert "saved   1 min 30 s ago  took 50.0 ms, of which training waited 1.0 ms" in text
    assert re.search(r"alerts +cache: redis is left alone", text)
    assert "fault: " in text


def test_a_run_that_prepares_says_what_waits_to_be_compiled() -> None:
    view = ToldRun(Path(RUN_ID))
    about = {"experiment": "smoke", "task": "digits", "seed": 0, "total_epochs": 12}
    queue = {"waiting": 12, "compiling": 1, "workers": 2, "oldest": (NOW - timedelta(seconds=70)).isoformat()}
    at = NOW.isoformat()
    view.tell([{"event": "preparing", "at": at, **about}], alive=True)
    view.tell([{"event": "compile_queue", "at": at, **queue}], alive=True)
    lines = draw(WatchFrame(view, NOW), 100)
    assert lines[0].endswith("running")
    assert "smoke on digits" in lines[0]
    assert lines[1].startswith("preparing")
    text = "\n".join(lines)
    assert "kernels 12 wait, 1 is being compiled by 2 workers  the oldest for 1 min 10 s" in text
    view.tell([{"event": "compile_queue", "at": at, **queue, "workers": 0}], alive=True)
    assert re.search(
        r"alerts +queue: 12 to be compiled, and no worker", "\n".join(draw(WatchFrame(view, NOW)))
    )
    view.tell([{"event": "run_started", "at": at, **about, "resumed_from_epoch": None}], alive=True)
    lines = draw(WatchFrame(view, NOW))
    assert lines[1].startswith("epoch 0/12")
    assert "kernels" not in "\n".join(lines)
    assert view.resumes == 0


def test_a_sink_that_is_down_is_an_alert_while_the_run_goes_on() -> None:
    down = {"redis": {"state": "down", "reason": "127.0.0.1:6379 does not answer"}}
    told_of = "redis takes no messages: 127.0.0.1:6379 does not answer (esper doctor nissa/sinks=redis)"
    for alive in (True, False):
        text = "\n".join(draw(WatchFrame(told(("telemetry", {"sinks": down}), alive=alive), NOW), 120))
        assert alive == (told_of in text)


def test_the_time_that_is_left_is_that_of_the_latest_epochs() -> None:
    made = ToldRun(Path(RUN_ID))
    played = [event for event in events(12) if event[0] not in LIVE_ONLY]
    stop = [place for place, (name, _) in enumerate(played) if name == "epoch"][5] + 1
    for minute, (name, fields) in enumerate(played[:stop]):
        at = NOW + timedelta(minutes=minute)
        made.tell([{"event": name, "at": at.isoformat(), **fields}], alive=True)
    ends = [minute for minute, (name, _) in enumerate(played[:stop]) if name == "epoch"]
    pace = (ends[-1] - ends[0]) / 5
    assert f"{round(6 * pace)} min" in draw(WatchFrame(made, NOW))[1]


def test_a_run_that_failed_says_so_first() -> None:
    lines = draw(WatchFrame(told(("run_failed", {"error": "the loss is nan"})), NOW))
    assert lines[0].endswith("failed")
    assert any("failed: the loss is nan" in line for line in lines)


def test_a_growth_of_the_host_says_what_the_loss_did() -> None:
    grown = {
        **decision("host", 0),
        "adaptation_type": "modify_architecture",
        "parameters": {"operator": "widen"},
    }
    view = told()
    outcome = {"status": "grown", "kernel_id": None, "reason": ""}
    event = {"event": "decision", "at": NOW.isoformat(), "epoch": 5, "decision": grown, "outcome": outcome}
    view.tell([event], alive=True)
    losses = [epoch.held_out_loss for epoch in view.epochs]
    assert f"held-out loss {100 * (losses[10] / losses[5] - 1):+.1f} % in 5 epochs" in "\n".join(
        draw(WatchFrame(view, NOW))
    )


def test_of_layers_that_do_not_fit_those_with_kernels_come_first() -> None:
    view = ToldRun(Path(RUN_ID))
    layers = {f"blocks.{number}.layer": {"kind": "linear", "seeds": 4} for number in range(500)}
    start = dict(next(fields for name, fields in events() if name == "run_started"), layers=layers)
    view.tell([{"event": "run_started", "at": NOW.isoformat(), **start}], alive=True)
    change = {"layer": "blocks.444.layer", "seed_idx": 1, "kernel_id": KERNEL, "evidence": {}}
    moved = {"epoch": 0, "from_state": "DORMANT", "to_state": SeedState.TRAINING, **change}
    view.tell([{"event": "seed", "at": NOW.isoformat(), **moved}], alive=True)
    text = "\n".join(draw(WatchFrame(view, NOW)))
    assert "blocks.444.layer ·◔··" in text
    assert "· 1999 dormant  ◔ 1 training" in text
    assert "more lines of layers" in text


@pytest.fixture
def ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a finished run, one event of which no reader understands."""
    folder = tmp_path / "runs" / RUN_ID
    folder.mkdir(parents=True)
    with Journal(folder / JOURNAL_NAME, fsync=False) as journal:
        for name, fields in events():
            if name not in LIVE_ONLY:
                journal.write(name, **fields)
        journal.write("epoch", packet={"epoch": "?"})
        journal.write("trial", report=asdict(report(LAYERS[1], 0, (9, 11), "culled", math.nan)))
        journal.write("run_finished", summary={})
    monkeypatch.chdir(tmp_path)
    return folder


def test_without_a_terminal_each_event_is_a_line_and_the_last_says_how_it_ended(
    ended: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["watch"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"run {RUN_ID}: resnet on fashion, 12 epochs")
    assert sum(line.startswith("epoch ") for line in lines) == 12
    assert any(line.startswith("kept") for line in lines)
    assert lines[-1] == f"run {RUN_ID}: finished"


def test_a_run_that_did_not_finish_ends_with_1_and_the_next_command(
    ended: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Journal(ended / JOURNAL_NAME, fsync=False) as journal:
        journal.write("run_started", **dict(next(iter(events()))[1], resumed_from_epoch=11))
    assert run(["watch", RUN_ID[:8]]) == 1
    assert "killed, out of memory" in capsys.readouterr().out.splitlines()[-1]


def test_a_run_that_is_killed_while_it_is_watched_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "runs" / RUN_ID
    folder.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with Journal(folder / JOURNAL_NAME, fsync=False) as journal:
        journal.write("run_started", **next(iter(events()))[1])
        killed = threading.Timer(0.5, journal.close)  # the lock goes with the process
        killed.start()
        assert run(["watch"]) == 1
        killed.join()
    assert f"run {RUN_ID}: stopped" in capsys.readouterr().out


def test_the_run_that_begins_is_the_latest_while_its_kernels_are_compiled(
    ended: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soon = ended.parent / "20260101-000000-soon-0000"  # whatever its id: it is what began last
    soon.mkdir()
    with Journal(soon / JOURNAL_NAME, fsync=False) as journal:
        journal.write("preparing", experiment="soon", task="digits", seed=0, total_epochs=9)
        journal.write("compile_queue", waiting=3, compiling=1, workers=1, oldest=NOW.isoformat())
        assert run(["watch", "--once"]) == 0
        shown = capsys.readouterr().out
        assert shown.startswith(soon.name)
        assert "3 wait, 1 is being compiled by 1 worker" in shown
        killed = threading.Timer(0.5, journal.close)
        killed.start()
        assert run(["watch"]) == 1
        killed.join()
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        "preparing soon on digits: kernels first",
        "queue     3 wait, 1 is being compiled by 1 worker",
    ]


def test_json_is_the_journal_itself(ended: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["watch", "latest", "--json"]) == 0
    assert capsys.readouterr().out == (ended / JOURNAL_NAME).read_text()


def test_once_and_an_epoch_are_one_picture(ended: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["watch", "--once"]) == 0
    now = capsys.readouterr().out
    assert now.splitlines()[0].endswith("finished")
    assert max(map(len, now.splitlines())) <= 80
    assert run(["watch", "--epoch", "5"]) == 0
    then = capsys.readouterr().out
    assert then.splitlines()[0].endswith("after epoch 5  running")
    assert "epoch 5/12" in then
    assert "on trial" in then
    assert "kept" not in then


def test_an_epoch_as_json_is_the_journal_up_to_then(ended: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["watch", "--epoch", "5", "--json"]) == 0
    named = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert max(event["packet"]["epoch"] for event in named if event["event"] == "epoch") == 4
    assert named[-1]["event"] in ("decision", "checkpoint", "cache")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--epoch", "13"], "has no epoch 13. It has done 12 of 12"),
        (["nosuch"], "no run 'nosuch'"),
        (["--epoch", "0"], "Invalid value for '--epoch'"),
    ],
)
def test_what_cannot_be_watched_is_one_line(
    ended: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["watch", *arguments]) != 0
    assert words in capsys.readouterr().err
