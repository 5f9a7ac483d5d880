"""Worker processes: kernels as they are made here, limits that hold, deaths that harm one job only."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import forked
import pytest
import tezzeret_support as deeds
from forbidding import forbid_filters
from tezzeret_support import MLP, SLOT, Hostile, workers
from waiting import until

from esper.errors import CompilationError, ConfigError
from esper.tezzeret.forkserver import SPARE
from esper.tezzeret.jobs import CompileJob, Outcome, understand
from esper.tezzeret.limits import Limits
from esper.tezzeret.pipeline import STAGES, Pipeline
from esper.tezzeret.pool import WorkerPool
from esper.tezzeret.torchscript import TorchScriptTarget

GOOD = CompileJob(Pipeline(TorchScriptTarget()), MLP, SLOT)
LIMITS = Limits(wall_seconds=200, cpu_seconds=10, memory_mb=256)
NICE = 1


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    """One for all: its server takes seconds to start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ESPER_SECRET", "for nobody")
        with WorkerPool(2, LIMITS, nice=NICE, tries=1, on_unfiltered=pytest.fail) as pool:
            pool.start()
            yield pool


def hostile(deed: Any, *arguments: Any) -> CompileJob:
    return replace(GOOD, pipeline=Pipeline(Hostile(deed, *arguments)))


def failure(pool: WorkerPool, deed: Any, *arguments: Any) -> str:
    """Why the job that does ``deed`` failed; afterwards the pool is as good as it was."""
    outcome = pool.submit(hostile(deed, *arguments)).result()
    assert outcome.artefact is None
    assert outcome.stage == "compile"
    assert pool.submit(GOOD).result().artefact is not None
    assert outcome.reason is not None
    return outcome.reason


def asleep(pool: WorkerPool) -> tuple[Future[Outcome], int]:
    """A job that does not end, alone in ``pool``, and the process that does it."""
    until(lambda: workers() == [])  # one that has told all may need a moment
    return pool.submit(hostile(deeds.sleep)), until(workers)[0]


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_a_worker_makes_the_kernel_that_is_made_here(pool: WorkerPool) -> None:
    there = pool.submit(GOOD).result()
    here = GOOD.pipeline.compile(MLP, SLOT)
    assert there.reason is None
    assert there.stage == STAGES[-1]
    assert there.artefact is not None
    assert (there.artefact.blueprint, there.artefact.weights) == (here.blueprint, here.weights)
    measured = ("compilation_time", "latency_ms", "latency_ratio", "created_at")
    measured += ("program_digest", "program_bytes")  # an archive holds names that count what came before
    same = {name: getattr(here.metadata, name) for name in measured}
    assert replace(there.artefact.metadata, **same) == here.metadata
    assert GOOD.pipeline.target.load(there.artefact.program).state_dict().keys()


def test_a_failure_keeps_its_stage_and_reason(pool: WorkerPool) -> None:
    outcome = pool.submit(replace(GOOD, slot=replace(SLOT, in_features=10**6))).result()
    assert outcome.stage == "build"
    assert "bottleneck_mlp for features 1000000->6: " in str(outcome.reason)
    assert "the budget is" in str(outcome.reason)


def test_cpu_time_is_limited(pool: WorkerPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_limits", replace(LIMITS, cpu_seconds=1))
    for deed in (deeds.spin, deeds.spin_on):
        assert "1 s of CPU time (tezzeret.limits.cpu_seconds)" in failure(pool, deed)


def test_wall_time_is_limited(pool: WorkerPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_limits", replace(LIMITS, wall_seconds=2))
    outcome = pool.submit(hostile(deeds.sleep)).result()
    assert (outcome.stage, outcome.reason) == (
        "compile",
        "over its limit of 2 s (tezzeret.limits.wall_seconds)",
    )
    until(lambda: workers() == [])


@pytest.mark.parametrize("deed", [deeds.hoard_objects, deeds.hoard_tensors])
def test_memory_is_limited(pool: WorkerPool, monkeypatch: pytest.MonkeyPatch, deed: Any) -> None:
    monkeypatch.setattr(pool, "_tries", 3)
    monkeypatch.setattr(pool, "_on_lost", pytest.fail)  # it is begun once
    assert "256 MiB of memory (tezzeret.limits.memory_mb)" in failure(pool, deed)


def test_no_file_is_read_or_written(pool: WorkerPool, tmp_path: Path) -> None:
    secret, made = tmp_path / "secret", tmp_path / "made"
    secret.write_text("secret")
    for reason in (failure(pool, deeds.read, str(secret)), failure(pool, deeds.write, str(made))):
        assert "may open nothing" in reason
        assert "Operation not permitted" in reason
    assert not made.exists()


def test_nothing_is_connected_to(pool: WorkerPool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        assert "connect to nothing" in failure(pool, deeds.connect, server.getsockname()[1])
        with pytest.raises(TimeoutError):
            server.accept()


def test_nothing_is_started_and_nobody_is_killed(pool: WorkerPool) -> None:
    for deed in (deeds.fork_for_ever, deeds.start_thread):
        assert failure(pool, deed)
        until(lambda: workers() == [])
    assert "Operation not permitted" in failure(pool, deeds.signal_parent, os.getpid())


def test_a_worker_that_dies_fails_its_one_job(pool: WorkerPool) -> None:
    assert failure(pool, deeds.crash) == "its worker ended with SIGSEGV"
    dying, worker = asleep(pool)
    beside = pool.submit(GOOD)
    assert beside.result().artefact is not None
    os.kill(worker, signal.SIGKILL)
    assert str(dying.result().reason).startswith("its worker was killed (SIGKILL)")


def test_a_job_whose_worker_is_killed_is_begun_again_a_number_of_times(
    pool: WorkerPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(pool, "_tries", 3)
    monkeypatch.setattr(pool, "_on_lost", told.append)
    dying, worker = asleep(pool)
    killed = set()
    while not dying.done():
        killed.add(worker)
        os.kill(worker, signal.SIGKILL)
        worker = until(lambda: dying.done() or next((pid for pid in workers() if pid not in killed), 0))
    outcome = dying.result()
    assert len(killed) == 3
    why = r": its worker was killed \(SIGKILL\) when it held \d\d+ MiB, perhaps for want of memory .*"
    for line, which in zip(told, ("2 of 3", "3 of 3"), strict=True):
        assert re.fullmatch(rf"bottleneck_mlp for features 8->6 is begun again \({which}\){why}", line)
    assert (outcome.stage, outcome.lost) == ("queue", False)
    assert re.fullmatch(f"it was begun 3 times, .* without an outcome{why}", str(outcome.reason))
    sleeping = pool.submit(hostile(deeds.sleep, 0.5))
    os.kill(until(workers)[0], signal.SIGKILL)
    assert sleeping.result().artefact is not None  # the second time


def test_a_worker_that_has_told_all_is_not_waited_for_and_does_not_stay(pool: WorkerPool) -> None:
    assert pool.submit(hostile(deeds.tell_and_stay)).result().reason == "told"
    until(lambda: workers() == [])


def test_the_next_job_finds_a_process_that_waits_for_it(pool: WorkerPool) -> None:
    for _ in range(2):
        waiting = until(lambda: workers(SPARE))
        sleeping, worker = asleep(pool)
        assert [worker] == waiting  # and that one does no other
        os.kill(worker, signal.SIGKILL)
        assert sleeping.result().lost
    os.kill(until(lambda: workers(SPARE))[0], signal.SIGKILL)
    until(lambda: workers(SPARE) == [])
    assert pool.submit(GOOD).result().artefact is not None


def test_workers_give_way_to_others_and_do_not_see_the_environment(pool: WorkerPool) -> None:
    sleeping, worker = asleep(pool)
    assert os.getpriority(os.PRIO_PROCESS, worker) == os.getpriority(os.PRIO_PROCESS, 0) + NICE
    assert b"ESPER_SECRET" not in Path(f"/proc/{worker}/environ").read_bytes()
    os.kill(worker, signal.SIGKILL)
    assert sleeping.result().lost


def test_hot_jobs_go_first_and_what_is_asked_for_twice_is_done_once(pool: WorkerPool) -> None:
    done: list[str] = []
    until(lambda: workers() == [])
    sleeping = [pool.submit(hostile(deeds.sleep)) for _ in range(2)]
    both = until(lambda: len(found := workers()) == 2 and found)
    sweep = [replace(GOOD, slot=replace(SLOT, out_features=size)) for size in (4, 5, 6)]
    futures = {
        "first": pool.submit(sweep[0]),
        "again": pool.submit(sweep[1]),
        "last": pool.submit(sweep[2]),
        "hot": pool.submit(replace(GOOD, slot=replace(SLOT, out_features=7)), hot=True),
    }
    for name, future in futures.items():
        future.add_done_callback(lambda _, name=name: done.append(name))
    assert pool.submit(sweep[0]) is futures["first"]
    assert pool.submit(sweep[2], hot=True) is futures["last"]
    os.kill(both[0], signal.SIGKILL)  # which leaves one worker for the rest
    assert all(future.result().artefact for future in futures.values())
    assert done == ["hot", "last", "first", "again"]
    assert pool.submit(sweep[0]) is not futures["first"]  # that one is over
    os.kill(both[1], signal.SIGKILL)
    assert all(future.result().lost for future in sleeping)


def test_closing_ends_what_is_under_way() -> None:
    pool = WorkerPool(2, LIMITS, nice=0)
    pool.start()
    under_way = [pool.submit(hostile(deeds.sleep)) for _ in range(4)]
    both = until(lambda: len(found := workers()) == 2 and found)
    server = parent(both[0])
    os.kill(server, signal.SIGSTOP)  # it does as little as one that is busy
    pool.close()
    assert not Path(f"/proc/{server}").exists()
    until(lambda: not any(Path(f"/proc/{worker}").exists() for worker in both))
    assert [future.cancelled() for future in under_way] == [False, False, True, True]
    for future in under_way[:2]:
        assert future.result().artefact is None
        assert "limit" not in str(future.result().reason)  # nor had they woken
    with pytest.raises(CompilationError, match="is closed"):
        pool.submit(GOOD)


def test_closing_does_not_wait_for_a_server_that_starts() -> None:
    with WorkerPool(1) as pool:
        future = pool.submit(GOOD)
        until(future.running)
    with pytest.raises(CompilationError):
        future.result()


def test_a_server_that_dies_is_replaced(pool: WorkerPool) -> None:
    dying, worker = asleep(pool)
    until(lambda: "Seccomp:\t2" in Path(f"/proc/{worker}/status").read_text())  # it is at its deed
    time.sleep(0.5)
    os.kill(parent(worker), signal.SIGKILL)
    assert "forked from has ended" in str(dying.result().reason)
    until(lambda: not Path(f"/proc/{worker}").exists())
    assert pool.submit(GOOD).result().artefact is not None


def test_a_server_that_cannot_start_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('no PyTorch here')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with WorkerPool(1) as pool, pytest.raises(CompilationError, match="no PyTorch here"):
        pool.submit(GOOD).result()


def unfiltered() -> None:
    """What a process tells of its workers where system calls cannot be filtered."""
    forbid_filters()
    with WorkerPool(1, LIMITS, nice=0, on_unfiltered=lambda why: print("told:", why)) as pool:
        print(failure(pool, deeds.read, "/etc/hostname"))
        print(failure(pool, deeds.connect, 1))


def test_where_the_filter_is_refused_that_is_told_and_resource_limits_stand() -> None:
    done = forked.call(unfiltered)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "told: the kernel refuses to filter system calls: Operation not permitted"
    assert len(lines) == 3
    assert all("Too many open files" in line for line in lines[1:])


@pytest.mark.parametrize(
    "answer",
    [b"[]\n", b'{"done": 3, "seconds": 1}\n', b'{"seconds": 0, "done": [{}, [9, 9, 9]]}\nno', b"{}\n"],
)
def test_an_answer_that_is_none_is_an_error(answer: bytes) -> None:
    with pytest.raises((ValueError, TypeError, KeyError, AttributeError)):
        understand(answer)


def test_an_answer_that_breaks_off_gives_the_stage() -> None:
    told = b'{"unfiltered": null, "seconds": 0}\n{"stage": "validate", "seconds": 0.5}\n{"rea'
    assert understand(told) == (None, "validate", None)
    assert understand(told[:-5] + b'{"reason": "no", "seconds": 1}\n')[0] == Outcome("validate", 1.0, "no")


def test_settings_out_of_bounds() -> None:
    with pytest.raises(ConfigError, match=r"tezzeret\.nice"):
        WorkerPool(1, nice=20)
    with pytest.raises(ConfigError, match="between 1 and 256"):
        WorkerPool(0)
    with pytest.raises(ConfigError, match=r"tezzeret\.limits\.memory_mb"):
        Limits(memory_mb=0)
