"""Lint tells every mistake in its place, and what is odd; what it passes can be loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from esper.blueprint import load_blueprints
from esper.blueprint.lint import MOST, Linter
from esper.blueprint.reading import Finding
from esper.errors import BlueprintError
from esper.messages import Slot

ROOT = Path(__file__).resolve().parents[2]
GOOD = """\
version: 1
name: small
title: Small
when: Always.
paper: None
layouts: [features]
sizes:
  h: ceil(in / 4)
nodes:
  - {id: down, op: linear, inputs: [x], params: {out: h}}
  - {id: up, op: linear, inputs: [down], params: {out: out}}
output: up
"""
BAD = """\
version: 1
name: small
layouts: [features]
sizes:
  h: ceil(in / 4
  q: on + 1
nodes:
  - id: down
    op: linear
    inputs: [x]
    params: {ot: h, out: hh, bias: 3}
  - {id: bend, op: gelo, inputs: [down]}
  - {id: up, op: conv2d, inputs: [bent], params: {out: out}}
  - {id: up, op: add, inputs: [bend]}
output: upp
tilte: a
"""


def lint(tmp_path: Path, text: str, *slots: Slot) -> list[Finding]:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    return Linter(slots).read(path)


def told(findings: list[Finding]) -> list[tuple[str, int | None, str, str, str | None]]:
    return [(f.severity, f.line, f.node, f.message, f.hint) for f in findings]


def test_every_mistake_is_told_once_on_its_line_with_the_nearest_word(tmp_path: Path) -> None:
    found = lint(tmp_path, BAD)
    assert [(line, node, message, hint) for _, line, node, message, hint in told(found)] == [
        (5, "", "size 'h': the expression 'ceil(in / 4' lacks a ')'", found[0].hint),
        (6, "", "size 'q': unknown name 'on'", "did you mean 'in'?"),
        (11, "down", "linear has no parameter 'ot'", "did you mean 'out'?"),
        (11, "down", "parameter 'bias': 3 is neither true nor false", None),
        (11, "down", "parameter 'out': unknown name 'hh'", "did you mean 'h'?"),
        (12, "bend", "unknown op 'gelo'", "did you mean 'gelu'?"),
        (13, "up", "input 'bent' is no node", "did you mean 'bend'?"),
        (13, "up", "conv2d does not work on features", "it works on channels"),
        (14, "up", "add takes 2 to 8 inputs, not 1", None),
        (14, "up", "two nodes have the id 'up'", None),
        (15, "", "output 'upp' is no node", "did you mean 'up'?"),
        (16, "", "unknown field 'tilte'", "did you mean 'title'?"),
    ]
    assert {f.severity for f in found} == {"error"}
    assert str(found[-1]) == f"{tmp_path}/a.yaml:16: small: unknown field 'tilte'"


def test_what_ships_is_clean() -> None:
    linter = Linter()
    files = sorted((ROOT / "blueprints").glob("*.yaml"))
    assert [str(found) for file in files for found in linter.read(file)] == []
    assert len(linter.blueprints) == len(files)


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("sizes:", "sizes:\n  w: 2*h", 8, "size 'w' is never used"),
        ("title: Small\nwhen: Always.\n", "", 1, "it has no title and no when, which the library shows"),
        ("{out: out}", "{out: 3}", 11, "it fits none of the usual slots: the output has 3 features"),
    ],
)
def test_what_is_odd_but_allowed_is_a_warning(
    tmp_path: Path, old: str, new: str, line: int, message: str
) -> None:
    (found,) = lint(tmp_path, GOOD.replace(old, new))
    assert (found.severity, found.line) == ("warning", line)
    assert found.message.startswith(message)
    load_blueprints(tmp_path / "a.yaml")


def test_a_size_that_only_another_size_needs_is_used(tmp_path: Path) -> None:
    assert lint(tmp_path, GOOD.replace("ceil(in / 4)", "g + 1\n  g: ceil(in / 4)")) == []


def test_an_unused_node_is_an_error_since_no_command_would_take_it(tmp_path: Path) -> None:
    (found,) = lint(tmp_path, GOOD.replace("[down]", "[x]"))
    assert (found.severity, found.node, found.message) == ("error", "down", "its value is never used")
    with pytest.raises(BlueprintError, match="never used"):
        load_blueprints(tmp_path / "a.yaml")


def test_an_unused_node_is_told_beside_a_mistake_elsewhere(tmp_path: Path) -> None:
    found = lint(tmp_path, GOOD.replace("[down]", "[x]").replace("title:", "tilte:"))
    assert [(f.line, f.message) for f in found] == [
        (3, "unknown field 'tilte'"),
        (10, "its value is never used"),
    ]


def test_a_slot_that_was_named_must_fit(tmp_path: Path) -> None:
    text = GOOD.replace("{out: out}", "{out: 3}")
    fits, no_business, misfit = Slot("features", 4, 3), Slot("channels", 4, 4), Slot("tokens", 4, 4)
    assert lint(tmp_path, text, fits, no_business) == []
    (found,) = lint(tmp_path, text, fits, no_business, misfit)
    assert (found.severity, found.line, found.node) == ("error", 11, "up")
    assert found.message == (
        "the output has 3 features, space over 1; tokens 4->4 needs 4 features, space over 1"
    )


def test_names_and_graphs_are_held_against_those_of_other_files(tmp_path: Path) -> None:
    linter = Linter()
    (tmp_path / "a.yaml").write_text(GOOD)
    (tmp_path / "b.yaml").write_text(GOOD.replace("in / 4", "in / 8"))
    (tmp_path / "c.yaml").write_text(GOOD.replace("name: small", "name: twin").replace("down", "first"))
    assert linter.read(tmp_path / "a.yaml") == []
    (name,) = linter.read(tmp_path / "b.yaml")
    assert (name.severity, name.line) == ("error", 2)
    assert name.message == f"another blueprint has that name: {tmp_path}/a.yaml:1: small"
    (twin,) = linter.read(tmp_path / "c.yaml")
    assert (twin.severity, twin.message) == ("warning", f"the same graph as {tmp_path}/a.yaml:1: small")


def test_each_document_of_a_file_is_read(tmp_path: Path) -> None:
    found = lint(tmp_path, BAD + "---\n" + GOOD.replace("op: linear", "op: liner") + "---\n- 3\n")
    assert [f.line for f in found if f.line is None or f.line > 16] == [None, 27, 28]


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [", "not YAML"), ("", "the file is empty"), ("version: 9", "version 9 is newer than 1")],
)
def test_what_cannot_be_read_is_one_error(tmp_path: Path, text: str, message: str) -> None:
    (found,) = lint(tmp_path, text)
    assert found.severity == "error"
    assert found.message.startswith(message)


def test_there_is_an_end_to_the_mistakes_of_one_document(tmp_path: Path) -> None:
    found = lint(tmp_path, GOOD + "".join(f"field{i}: 1\n" for i in range(500)))
    assert len(found) == MOST + 1
    assert found[0].message == "and more"
