"""The history of the library's tables: one alembic revision a file in ``versions/``.

Opening a library runs what it lacks. To add a revision, change ``esper/urza/schema.py``, write the next file
of ``versions/`` by hand, and set ``REVISION`` in ``esper/urza/database.py``; tests hold the three together.
"""

from __future__ import annotations

import threading
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

_lock = threading.Lock()  # alembic's ``context`` is a global of the process


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Bring the tables up to ``revision`` inside the transaction that ``connection`` is in."""
    with _lock:
        command.upgrade(_config(connection), revision)


def downgrade(connection: Connection, revision: str) -> None:
    """Take the tables back to ``revision`` (``"base"`` is none at all) inside the same transaction."""
    with _lock:
        command.downgrade(_config(connection), revision)


def known_revisions() -> list[str]:
    """Every revision that this version of Esper has, newest first."""
    return [script.revision for script in ScriptDirectory.from_config(_config(None)).walk_revisions()]


def _config(connection: Connection | None) -> Config:
    # Built here rather than read from an ini file, so that it works from a wheel and leaves logging alone.
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    return config
