"""``esper prove`` through the real command: what it prints, and how it is interrupted."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import forked
import pytest
from waiting import until

TINY = ("+experiment=smoke", "model.hidden=[8,8]", "tamiyo=widen", "tamiyo.at=[0.3]", "prove.random=false")
SHORT = ("tolaria.epochs=1", "seeds=2", "mode=rescue")

SAVED = "*/checkpoints/step-*/manifest.json"


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ESPER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("COLUMNS", raising=False)
    return tmp_path


def alive(group: int) -> list[int]:
    """The processes of a group that have not ended."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, of = stat.read_text().rpartition(")")[2].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(of) == group and state not in "ZX":
            found.append(int(stat.parent.name))
    return found


def test_it_prints_its_proof_as_json_and_tells_its_progress_on_stderr(workplace: Path) -> None:
    done = forked.esper("prove", *TINY, *SHORT, "--json")
    assert done.returncode == 0, done.stderr
    proof = json.loads(done.stdout)
    assert [arm["arm"] for arm in proof["arms"]] == ["base", "train_on", "grown", "large"]
    folder = Path("experiments/smoke_rescue")
    assert proof["files"] == [str(folder / name) for name in ("proof.json", "report.md", "plot.png")]
    assert all((workplace / file).is_file() for file in proof["files"])
    lines = done.stderr.splitlines()
    assert lines[0] == "run 1 of 8: base, seed 100"
    assert lines[7].startswith("run 8 of 8: large, from scratch, seed 101, about ")
    assert len(lines) == 8
    assert proof["command"].startswith("esper prove +experiment=smoke")


@pytest.mark.parametrize(("jobs", "sent", "code"), [(2, signal.SIGINT, 130), (1, signal.SIGTERM, 143)])
def test_ctrl_c_and_sigterm_end_all_of_it_and_say_how_to_go_on(
    workplace: Path, jobs: int, sent: signal.Signals, code: int
) -> None:
    given = (*TINY, "tolaria.epochs=5000", "seeds=2", f"prove.jobs={jobs}")
    with forked.command("prove", *given, before=os.setsid) as process:
        journals = workplace / "experiments" / "smoke_proof" / "runs"

        def all_saved() -> bool:
            assert process.poll() is None
            return len({path.parents[2] for path in journals.glob(SAVED)}) == jobs

        until(all_saved)
        assert len(alive(process.pid)) >= (1 if jobs == 1 else 3)
        if sent is signal.SIGINT:
            os.killpg(process.pid, sent)  # as a terminal does
        else:
            process.send(sent)
        done = process.wait()
    assert (done.returncode, done.stdout) == (code, "")
    *progress, last = done.stderr.splitlines()
    assert last.startswith(
        "esper: interrupted; 0 finished runs are kept; go on with: esper prove +experiment"
    )
    assert [line.partition(":")[0] for line in progress] == [f"run {n} of 20" for n in range(1, jobs + 1)]
    until(lambda: alive(process.pid) == [])  # what watches semaphores ends after their last user
    said = [path.read_text().splitlines()[-1] for path in journals.glob("*/journal.jsonl")]
    assert [json.loads(line)["event"] for line in said] == ["run_interrupted"] * jobs
