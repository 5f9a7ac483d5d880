"""Runs and adaptations a page at a time, and one run whole, from the views of their journals.

A page ends at a key, not at a number: what comes newly while somebody turns pages shifts none of them.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from esper.nissa.api.cursors import BadCursor, read_cursor, write_cursor
from esper.nissa.api.queries import AdaptationsQuery, RunsQuery
from esper.nissa.run_list import RunList, start_key
from esper.nissa.run_outline import RunOutline
from esper.nissa.run_parsing import parse_time
from esper.nissa.run_records import Adaptation, RunStatus
from esper.nissa.run_view import RunView
from esper.nissa.runs import summarize

LATEST_SHOWN = 20
"""Of faults, and of what a run was asked, so many are shown."""


def runs_page(runs: RunList, query: RunsQuery, deadline: float = math.inf) -> dict[str, Any]:
    """The page of ``runs``, the one started last first, that ``query`` asks for.

    Raises BadCursor, and TimeoutError where after ``deadline`` (``time.monotonic``) much was never read.
    """
    after = None if query.cursor is None else read_cursor(query.cursor, float, str)
    found = runs.begun(deadline)
    if query.status is not None or query.experiment is not None:
        found = [run for run in runs.refreshed(found, deadline) if _fits(run, query)]
    left = [run for run in found if after is None or start_key(run) < after]
    shown: list[dict[str, Any]] = []
    last = None
    for last in runs.measured(left, deadline):
        if _fits(last, query):
            shown.append(run_item(last))
        if len(shown) == query.limit:
            break
    return {
        "total": len(found),
        "runs": shown,
        "next": write_cursor(*start_key(last)) if last is not None and last is not left[-1] else None,
    }


def _fits(run: RunOutline, query: RunsQuery) -> bool:
    return query.status in (None, run.status) and query.experiment in (None, run.experiment)


def run_item(view: RunView | RunOutline) -> dict[str, Any]:
    """A run in one line, without where it lies."""
    item = summarize(view).to_json()
    del item["path"]
    return item


_Place = tuple[datetime, str, int]
_Entry = tuple[_Place, str, Adaptation]


def adaptations_page(
    runs: RunList, query: AdaptationsQuery, only: RunOutline | None = None, deadline: float = math.inf
) -> dict[str, Any]:
    """The page of the adaptations of ``runs`` that ``query`` asks for, the newest first; as ``runs_page``."""
    after = None if query.cursor is None else _read_place(query.cursor)
    by_verdict = query.outcome not in (None, "performed")
    total = 0

    def left() -> Iterator[_Entry]:
        nonlocal total
        for run in runs.refreshed(None if only is None else [only], deadline, trials=by_verdict):
            for entry in _adaptations(run, query):
                total += 1
                if after is None or entry[0] < after:
                    yield entry

    found = heapq.nlargest(query.limit + 1, left(), key=lambda entry: entry[0])
    shown = found[: query.limit]
    return {
        "total": total,
        "adaptations": [
            {
                "run_id": place[1],
                "experiment": experiment,
                **item.to_json(),
                "result": result_of(item),
            }
            for place, experiment, item in (shown if by_verdict else _judged(runs, shown, deadline))
        ],
        "next": _write_place(shown[-1][0]) if len(found) > len(shown) else None,
    }


def _judged(runs: RunList, entries: Sequence[_Entry], deadline: float) -> list[_Entry]:
    """The same with what became of them: that is read of their runs alone."""
    places: dict[str, list[_Place]] = {}
    for place, _, _ in entries:
        places.setdefault(place[1], []).append(place)
    now: dict[_Place, Adaptation] = {}
    for run in runs.refreshed(map(runs.outline, places), deadline, trials=True):
        known = [place for place in places[run.run_id] if place[2] < len(run.adaptations)]
        now |= {place: run.adaptations[place[2]] for place in known}
    return [(place, experiment, now.get(place, item)) for place, experiment, item in entries]


def _read_place(cursor: str) -> _Place:
    at, run_id, place = read_cursor(cursor, str, str, int)
    try:
        return parse_time(at), run_id, place
    except ValueError as error:
        raise BadCursor("this cursor is of another list") from error


def _write_place(place: _Place) -> str:
    return write_cursor(place[0].isoformat(), *place[1:])


def result_of(item: Adaptation) -> str:
    """The verdict on an adaptation, or what else there is to say of it so far."""
    if item.trial is not None:
        return item.trial.verdict
    return "pending" if item.status == "grafted" else item.status


def _adaptations(run: RunOutline, query: AdaptationsQuery) -> Iterator[_Entry]:
    # The newest first: most of those that come later are passed over at once.
    for place in range(len(run.adaptations) - 1, -1, -1):
        item = run.adaptations[place]
        decision = item.decision
        if (
            query.layer in (None, decision.get("target_component"))
            and query.type in (None, decision.get("adaptation_type"))
            and _is_outcome(item, query.outcome)
            and (query.since is None or item.at >= query.since)
            and (query.until is None or item.at < query.until)
        ):
            yield (item.at, run.run_id, place), run.experiment, item


def _is_outcome(item: Adaptation, wanted: str | None) -> bool:
    if wanted is None or (wanted == "performed" and item.performed):
        return True
    return result_of(item) == wanted


def run_details(view: RunView) -> dict[str, Any]:
    """All that the API shows of one run."""
    return {
        **run_item(view),
        "seed": view.seed,
        "parameters": view.parameters,
        "flops_per_sample": view.flops_per_sample,
        "resumes": view.resumes,
        "layers": {name: _layer(view, name) for name in dict.fromkeys([*view.layers, *view.seeds])},
        "latest": _latest(view),
        "adaptation_counts": Counter(result_of(item) for item in view.adaptations),
        "checkpoints": _checkpoints(view),
        "rollbacks": [
            {name: value for name, value in _plain(item).items() if name not in ("seeds", "skipped")}
            for item in view.rollbacks
        ],
        "controls": [item.to_json() for item in list(view.controls.values())[-LATEST_SHOWN:]],
        "alerts": alerts_of(view),
        "cache": view.cache,
        "result": _result(view),
    }


def alerts_of(view: RunView) -> list[dict[str, Any]]:
    """What a person should look at, the oldest first; of faults the latest alone."""
    alerts = [
        _alert(fault.at, "fault", f"{fault.layer} seed {fault.seed_idx}: {fault.kind}: {fault.message}")
        for fault in view.faults[-LATEST_SHOWN:]
    ]
    alerts += [_alert(item.at, "rollback", f"{item.kind}: {item.detail}") for item in view.rollbacks]
    alerts.sort(key=lambda alert: alert["at"])
    for name, tier in view.cache.items():
        if tier.state not in (None, "closed") and view.status.goes_on:
            alerts.append(_alert(None, "cache", f"{name} is left alone, for it fails", "esper doctor"))
    for name, sink in view.sinks.items():
        if sink.state == "down" and view.status.goes_on:
            why = f": {sink.reason}" if sink.reason else ""
            hint = f"esper doctor nissa/sinks={name}"
            alerts.append(_alert(None, "sink", f"{name} takes no messages{why}", hint))
    if (queue := view.queue) and queue.waiting and not queue.workers:
        waits = f"{queue.waiting} to be compiled, and no worker takes any"
        alerts.append(_alert(None, "queue", waits, "esper worker"))
    if view.inventing_error is not None:
        alerts.append(_alert(None, "inventing", view.inventing_error))
    if view.damaged:
        alerts.append(_alert(None, "journal", f"{view.damaged} lines of its journal could not be understood"))
    if view.status is RunStatus.FAILED:
        alerts.append(_alert(view.updated_at, "failed", view.error or "", _resume(view)))
    if view.status is RunStatus.STOPPED:
        alerts.append(_alert(view.updated_at, "stopped", "its process ended without a word", _resume(view)))
    return alerts


def _alert(at: datetime | None, kind: str, text: str, hint: str | None = None) -> dict[str, Any]:
    said = None if at is None else at.astimezone(UTC).isoformat()
    return {"at": said, "kind": kind, "text": text, "hint": hint}


def _resume(view: RunView) -> str | None:
    return f"esper train --resume {view.run_id}" if view.checkpoints else None


def _layer(view: RunView, name: str) -> dict[str, Any]:
    seeds = view.seeds.get(name, [])
    return {
        "kind": str(view.layers.get(name, {}).get("kind", "")),
        "seeds": [{**_plain(seed), "active": seed.active} for seed in seeds],
    }


def _latest(view: RunView) -> dict[str, Any] | None:
    if view.last is None:
        return None
    return {name: value for name, value in _plain(view.last).items() if name != "packet"}


def _checkpoints(view: RunView) -> list[dict[str, Any]]:
    """Those that are still there, the oldest first."""
    folder = view.folder / "checkpoints"
    return [
        {
            "name": name,
            "at": item.at.isoformat(),
            "epoch": item.epoch,
            "step": item.step,
            "seconds": item.seconds,
        }
        for item in view.checkpoints.values()
        if (folder / (name := Path(item.path).name)).is_dir()
    ]


def _result(view: RunView) -> dict[str, Any] | None:
    if view.summary is None:
        return None
    shown = ("test", "held_out", "start", "end", "epochs", "steps", "seeds", "weights_sha256")
    return {name: view.summary[name] for name in shown if name in view.summary}


def _plain(record: Any) -> dict[str, Any]:
    """The fields of a record with slots, its time in ISO 8601."""
    fields = {name: getattr(record, name) for name in record.__dataclass_fields__}
    if isinstance(fields.get("at"), datetime):
        fields["at"] = fields["at"].isoformat()
    return fields
