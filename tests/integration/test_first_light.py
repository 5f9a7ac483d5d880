"""A library that first light made: today's code keeps every kernel of it, trial and compilation."""

from __future__ import annotations

import io
import shutil
import sqlite3
import warnings
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from urza_support import artefact

from esper.assembly.storage import build_library
from esper.errors import CorruptKernel, LibraryError
from esper.urza import KernelLibrary, KernelQuery
from esper_cli import app
from esper_cli.config import compose

MADE = Path(__file__).parents[1] / "data" / "first_light.db"
INPUTS = {"features": (5, -1), "tokens": (2, 3, -1), "channels": (2, -1, 6, 6)}
"""Of each layout; -1 is the number of features."""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With a copy of that library, and no keys."""
    monkeypatch.setenv("ESPER_HOME", str(tmp_path))
    shutil.copy(MADE, tmp_path / "kernels.db")
    return tmp_path


def read(statement: str) -> list[dict[str, Any]]:
    """Rows of the file as it was made, without any code of Esper."""
    with closing(sqlite3.connect(f"file:{MADE}?mode=ro&immutable=1", uri=True)) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute(statement)]


def programs() -> dict[str, bytes]:
    rows = read("SELECT kernel_id, data FROM kernels JOIN blobs ON digest = program_digest")
    return {row["kernel_id"]: row["data"] for row in rows}


def output(module: nn.Module, row: dict[str, Any]) -> torch.Tensor:
    """What ``module`` computes in evaluation from the same numbers each time."""
    features = row["in_features"]
    shape = [features if size == -1 else size for size in INPUTS[row["layout"]]]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        result: torch.Tensor = module.eval()(x)
    return result


def holds_everything(library: KernelLibrary) -> None:
    rows, at_rest = read("SELECT * FROM kernels"), programs()
    assert len(rows) == len(at_rest) == 4
    assert {kernel.kernel_id for kernel in library.query(KernelQuery())} == at_rest.keys()
    for row in rows:
        kernel_id = row["kernel_id"]
        library.verify(kernel_id)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            kernel = library.fetch(kernel_id)
            original = torch.jit.load(io.BytesIO(at_rest[kernel_id]))
        assert torch.equal(output(kernel.module, row), output(original, row))
        assert output(kernel.module, row).abs().max() > 0
        assert library.artefact(kernel_id).program == at_rest[kernel_id]
        assert (kernel.metadata.name, kernel.metadata.blueprint_id) == (row["name"], row["blueprint_id"])
        assert kernel.metadata.performance_score == row["performance_score"]
        tags = read(f"SELECT tag FROM kernel_tags WHERE kernel_id = '{kernel_id}' ORDER BY position")
        assert list(kernel.metadata.tags) == [tag["tag"] for tag in tags] != []
    trials = [
        (each.run_id, each.report.task, each.report.kernel_id, each.report.gain) for each in library.trials()
    ]
    names = ("run_id", "task", "kernel_id", "gain")
    assert trials == [tuple(row[name] for name in names) for row in read("SELECT * FROM trials ORDER BY id")]
    assert len(trials) == 2
    compilations = [(each.blueprint_id, each.status, each.seconds) for each in library.compilations()]
    rows = read("SELECT * FROM compilations ORDER BY id")
    assert compilations == [(row["blueprint_id"], row["status"], row["seconds"]) for row in rows]
    assert len(compilations) == 4


def at_rest_now(home: Path) -> Iterator[bytes]:
    with closing(sqlite3.connect(home / "kernels.db")) as connection:
        yield from (row[0] for row in connection.execute("SELECT data FROM blobs"))


def test_with_keys_made_just_now_it_is_sealed_and_whole(home: Path) -> None:
    told: list[str] = []
    for _ in range(2):
        with build_library(compose([]), on_key_made=told.append) as library:
            holds_everything(library)
    assert len(told) == 1
    assert all(data.startswith(b"ESPRSEAL") for data in at_rest_now(home))


def test_with_keys_that_were_there_before_it_is_refused_until_it_is_adopted(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with build_library(compose([f"urza.url=sqlite:///{home}/other.db"])) as other:
        other.put(artefact("a"))  # and there are keys
    before = sorted(at_rest_now(home))
    with pytest.raises(LibraryError, match="not sealed") as caught:
        build_library(compose([]))
    assert not isinstance(caught.value, CorruptKernel)
    assert "esper keys adopt" in (caught.value.hint or "")
    assert sorted(at_rest_now(home)) == before
    assert app.run(["kernels", "ls"]) != 0
    assert "esper keys adopt" in capsys.readouterr().err
    assert app.run(["keys", "adopt"]) == 0
    assert capsys.readouterr().out == "sealed 4 kernels\n"
    with build_library(compose([])) as library:
        holds_everything(library)
    assert all(data.startswith(b"ESPRSEAL") for data in at_rest_now(home))
