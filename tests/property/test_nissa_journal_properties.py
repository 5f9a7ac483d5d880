"""Whatever a crash or a bad disk leaves of a journal, it reads, and what was whole is read whole."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esper.nissa.journal import JOURNAL_NAME, Journal, dumps, number
from esper.nissa.journal_reader import JournalReader, read_journal
from esper.nissa.run_view import RunView

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
names = st.text(min_size=1, max_size=12).filter(lambda name: name not in ("event", "at"))
event_lists = st.lists(
    st.tuples(st.text(max_size=12), st.dictionaries(names, json_values, max_size=4)), max_size=6
)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


def written(path: Path, events: list[tuple[str, dict[str, Any]]]) -> bytes:
    path.unlink(missing_ok=True)
    with Journal(path, fsync=False) as journal:
        for event, fields in events:
            journal.write(event, **fields)
    return path.read_bytes()


@settings(deadline=None, max_examples=60)
@given(events=event_lists, data=st.data())
def test_a_journal_cut_at_any_byte_gives_every_whole_event_and_goes_on(
    folder: Path, events: list[tuple[str, dict[str, Any]]], data: st.DataObject
) -> None:
    path = folder / JOURNAL_NAME
    whole = written(path, events)
    cut = data.draw(st.integers(0, len(whole)), label="cut")
    path.write_bytes(whole[:cut])
    expected = [json.loads(line) for line in whole[:cut].splitlines(keepends=True) if line.endswith(b"\n")]

    reader = JournalReader(path)
    assert list(reader.read()) == expected
    assert reader.offset + reader.torn == cut
    assert reader.damaged == 0

    with Journal(path, fsync=False) as journal:
        journal.write("run_started")
    events_then, offset = read_journal(path)
    assert offset == path.stat().st_size
    assert events_then[-1]["event"] == "run_started"
    # A line that lacked nothing but its end is whole after all.
    assert events_then[: len(expected)] == expected
    assert len(events_then) - 1 - len(expected) in (0, 1)


@settings(deadline=None, max_examples=60)
@given(events=event_lists, data=st.data())
def test_reading_in_parts_is_reading_at_once(
    folder: Path, events: list[tuple[str, dict[str, Any]]], data: st.DataObject
) -> None:
    path = folder / JOURNAL_NAME
    whole = written(path, events)
    at_once, _ = read_journal(path)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=4), label="cuts"))
    path.write_bytes(b"")
    in_parts, reader, start = [], JournalReader(path), 0
    for cut in [*cuts, len(whole)]:
        with path.open("ab") as file:
            file.write(whole[start:cut])
        start = cut
        in_parts += list(reader.read())
    assert in_parts == at_once
    assert (reader.damaged, reader.torn) == (0, 0)


@settings(deadline=None, max_examples=60)
@given(noise=st.binary(max_size=300), events=event_lists)
def test_no_bytes_break_a_reader_or_a_view(
    folder: Path, noise: bytes, events: list[tuple[str, dict[str, Any]]]
) -> None:
    path = folder / JOURNAL_NAME
    whole = written(path, events)
    path.write_bytes(whole + noise + b"\n" + whole)
    found, _ = read_journal(path)
    assert len(found) >= 2 * len(events)
    RunView(folder).refresh()


KEYS = """
    epoch layer seed_idx kernel_id from_state to_state evidence packet loss accuracy layer_metrics seed_states
    decision outcome status parameters target_component report slot tiers memory layers seeds summary path
    kind resumed_from_epoch total_epochs
"""
EVENTS = """
    run_started epoch decision seed trial fault cache checkpoint run_finished run_interrupted run_failed
"""
keys = st.sampled_from(KEYS.split())
odd_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10**6) | st.floats() | st.sampled_from(["stage1", "", "NaN"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=10,
)


@settings(deadline=None, max_examples=60)
@given(
    events=st.lists(
        st.tuples(st.sampled_from(EVENTS.split()), st.dictionaries(keys, odd_values, max_size=6)),
        max_size=5,
    )
)
def test_a_view_bears_known_events_with_any_fields(
    folder: Path, events: list[tuple[str, dict[str, Any]]]
) -> None:
    written(folder / JOURNAL_NAME, events)
    view = RunView(folder).refresh()
    json.loads(dumps([item.to_json() for item in view.adaptations]))
    assert view.damaged <= len(events)


@given(value=st.floats())
def test_every_float_survives(value: float) -> None:
    back = number(json.loads(dumps(value)))
    assert math.isnan(back) if math.isnan(value) else back == value
