"""Whatever a journal holds, its picture fits the terminal and its curves are there."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from esper.nissa.replay import ToldRun
from esper_cli.curves import Curves, Mark, Series
from esper_cli.watch_frame import WatchFrame
from esper_cli.watch_view import LineViewer

SOME = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
NUMBERS = st.floats(allow_nan=True, allow_infinity=True) | st.floats(1e-6, 10)
WIDTHS = st.integers(1, 130)
WORDS = st.sampled_from(
    ["grafted", "grown", "refused", "DORMANT", "TRAINING", "LATER", "NaN", "", "redis", "open"]
)
ANYTHING = st.none() | st.integers(-3, 40) | WORDS | st.just([]) | st.just({"epoch": 1})
LAYER = st.fixed_dictionaries({"seed_states": st.lists(WORDS, max_size=4)})


def event(name: str, **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """An event with these fields, some of which may hold anything."""
    loose = {key: strategy | ANYTHING if key != "epoch" else strategy for key, strategy in fields.items()}
    fixed = {"event": st.just(name), "at": st.just("2026-11-28T10:00:00+00:00")}
    return st.fixed_dictionaries({**fixed, **loose})


EPOCHS = st.integers(0, 12)
PACKET = st.fixed_dictionaries(
    {"epoch": EPOCHS, "loss": NUMBERS, "held_out_loss": NUMBERS, "accuracy": NUMBERS, "total_epochs": EPOCHS,
     "layer_metrics": st.dictionaries(st.sampled_from(["a", "blocks.0.layer"]), LAYER, max_size=2)}
)  # fmt: skip
DECISION = st.fixed_dictionaries(
    {"adaptation_type": WORDS, "target_component": st.sampled_from(["a", "a" * 90]), "reason": WORDS,
     "parameters": st.just({"seed_idx": 0})}
)  # fmt: skip
OUTCOME = st.fixed_dictionaries({"status": WORDS, "kernel_id": st.just("k") | st.none(), "reason": WORDS})
COUNTS = st.fixed_dictionaries(
    {
        "hits": st.integers(0, 9),
        "misses": st.integers(0, 9),
        "errors": st.integers(0, 2),
        "state": WORDS | st.none(),
    }
)
EVENTS = st.lists(
    st.one_of(
        event("run_started", run_id=WORDS, experiment=WORDS, task=WORDS, total_epochs=EPOCHS,
              layers=st.just({"a": {"kind": "linear", "seeds": 2}}), resumed_from_epoch=st.none() | EPOCHS),
        event("epoch", packet=PACKET, samples_per_second=NUMBERS),
        event("decision", epoch=EPOCHS, decision=DECISION, outcome=OUTCOME),
        event("seed", epoch=EPOCHS, layer=st.just("a"), seed_idx=EPOCHS, from_state=WORDS, to_state=WORDS),
        event("cache", tiers=st.dictionaries(WORDS, COUNTS, max_size=3)),
        event("checkpoint", epoch=EPOCHS, path=WORDS, seconds=NUMBERS, paused=NUMBERS),
        event("fault", epoch=EPOCHS, layer=WORDS, seed_idx=st.just(0), kind=WORDS, message=WORDS),
        event("run_failed", error=WORDS),
    ),
    max_size=12,
)  # fmt: skip


def draw(picture: object, width: int, height: int = 24) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width, height=height, force_terminal=True, color_system=None).print(picture)
    return out.getvalue().splitlines()


@SOME
@given(
    st.dictionaries(st.integers(0, 10_000), NUMBERS, max_size=40),
    WIDTHS,
    st.integers(1, 20),
    st.lists(st.integers(-5, 10_005), max_size=5),
)
def test_a_curve_of_any_values_has_its_lines_and_fits(
    values: dict[int, float], width: int, lines: int, marked: list[int]
) -> None:
    marks = [Mark(epoch, "▲", "^", "") for epoch in marked]
    drawn = draw(Curves("loss", [Series("held-out", "", values)], lines, marks), width)
    assert len(drawn) in (2, lines)  # a title and why there is no curve, or all of them
    assert max(map(len, drawn)) <= width


@SOME
@given(EVENTS, WIDTHS, st.integers(1, 40))
def test_a_picture_of_any_journal_fits(events: list[dict[str, Any]], width: int, height: int) -> None:
    run = ToldRun(Path("run"))
    run.tell([json.loads(json.dumps(event)) for event in events], alive=True)
    drawn = draw(WatchFrame(run, datetime(2026, 11, 28, 11, tzinfo=UTC)), width, height)
    if width >= 12:  # a terminal that is less than a word across may break lines
        assert len(drawn) <= max(6, height - 1)
    assert max(map(len, drawn)) <= width


@SOME
@given(EVENTS)
def test_no_event_ends_the_lines(events: list[dict[str, Any]]) -> None:
    viewer = LineViewer()
    viewer.show(ToldRun(Path("run")), [json.loads(json.dumps(event)) for event in events])
