"""What training shows: the state behind it, lines, and a live region that fits any terminal."""

import io
import sys

import pytest
from cli_support import KERNEL, LAYERS, RUN_ID, decision, events
from rich.console import Console

from esper.messages import CompilationRecord, SeedState, Slot
from esper_cli.display import LiveDisplay, Panel, PlainDisplay, QuietDisplay
from esper_cli.parts import GLYPHS
from esper_cli.progress import RunProgress, describe
from esper_cli.train_job import Output


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def play(upto: int | None = None) -> RunProgress:
    """The progress after ``upto`` events, each of which takes a second."""
    clock = Clock()
    progress = RunProgress(clock=clock)
    for number, (event, fields) in enumerate(events()):
        if number == upto:
            break
        clock.now += 1.0
        progress.apply(event, fields)
    return progress


def draw(progress: RunProgress, width: int, height: int, **kwargs: object) -> list[str]:
    console = Console(
        file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None, **kwargs
    )
    console.print(Panel(progress))
    return console.file.getvalue().splitlines()


def test_progress_follows_the_run() -> None:
    progress = play()
    assert progress.run_id == RUN_ID
    assert progress.done == 1.0
    assert progress.saved
    assert not progress.interrupted
    assert progress.faults == 1
    assert [trial["verdict"] for trial in progress.trials] == ["kept", "culled"]
    assert progress.seeds[LAYERS[0]][2] is SeedState.FOSSILIZED
    assert progress.seeds[LAYERS[5]][0] is SeedState.EMBARGOED
    assert progress.best_accuracy == progress.accuracy


def test_time_left_is_the_mean_pace_since_training_began() -> None:
    assert play(1).seconds_left is None
    progress = play(6)  # one epoch of twelve in five events
    assert progress.done == pytest.approx(1 / 12)
    assert progress.seconds_left == pytest.approx(5 * 11)


def test_time_left_of_a_resumed_run_counts_only_what_this_process_did() -> None:
    clock = Clock()
    progress = RunProgress(clock=clock)
    started = dict(next(events())[1], resumed_from_epoch=5)
    progress.apply("run_started", started)
    assert (progress.epoch, progress.saved) == (6, True)
    clock.now = 10.0
    progress.apply("step", {"epoch": 8, "step": 79, "steps": 80, "loss": 1.0})  # three epochs in 10 s
    assert progress.seconds_left == pytest.approx(10.0)


def test_a_seed_that_changes_within_an_epoch_is_shown_at_once() -> None:
    progress = play(1)
    change = {"layer": LAYERS[1], "seed_idx": 3, "to_state": "TRAINING"}
    progress.apply("seed", change)
    assert progress.seeds[LAYERS[1]][3] is SeedState.TRAINING


def test_every_state_of_a_seed_has_a_glyph_of_its_own() -> None:
    assert set(GLYPHS) == set(SeedState)
    assert (
        len({full for full, _, _ in GLYPHS.values()}) == len({plain for _, plain, _ in GLYPHS.values()}) == 9
    )


@pytest.mark.parametrize("size", [(40, 10), (80, 24), (200, 60), (20, 5), (12, 3), (1, 1)])
@pytest.mark.parametrize("upto", [0, 1, 6, None])
def test_the_live_region_fits_the_terminal(size: tuple[int, int], upto: int | None) -> None:
    width, height = size
    lines = draw(play(upto), width, height)
    assert all(len(line) <= width for line in lines)
    assert len(lines) <= max(height, 3)


def test_the_live_region_shows_progress_numbers_and_seeds() -> None:
    text = "\n".join(draw(play(), 80, 24))
    assert "epoch 12/12" in text
    assert "loss 0.3459  accuracy 89.0 %  held-out loss 0.3959  1 faults" in text
    assert f"{LAYERS[0]} ··●·" in text
    assert "● fossilized" in text
    assert "more lines" not in text


def test_a_small_terminal_says_what_it_leaves_out() -> None:
    lines = draw(play(), 40, 8)
    assert "more lines of layers" in lines[-1]


def test_half_a_number_is_never_shown() -> None:
    assert "loss 0.3459  accuracy 89.0 %" in [line.rstrip() for line in draw(play(), 40, 24)]


def test_a_terminal_without_unicode_gets_ascii() -> None:
    console = Console(file=io.TextIOWrapper(io.BytesIO(), encoding="ascii"), width=80, height=24)
    console.print(Panel(play()))
    console.file.flush()
    text = console.file.buffer.getvalue().decode("ascii")
    assert f"{LAYERS[0]} ..F." in text


def test_lines_say_each_epoch_decision_change_verdict_and_fault() -> None:
    console = Console(file=io.StringIO(), width=10_000, color_system=None)
    with PlainDisplay(console) as display:
        for event, fields in events():
            display(event, fields)
    lines = console.file.getvalue().splitlines()
    assert lines[0] == (
        f"run {RUN_ID}: resnet on fashion, 12 epochs, 19.8k parameters, 24 seeds in 6 layers, seed 0"
    )
    assert sum(line.startswith("epoch") for line in lines) == 12
    grafts = [line for line in lines if line.startswith("decision")]
    assert grafts[0] == (
        f"decision  add seed at {LAYERS[0]} seed 2 with {KERNEL[:19]}, confidence 0.87: "
        "the held-out loss fell 0.3 % in 3 epochs"
    )
    assert grafts[2].endswith("; refused: no compatible kernel in the library")
    assert f"seed      {LAYERS[0]} seed 2: HOLDING -> FOSSILIZED" in lines
    kept = next(line for line in lines if line.startswith("kept"))
    assert "held-out loss 0.4120 -> 0.3980, accuracy 85.2 % -> 86.1 %" in kept
    assert any(line.startswith("fault") and "non-finite" in line for line in lines)


def test_a_live_display_scrolls_decisions_and_keeps_epochs_in_its_region() -> None:
    console = Console(file=io.StringIO(), width=120, height=30, force_terminal=True, color_system=None)
    with LiveDisplay(console) as display:
        for event, fields in events():
            display(event, fields)
    text = console.file.getvalue()
    assert "decision  add seed" in text
    assert "samples/s" not in text  # a line an epoch would bury the decisions


def test_a_quiet_display_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with QuietDisplay() as display:
        for event, fields in events():
            display(event, fields)
    assert capsys.readouterr().out == ""
    assert display.progress.done == 1.0


def test_an_unknown_event_is_passed_over() -> None:
    RunProgress().apply("from_a_later_version", {})
    assert describe("from_a_later_version", {}) is None


def test_compilation_is_described_with_its_failure() -> None:
    record = CompilationRecord(
        "b", "low_rank", Slot("channels", 8, 16, 2), "torchscript", "failed", 0.1, "now", stage="validate",
        reason="not finite",
    )  # fmt: skip
    line = describe("compile", {"record": record, "done": 2, "total": 3})
    assert line == "compile   2/3 low_rank for channels 8->16/2: failed in validate: not finite"


def test_a_refusal_is_told_once_until_a_kernel_is_grafted() -> None:
    refused = {"status": "refused", "kernel_id": None, "reason": "no untried kernel"}
    grafted = {"status": "grafted", "kernel_id": KERNEL, "reason": ""}
    console = Console(file=io.StringIO(), width=10_000)
    display = PlainDisplay(console)
    for outcome in (refused, refused, grafted, refused, refused):
        display("decision", {"epoch": 1, "decision": decision(LAYERS[0], 0), "outcome": outcome})
    lines = console.file.getvalue().splitlines()
    assert ["refused" in line for line in lines] == [True, False, True]


def test_a_terminal_that_cannot_move_its_cursor_gets_every_epoch_as_a_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    for term, expected in (("dumb", PlainDisplay), ("xterm", LiveDisplay)):
        monkeypatch.setenv("TERM", term)
        display = Output(quiet=False, as_json=False).display(parallel=False)
        assert type(display) is expected
