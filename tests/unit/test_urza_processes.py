"""Several processes on one library, a process killed while it writes, and a disk that fills up."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from urza_support import ENVELOPE, artefact, never_load, open_sealed
from waiting import LONG, until

from esper.errors import StorageError
from esper.messages import Slot
from esper.urza import KernelLibrary, KernelQuery
from esper.urza.database import open_database
from esper.urza.modules import LoadedModules
from esper.urza.records import KernelRecords
from esper.urza.sealing import Sealing
from esper.urza.seals import Seals
from esper.urza.sql import SqlTier
from esper.urza.tiers import MISSING, TieredStore

PREAMBLE = """
import sys, time, resource
from pathlib import Path
sys.dont_write_bytecode = True  # a limit on files would cut off what all later processes load
sys.path.insert(0, {support!r})
from urza_support import artefact, never_load, open_sealed, report
from esper.errors import EsperError, StorageError
from esper.messages import Slot
from esper.urza import KernelQuery
url, me = {url!r}, int(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
"""


def start(path: Path, number: int, code: str) -> subprocess.Popen[str]:
    """A process that has imported everything and waits for a line on its standard input."""
    preamble = PREAMBLE.format(support=str(Path(__file__).parents[1]), url=f"sqlite:///{path}")
    return subprocess.Popen(
        [sys.executable, "-c", preamble + code, str(number)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def together(path: Path, count: int, code: str) -> list[str]:
    """What ``count`` processes printed that were let go at the same moment; each must end well."""
    processes = [start(path, number, code) for number in range(count)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", process.communicate()[1]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=LONG) for process in processes]
    assert [(process.returncode, output[1]) for process, output in zip(processes, outputs, strict=True)] == [
        (0, "")
    ] * count
    return [output[0] for output in outputs]


def test_processes_that_open_a_fresh_file_at_once_make_one_library(tmp_path: Path) -> None:
    code = """
for attempt in range(5):
    time.sleep(0.4 - time.time() % 0.4)  # so that all of them go at the same moment
    library = open_sealed(f"{url}/{attempt}/kernels.db", never_load)
    library.put(artefact(str(me)))
    library.put(artefact("shared"))
    library.close()
"""
    together(tmp_path, 4, code)
    for attempt in range(5):
        with open_sealed(f"sqlite:///{tmp_path}/{attempt}/kernels.db", never_load) as library:
            found = {kernel.name for kernel in library.query(KernelQuery())}
            assert found == {"0", "1", "2", "3", "shared"}


def test_processes_put_read_and_remove_at_once_and_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "kernels.db"
    code = """
library = open_sealed(url, never_load)
for step in range(25):
    library.put(artefact(f"{me}-{step}", program=bytes([me, step]) * 2000))
    library.put(artefact(f"both-{step}"))
    library.record_trial(report(kernel_id="kernel_both-0", seed_idx=me, started_epoch=step), "run")
    library.verify(f"kernel_{me}-{step}")
    assert library.find(Slot("features", 8, 8), limit=5)
    if step % 5 == 0:
        library.put(artefact(f"{me}-gone"))
        library.remove(f"kernel_{me}-gone")
library.close()
"""
    together(path, 3, code)
    with open_sealed(f"sqlite:///{path}", never_load) as library:
        kernels = library.query(KernelQuery())
        expected = {f"{me}-{step}" for me in range(3) for step in range(25)}
        assert {kernel.name for kernel in kernels} == expected | {f"both-{step}" for step in range(25)}
        for kernel in kernels:
            library.verify(kernel.kernel_id)
        assert len(library.trials("kernel_both-0")) == 75
        assert library.find(Slot("features", 8, 8), limit=1)[0].name == "both-0"
    with closing(sqlite3.connect(path)) as connection:
        counts = connection.execute("SELECT trial_count, kept_count FROM kernels WHERE name = 'both-0'")
        assert counts.fetchall() == [(75, 75)]
        assert connection.execute("SELECT count(*) FROM blobs").fetchone() == (100 + 2,)


def test_a_process_killed_while_it_writes_leaves_whole_kernels_only(tmp_path: Path) -> None:
    path = tmp_path / "kernels.db"
    code = """
library = open_sealed(url, never_load)
for step in range(10**9):
    data = f"{me} {step} ".encode() * 20000
    library.put(artefact(f"{me}-{step}", program=data, weights=data + b"w", blueprint=f"{me} {step}"))
"""
    for number in range(3):
        process = start(path, number, code)
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
        known = number and kernels_in(path)
        until(lambda enough=known + 3: kernels_in(path) > enough)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        with open_sealed(f"sqlite:///{path}", never_load) as library:
            kernels = library.query(KernelQuery())
            assert len(kernels) > known + 3
            for kernel in kernels:
                library.verify(kernel.kernel_id)
        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute("SELECT count(*) FROM blobs").fetchone() == (3 * len(kernels),)


def kernels_in(path: Path) -> int:
    if not path.exists():
        return 0
    with closing(sqlite3.connect(path)) as connection:
        try:
            count: int = connection.execute("SELECT count(*) FROM kernels").fetchone()[0]
        except sqlite3.OperationalError:  # not made yet
            return 0
    return count


def test_a_full_database_refuses_the_kernel_whole_and_works_when_there_is_room(tmp_path: Path) -> None:
    database = open_database(f"sqlite:///{tmp_path}/kernels.db")
    seals = Seals(ENVELOPE)
    records, sealing = KernelRecords(database, seals), Sealing(database, seals)
    store, modules = TieredStore([SqlTier(database)]), LoadedModules(0)
    with KernelLibrary(records, store, never_load, sealing, modules=modules) as library:
        library.put(artefact("before"))
        with database.reading() as connection:
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
            connection.exec_driver_sql(f"PRAGMA max_page_count = {pages + 5}")
        large = artefact("large", program=bytes(100_000))
        with pytest.raises(StorageError, match="no space left to store in"):
            library.put(large)
        assert not library.contains("kernel_large")
        assert records.blob(large.metadata.program_digest) is MISSING
        assert records.blob(large.metadata.weights_digest) is not MISSING  # that of "before"
        library.verify("kernel_before")
        with database.reading() as connection:
            connection.exec_driver_sql("PRAGMA max_page_count = 1000000")
        library.put(large)
        library.verify("kernel_large")


def test_a_file_that_cannot_grow_refuses_the_kernel_whole(tmp_path: Path) -> None:
    path = tmp_path / "kernels.db"
    code = """
library = open_sealed(url, never_load)
library.put(artefact("before"))
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
try:
    library.put(artefact("large", program=bytes(1_000_000)))
except StorageError as error:
    print(error)
print(library.contains("kernel_large"))
library.verify("kernel_before")
library.put(artefact("after"))
library.close()
"""
    (output,) = together(path, 1, code)
    message, contained = output.splitlines()
    assert str(path) in message
    assert contained == "False"
    with open_sealed(f"sqlite:///{path}", never_load) as library:
        assert [kernel.name for kernel in library.query(KernelQuery(sort="name"))] == ["after", "before"]
        library.verify("kernel_after")


def test_a_disk_full_from_the_start_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "kernels.db"
    code = """
resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, 5_000))
try:
    open_sealed(url, never_load)
except StorageError as error:
    print(error)
"""
    (output,) = together(path, 1, code)
    assert str(path) in output
    with open_sealed(f"sqlite:///{path}", never_load) as library:
        library.put(artefact("later"))
