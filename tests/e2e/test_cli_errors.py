"""Bad input, through the real command: one clear line, the documented exit code, never a traceback."""

import gzip
import os
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import forked
import pytest
import small_disk

Esper = Callable[..., "subprocess.CompletedProcess[str]"]

SMOKE = ("train", "+experiment=smoke", "tolaria.epochs=1", "tamiyo=never", "urza=memory")


@pytest.fixture
def esper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Esper:
    monkeypatch.setenv("ESPER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "home").mkdir()

    return partial(forked.esper, cwd=tmp_path)


def assert_refused(done: "subprocess.CompletedProcess[str]", code: int, *parts: str) -> None:
    assert done.returncode == code, done.stderr
    *_, line = done.stderr.splitlines()
    assert line.startswith("esper: error: ")
    assert "Traceback" not in done.stderr
    assert "Error executing job" not in done.stderr
    for part in parts:
        assert part in line


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["train", "+experiment=resnt"], ["unknown experiment 'resnt'", "Did you mean resnet?"]),
        (["train", "tolaria.epoch=3"], ["unknown key 'tolaria.epoch'", "Did you mean tolaria.epochs"]),
        (["train", "tolaria.epochs=many"], ["tolaria.epochs must be a whole number, not 'many'"]),
        (["train", "data=idx"], ["data.root must be given", "Add data.root=VALUE"]),
    ],
)
def test_a_wrong_configuration(esper: Esper, args: list[str], parts: list[str]) -> None:
    done = esper(*args)
    assert_refused(done, 2, *parts)
    assert done.stderr.count("\n") == 1


def test_a_missing_data_folder(esper: Esper, tmp_path: Path) -> None:
    assert_refused(esper(*SMOKE, "data=idx", "data.root=nowhere"), 3, "nowhere")
    assert not list(tmp_path.glob("runs/2*"))


def test_a_file_where_runs_should_go(esper: Esper, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert_refused(esper(*SMOKE, "runs=file/runs"), 10, "file/runs: Not a directory")


def test_a_truncated_data_file(esper: Esper, tmp_path: Path) -> None:
    images = b"\0\0\x08\x03" + (100).to_bytes(4) + (28).to_bytes(4) * 2 + bytes(1000)
    for split in ("train", "t10k"):
        (tmp_path / f"{split}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        labels = b"\0\0\x08\x01" + (100).to_bytes(4) + bytes(100)
        (tmp_path / f"{split}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    assert_refused(esper(*SMOKE, "data=idx", f"data.root={tmp_path}"), 3, "train-images-idx3-ubyte.gz")


def test_a_library_that_is_no_database(esper: Esper, tmp_path: Path) -> None:
    (tmp_path / "home/kernels.db").write_bytes(b"not a database" * 100)
    assert_refused(esper("kernels", "ls"), 6, "kernels.db")


def test_a_database_of_something_else(esper: Esper, tmp_path: Path) -> None:
    import sqlite3

    with sqlite3.connect(tmp_path / "home/kernels.db") as database:
        database.execute("create table recipes (id integer)")
    database.close()
    assert_refused(esper("kernels", "ls"), 6, "kernels.db")


def test_a_kernel_that_does_not_exist(esper: Esper) -> None:
    assert_refused(esper("kernels", "show", "kernel_nope"), 6, "no kernel 'kernel_nope'", "esper kernels ls")


def test_a_port_in_use(esper: Esper) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert_refused(esper("serve-metrics", "--port", port), 11, f"port {port} on 127.0.0.1 is in use")


def blueprint(name: str, nodes: str, output: str = "a") -> str:
    return (
        f"version: 1\nname: {name}\ntitle: T\nwhen: W\npaper: P\ntags: [linear]\nlayouts: [features]\n"
        f"nodes:\n{nodes}\noutput: {output}\n"
    )


BLUEPRINTS = {
    "good.yaml": blueprint("good", "  - {id: a, op: linear, inputs: [x], params: {out: out}}"),
    "op.yaml": blueprint("op", "  - {id: a, op: linaer, inputs: [x], params: {out: out}}"),
    "cycle.yaml": blueprint(
        "cycle",
        "  - {id: a, op: linear, inputs: [b], params: {out: out}}\n  - {id: b, op: relu, inputs: [a]}",
    ),
    "shape.yaml": blueprint("shape", "  - {id: a, op: linear, inputs: [x], params: {out: out + 1}}"),
    "huge.yaml": blueprint(
        "huge",
        "  - {id: h, op: linear, inputs: [x], params: {out: 1000000}}\n"
        "  - {id: i, op: linear, inputs: [h], params: {out: 1000000}}\n"
        "  - {id: a, op: linear, inputs: [i], params: {out: out}}",
    ),
    "alias.yaml": "version: &v 1\nname: alias\ntitle: *v\n",
    "deep.yaml": "[" * 100_000,
    "deep.json": "[" * 100_000,
}
REFUSALS = {
    "op.yaml": "unknown op 'linaer' (did you mean 'linear'?)",
    "cycle.yaml": "a cycle",
    "shape.yaml": "the output has",
    "alias.yaml": "anchors are not read",
    "deep.yaml": "nested deeper",
    "deep.json": "nested deeper",
}


def test_bad_blueprints_are_refused_and_do_not_stop_the_good_one(esper: Esper, tmp_path: Path) -> None:
    for name, text in BLUEPRINTS.items():
        path = tmp_path / "bp" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    done = esper("compile", "bp", "--shape", "features:8:8")
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    for name, reason in REFUSALS.items():
        (line,) = [line for line in done.stderr.splitlines() if f"bp/{name}" in line]
        assert reason in line
    assert "huge" in done.stdout + done.stderr
    assert "1 kernels compiled" in done.stdout
    assert_refused(esper("compile", "bp/good.yaml", "nowhere"), 4, "there is no nowhere")
    (tmp_path / "bare").mkdir()
    bare = esper("compile", "bare")
    assert (bare.returncode, bare.stderr) == (1, "refused: bare: no blueprints in this folder\n")
    again = esper("compile", "bp/good.yaml", "--shape", "features:8:8")
    assert again.returncode == 0
    assert again.stdout == "Nothing to compile: 1 already in the library\n"


def test_a_disk_that_takes_no_more(esper: Esper) -> None:
    """A limit on the size of files is met in the same place as a full disk, and needs no rights."""
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (8192, 8192))
    assert_refused(esper(*SMOKE, before=limit), 10, "File too large")


@pytest.mark.skipif(
    shutil.which("unshare") is None
    or subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode != 0,
    reason="needs a mount namespace of its own",
)
def test_a_full_disk(esper: Esper, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    done = esper(*SMOKE, before=partial(small_disk.mount, "runs"))
    assert_refused(done, 10, "No space left on device", "Free some space")


def test_a_reader_that_leaves_early_is_no_error(tmp_path: Path) -> None:
    command = f"'{sys.executable}' -m esper_cli train --cfg job | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False, env=os.environ
    )
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] in ("0", "141")


def test_streams_that_are_closed_take_what_is_written_to_nowhere(tmp_path: Path) -> None:
    esper = f"'{sys.executable}' -m esper_cli"
    command = f"{esper} --version >&-; echo $?; {esper} unheard-of 2>&-; echo $?"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.stdout.split(), done.stderr) == (["0", "2"], "")
