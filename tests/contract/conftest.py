"""The backends that each contract suite runs on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from esper.urza.database import open_database
from esper.urza.memory import MemoryTier
from esper.urza.sql import SqlTier
from esper.urza.tiers import Tier


@pytest.fixture(params=["memory", "sqlite-file", "sqlite-memory"])
def tier(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Tier]:
    with ExitStack() as stack:
        if request.param == "memory":
            yield MemoryTier(2**26)
        else:
            url = f"sqlite:///{tmp_path}/blobs.db" if request.param == "sqlite-file" else "sqlite://"
            yield SqlTier(stack.enter_context(closing(open_database(url))))
