"""``esper blueprints`` over the catalogue that ships and over files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from waiting import LONG

from esper.blueprint import load_blueprints
from esper.messages import Slot
from esper.tezzeret.budget import count_parameters
from esper.tezzeret.builder import build
from esper_cli import app, blueprints

ROOT = Path(__file__).resolve().parents[2]
Output = pytest.CaptureFixture[str]
BAD = """\
version: 1
name: bad
layouts: [features]
nodes:
  - {id: a, op: liner, inputs: [x], params: {out: out}}
  - {id: b, op: relu, inputs: [aa]}
output: b
"""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ESPER_HOME", str(tmp_path))
    monkeypatch.delenv("COLUMNS", raising=False)


def esper(capsys: Output, *args: str) -> tuple[int, str, str]:
    code = app.run(["blueprints", *args])
    out, err = capsys.readouterr()
    return code, out, err


def as_json(capsys: Output, *args: str) -> Any:
    code, out, _ = esper(capsys, *args, "--json")
    assert code == 0
    return json.loads(out)


def test_the_catalogue_is_listed_without_pytorch(tmp_path: Path) -> None:
    script = (
        "import sys; from esper_cli import app; code = app.run(['blueprints', 'ls', '--tag', 'attention']);"
        "sys.exit(code or 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=LONG)
    assert (done.returncode, done.stderr) == (0, "")
    assert "self_attention" in done.stdout
    assert "bottleneck_mlp" not in done.stdout


def test_costs_are_those_of_the_network_that_would_be_built(capsys: Output) -> None:
    listed = as_json(capsys, "ls", "--for", "channels:8:16:2", "--for", "features:12:6")["blueprints"]
    assert len(listed) == 27
    files = {record["name"]: record["file"] for record in listed}
    for record in listed:
        (blueprint,) = load_blueprints(Path(files[record["name"]]))
        for place, slot in zip(
            record["for"], (Slot("channels", 8, 16, 2), Slot("features", 12, 6)), strict=True
        ):
            assert place["slot"] == str(slot)
            if "reason" not in place:
                assert place["parameters"] == count_parameters(build(blueprint, slot))
                assert place["sizes"]["in"] == slot.in_features
                assert place["flops"] > 0
    assert any("written for channels, not for features" in p.get("reason", "") for p in listed[0]["for"])


def test_a_kernel_too_large_to_build_is_counted_all_the_same(capsys: Output) -> None:
    (record,) = as_json(
        capsys, "ls", "--for", "features:1000000:1000000", str(ROOT / "blueprints/bottleneck_mlp.yaml")
    )["blueprints"]
    assert record["for"][0]["parameters"] == 2 * 250_000 * 1_000_000 + 1_250_000


@pytest.mark.parametrize("slots", [[], ["--for", "channels:16:32:2"]])
def test_tables_fit_80_columns(slots: list[str], capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = esper(capsys, "ls", *slots)
    assert code == 0
    assert out.startswith("blueprint  ")
    assert max(map(len, out.splitlines())) <= 80
    assert ("23 of 27 fit channels 16->32/2" in out) == bool(slots)


def test_bad_files_are_told_and_the_rest_is_listed(capsys: Output, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(BAD)
    code, out, err = esper(capsys, "ls", "bad.yaml", str(ROOT / "blueprints/ghost.yaml"))
    assert code == 4
    assert "ghost" in out
    assert err == "esper: error: bad.yaml:5: bad: node 'a': unknown op 'liner'. Did you mean 'linear'?\n"


def test_show_tells_ids_sizes_and_the_canonical_document(capsys: Output) -> None:
    shown = as_json(capsys, "show", "squeeze_excite", "--for", "channels:16:24")
    (blueprint,) = load_blueprints(ROOT / "blueprints/squeeze_excite.yaml")
    assert shown["blueprint"] == json.loads(blueprint.canonical_json())
    assert (shown["blueprint_id"], shown["graph_id"]) == (blueprint.blueprint_id, blueprint.graph_id)
    assert shown["for"][0]["sizes"] == {"in": 16, "out": 24, "stride": 1, "h": 6}
    code, out, _ = esper(capsys, "show", str(ROOT / "blueprints/squeeze_excite.yaml"))
    assert code == 0
    facts, _, document = out.partition("\n\n")
    assert blueprint.graph_id in facts
    Path("again.yaml").write_text(document)
    assert load_blueprints(Path("again.yaml")) == [blueprint]


def test_an_unknown_name_is_answered_with_the_nearest(capsys: Output) -> None:
    code, _, err = esper(capsys, "show", "squeeze_exite")
    assert code == 4
    assert err == "esper: error: there is no blueprint 'squeeze_exite'. Did you mean 'squeeze_excite'?\n"


def test_lint_tells_all_and_ends_with_4(capsys: Output, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "bad.yaml").write_text(BAD)
    (tmp_path / "worse.json").write_text("[")
    code, out, err = esper(capsys, "lint", "folder", "worse.json", "folder/bad.yaml")
    assert (code, err) == (4, "")
    assert out.splitlines() == [
        "error: folder/bad.yaml:5: bad: node 'a': unknown op 'liner' (did you mean 'linear'?)",
        "error: folder/bad.yaml:6: bad: node 'b': input 'aa' is no node (did you mean 'a'?)",
        "error: worse.json:1: not JSON: Expecting value",
        "2 files, 3 errors, 0 warnings",
    ]
    code, out, _ = esper(capsys, "lint", "folder", "--json")
    assert code == 4
    found = json.loads(out)
    assert [(f["line"], f["node"], f["severity"]) for f in found] == [(5, "a", "error"), (6, "b", "error")]


def test_lint_passes_warnings_and_holds_to_slots(capsys: Output, tmp_path: Path) -> None:
    Path("a.yaml").write_text(BAD.replace("liner", "linear").replace("aa", "a"))
    code, out, _ = esper(capsys, "lint", "a.yaml")
    assert (code, out.splitlines()[-1]) == (0, "1 file, 0 errors, 1 warning")
    shipped = str(ROOT / "blueprints")
    assert esper(capsys, "lint", shipped)[:2] == (0, "27 files, 0 errors, 0 warnings\n")
    code, out, _ = esper(capsys, "lint", "--for", "tokens:7:9", f"{shipped}/time_conv.yaml")
    assert code == 0
    code, out, _ = esper(capsys, "lint", "--for", "channels:1:9", f"{shipped}/convnext.yaml")
    assert code == 4
    assert "normed" in out


@pytest.mark.parametrize("path", ["none.yaml", "empty"])
def test_lint_of_nothing_is_an_error(path: str, capsys: Output, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert esper(capsys, "lint", path)[0] == 4


def test_draw_prints_the_graph_and_writes_a_picture(capsys: Output) -> None:
    code, out, _ = esper(capsys, "draw", "global_context", "--for", "channels:16:16")
    assert code == 0
    assert "down      linear(context) out=h -> 4, pooled" in out
    assert esper(capsys, "draw", "global_context", "--svg", "a.svg")[:2] == (0, "wrote a.svg\n")
    assert Path("a.svg").read_text().startswith("<svg ")
    code, _, err = esper(capsys, "draw", "global_context", "--svg", "none/a.svg")
    assert code == 10
    assert "none/a.svg" in err


def test_a_terminal_without_unicode_gets_ascii() -> None:
    command = [sys.executable, "-m", "esper_cli", "blueprints", "draw", "squeeze_excite"]
    done = subprocess.run(
        command,
        capture_output=True,
        check=True,
        timeout=LONG,
        env={"PYTHONIOENCODING": "ascii", "COLUMNS": "80"},
    )
    text = done.stdout.decode("ascii")
    assert "| *  squeezed  global_pool(spatial)" in text
    assert "?" not in text


@pytest.mark.parametrize("layout", ["features", "tokens", "channels"])
def test_new_writes_what_lint_and_the_builder_take(layout: str, capsys: Output) -> None:
    assert esper(capsys, "new", "my_block", "--layout", layout)[0] == 0
    text = Path("my_block.yaml").read_text()
    assert text.count("#") >= 5
    assert esper(capsys, "lint", "my_block.yaml")[:2] == (0, "1 file, 0 errors, 0 warnings\n")
    (blueprint,) = load_blueprints(Path("my_block.yaml"))
    stride = 2 if layout == "channels" else 1
    build(blueprint, Slot(layout, 5, 7, stride))  # type: ignore[arg-type]
    code, _, err = esper(capsys, "new", "my_block")
    assert (code, Path("my_block.yaml").read_text()) == (10, text)
    assert err == "esper: error: my_block.yaml is there already. Choose another name\n"


@pytest.mark.parametrize(("name", "code"), [("My block", 4), ("../x", 4), ("in:\n", 4), ("", 4)])
def test_new_takes_only_names(name: str, code: int, capsys: Output, tmp_path: Path) -> None:
    assert esper(capsys, "new", name)[0] == code
    assert list(tmp_path.rglob("*.yaml")) == []


def test_files_folders_and_names_are_completed(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "some.yaml").write_text("")
    (tmp_path / "some.txt").write_text("")
    assert blueprints.complete_files("s") == ["some.yaml", "sub/"]
    assert blueprints.complete_files(f"{tmp_path}/so") == [f"{tmp_path}/some.yaml"]
    offered = blueprints._complete_files_or_names("s")
    assert {"sub/", "some.yaml", "siren", "swiglu"} <= set(offered)


def test_each_command_helps_with_an_example(capsys: Output) -> None:
    for command in ("ls", "show", "lint", "draw", "new"):
        code, out, _ = esper(capsys, command, "--help")
        assert code == 0
        assert f"Example: esper blueprints {command}" in out
