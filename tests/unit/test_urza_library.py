"""What is true of a library in a SQLite file: what is left on the disk, and how little reading it takes."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from urza_support import artefact, never_load, open_sealed, report

from esper.errors import LibraryError
from esper.messages import Slot
from esper.urza import KernelQuery, Trial

SLOT = Slot("features", 8, 8)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kernels.db"


def blobs(path: Path) -> int:
    connection = sqlite3.connect(path)
    count: int = connection.execute("SELECT count(*) FROM blobs").fetchone()[0]
    connection.close()
    return count


def test_removing_a_kernel_removes_what_only_it_needed(path: Path) -> None:
    with open_sealed(f"sqlite:///{path}", never_load) as library:
        library.put(artefact("a"))
        library.put(artefact("b"))
        library.put(artefact("c", weights=b"its own", blueprint='{"name":"its own"}'))
        assert blobs(path) == 7  # three programs, two weights, two blueprints
        library.remove("kernel_c")
        assert blobs(path) == 4
        library.remove("kernel_a")
        assert blobs(path) == 3
        library.verify("kernel_b")
        library.remove("kernel_b")
        assert blobs(path) == 0
        assert library.query(KernelQuery()) == []
        assert library.query(KernelQuery(tags=("linear",))) == []
        library.put(artefact("a"))
        library.verify("kernel_a")


def test_all_of_it_is_there_after_the_library_was_closed(path: Path) -> None:
    url = f"sqlite:///{path}"
    with open_sealed(url, never_load) as library:
        stored = library.put(artefact("a"))
        library.record_trial(report(), "run")
    with open_sealed(url, never_load) as library:
        assert library.find(SLOT) == [stored]
        assert library.trials() == [Trial("run", report())]
        library.verify("kernel_a")


def test_the_best_of_a_slot_are_read_from_an_index_without_a_sort(path: Path) -> None:
    with open_sealed(f"sqlite:///{path}", never_load) as library:
        library.put(artefact("a"))
    connection = sqlite3.connect(path)
    plan = connection.execute(
        "EXPLAIN QUERY PLAN SELECT * FROM kernels WHERE in_features = 8 AND out_features = 8 AND stride = 1 "
        "AND layout IN ('features') AND status = 'validated' "
        "ORDER BY rank DESC, latency_ratio, kernel_id LIMIT 20"
    ).fetchall()
    connection.close()
    steps = [step[-1] for step in plan]
    assert any("USING INDEX ix_kernels_slot" in step for step in steps), steps
    assert not any("TEMP B-TREE" in step for step in steps), steps


def test_the_library_is_listed_without_importing_pytorch_or_alembic(path: Path) -> None:
    with open_sealed(f"sqlite:///{path}", never_load) as library:
        library.put(artefact("a"))
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})\n"
        "from urza_support import open_sealed\n"
        "from esper.urza import KernelQuery\n"
        f"library = open_sealed({f'sqlite:///{path}'!r}, None)\n"
        "print([kernel.name for kernel in library.query(KernelQuery())])\n"
        "print(sorted({'torch', 'alembic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["['a']", "[]"]


def test_a_number_that_no_column_can_hold_is_an_error_of_ours(path: Path) -> None:
    with (
        open_sealed(f"sqlite:///{path}", never_load) as library,
        pytest.raises(LibraryError, match="cannot look that up"),
    ):
        library.query(KernelQuery(input=2**70))
