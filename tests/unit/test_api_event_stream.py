"""A stream of events begins when it is listened to the journals, and its ids are good for what it tells."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nissa_support import RunWriter

from esper.nissa.api.application import create_app
from esper.nissa.api.monitor import Monitor
from esper.nissa.runs import RunStore

A, B = "20261128-a", "20261128-b"


def ask(root: Path, query: str, after: str = "", began: Callable[[], None] = lambda: None) -> tuple[int, str]:
    """The status, and all that is told up to the first event; ``began`` is called where the answer begins."""
    app, status, told = create_app(Monitor(RunStore(root), list)), 0, b""

    async def asking() -> None:
        over = asyncio.Event()

        async def receive() -> dict[str, Any]:
            await over.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            nonlocal status, told
            if message["type"] == "http.response.start":
                status = message["status"]
                began()
                return
            told += message.get("body", b"")
            if b"\ndata: " in told or not message.get("more_body"):
                over.set()

        scope = {
            "type": "http",
            "method": "GET",
            "path": "/api/v1/events",
            "query_string": query.encode(),
            "headers": [(b"last-event-id", after.encode())] if after else [],
        }
        await asyncio.wait_for(app(scope, receive, send), 60)

    asyncio.run(asking())
    return status, told.decode()


def id_of(told: str) -> str:
    """That of the first event."""
    return re.findall("^id: (.*)$", told, re.MULTILINE)[0]


def test_whoever_sees_the_answer_begin_misses_nothing_from_then_on(tmp_path: Path) -> None:
    with RunWriter(tmp_path, A) as old:
        old.started()
        with RunWriter(tmp_path, B) as run:
            status, told = ask(tmp_path, "", began=run.started)
    assert status == 200
    assert "event: run_started\n" in told
    assert f'"run_id":"{B}"' in told


def test_an_id_of_a_stream_that_left_something_out_is_good_for_no_other(tmp_path: Path) -> None:
    for name in (A, B):
        with RunWriter(tmp_path, name) as run:
            run.started()
            run.epoch(0)
            run.epoch(1)
    whole = id_of(ask(tmp_path, "after=start")[1])
    narrow = id_of(ask(tmp_path, f"run={A}&types=epoch&after=start")[1])
    assert '"epoch":1' in ask(tmp_path, f"run={A}&types=epoch", narrow)[1]
    assert '"epoch":0' in ask(tmp_path, f"run={B}&types=epoch", whole)[1]
    for query in ("", "types=epoch", f"run={A}", f"run={B}&types=epoch", f"run={A}&types=epoch,seed"):
        for status, told in (
            ask(tmp_path, query, narrow),
            ask(tmp_path, f"{query}&after={narrow}".lstrip("&")),
        ):
            assert status == 400
            assert "of another run or of other types" in json.loads(told)["detail"]
