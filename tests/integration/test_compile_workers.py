"""``esper compile`` with workers: the same library, interrupted, limited, and tried again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import forked
import pytest
from urza_support import open_sealed
from waiting import until

from esper.assembly.kernels import fill_library, missing_kernels
from esper.assembly.workers import build_workers
from esper.errors import ConfigError
from esper.karn.catalogue import fitting, load_catalogue
from esper.messages import KernelMetadata, Slot
from esper.tezzeret.pipeline import Pipeline
from esper.tezzeret.torchscript import TorchScriptTarget
from esper_cli.config import compose

BLUEPRINTS = Path(__file__).parents[2] / "blueprints"
WORKERS = ("--workers", "2", "tezzeret.nice=0")
SLOT = Slot("channels", 4, 6, 2)
TARGET = TorchScriptTarget()


def load(metadata: KernelMetadata, program: bytes) -> Any:
    return TARGET.load(program, metadata.device)


def processes(word: str) -> list[int]:
    """Processes of this machine whose environment holds ``word`` and that serve workers, or are some."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if (
                b"tezzeret.forkserver" in (path / "cmdline").read_bytes()
                and word.encode() in (path / "environ").read_bytes()
            ):
                found.append(int(path.name))
        except OSError:
            continue  # it has ended
    return found


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ESPER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def esper(*args: str) -> subprocess.CompletedProcess[str]:
    return forked.esper(*args)


def test_training_fills_its_library_with_workers_in_order(tmp_path: Path) -> None:
    names = ("swiglu", "low_rank", "squeeze_excite", "convnext")
    paths = [BLUEPRINTS / f"{name}.yaml" for name in names]
    cfg = compose([f"karn.paths=[{','.join(map(str, paths))}]", "tezzeret.workers=2", "tezzeret.nice=0"])
    told: list[tuple[str, dict[str, Any]]] = []
    pipeline = Pipeline(TARGET)
    with open_sealed(f"sqlite:///{tmp_path}/kernels.db", load) as library:
        for _ in range(2):  # the second time there is nothing to do
            listeners = [lambda event, fields: told.append((event, dict(fields)))]
            missing = missing_kernels(cfg, library, pipeline, [SLOT], listeners)
            fill_library(cfg, library, pipeline, missing, listeners)
        wanted = [each.name for each in fitting(load_catalogue(paths).blueprints, SLOT)]
        assert [record.blueprint_name for record in library.compilations()] == wanted
        assert [(event, fields["record"].blueprint_name) for event, fields in told] == [
            ("compile", name) for name in wanted
        ]
        assert [fields["done"] for _, fields in told] == [1, 2, 3, 4]
        for record in library.compilations():
            assert record.status == "compiled"
            assert library.fetch(str(record.kernel_id)).module is not None


def test_workers_and_a_gpu_do_not_go_together() -> None:
    cfg = compose(["tezzeret.workers=1", "tezzeret.device=cuda"])
    with pytest.raises(ConfigError, match="compile for the CPU"):
        build_workers(cfg, pytest.fail)
    assert build_workers(compose([]), pytest.fail) is None


def test_what_failed_is_tried_again(home: Path) -> None:
    files = [str(BLUEPRINTS / f"{name}.yaml") for name in ("swiglu", "low_rank")]
    shapes = ("--shape", "features:8:8", "--shape", "features:8:12")
    limit = "tezzeret.limits.wall_seconds=0.001"
    first = esper("compile", *files, *shapes, *WORKERS, "--json", limit)
    assert first.returncode == 1
    failed = json.loads(first.stdout)["failed"]
    assert len(failed) == 4
    assert all("tezzeret.limits.wall_seconds" in record["reason"] for record in failed)
    assert first.stderr.count("cannot be compiled") == len(failed)  # one alert each

    again = esper("compile", files[0], "--failed", "--json")
    assert again.returncode == 0, again.stderr
    report = json.loads(again.stdout)
    assert {record["blueprint_name"] for record in report["compiled"]} == {"swiglu"}
    assert len(report["compiled"]) + len(report["blueprint_not_found"]) == len(failed)

    rest = json.loads(esper("compile", "--failed", f"karn.paths=[{BLUEPRINTS}]", "--json").stdout)
    assert len(rest["compiled"]) == len(report["blueprint_not_found"])
    assert rest["already_present"] == len(report["compiled"])
    assert "--shape" in esper("compile", "--failed", "--shape", "features:8:8").stderr


def test_ctrl_c_ends_every_worker_and_keeps_what_was_stored(home: Path) -> None:
    with forked.command("compile", str(BLUEPRINTS), *WORKERS, before=os.setsid) as process:
        until(lambda: process.said[1].count("compile ") >= 3, lambda: process.said)
        assert processes(str(home))
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the whole group
        done = process.wait()
    assert done.returncode == 130, done.stderr  # one that went on to its end would have said 0
    assert "Traceback" not in done.stderr
    assert processes(str(home)) == []

    listed = json.loads(esper("kernels", "ls", "--json").stdout)
    assert len(listed) >= 3
    verified = esper("kernels", "verify", "--all")
    assert verified.returncode == 0, verified.stderr
