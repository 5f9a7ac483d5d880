"""Blueprint files: what is wrong is said in one line, and no file can hang or crash the reader."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from waiting import LONG

from esper.blueprint import from_json, load_blueprints, parse_blueprint
from esper.errors import BlueprintError

GOOD = """\
version: 1
name: small
layouts: [features]
sizes:
  h: ceil(in / 4)
nodes:
  - id: down
    op: linear
    inputs: [x]
    params: {out: h}
  - {id: bend, op: gelu, inputs: [down]}
  - {id: up, op: linear, inputs: [bend], params: {out: out}}
output: up
"""


def refusal(tmp_path: Path, text: str | bytes, name: str = "bad.yaml") -> str:
    """The message for a file with ``text``, which must be one line."""
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(BlueprintError) as caught:
        load_blueprints(path)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400
    assert message.startswith(str(path))
    return message.removeprefix(str(path))


def test_good_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "good.yaml"
    path.write_text(GOOD)
    (blueprint,) = load_blueprints(path)
    assert blueprint.sizes == {"h": "ceil(in/4)"}
    assert blueprint.where("bend") == f"{path}:11: small: node 'bend'"


def test_several_documents_in_one_file(tmp_path: Path) -> None:
    path = tmp_path / "two.yml"
    path.write_text(GOOD + "---\n" + GOOD.replace("small", "other"))
    assert [blueprint.name for blueprint in load_blueprints(path)] == ["small", "other"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("op: gelu", "op: gelo", ":11: small: node 'bend': unknown op 'gelo' (did you mean 'gelu'?)"),
        ("[bend]", "[bent]", ":12: small: node 'up': input 'bent' is no node (did you mean 'bend'?)"),
        ("out: h", "ot: h", ":10: small: node 'down': linear has no parameter 'ot' (did you mean 'out'?)"),
        ("{out: h}", "{}", ":10: small: node 'down': linear needs the parameter 'out'"),
        ("out: h", "out: w", ":10: small: node 'down': parameter 'out': unknown name 'w'"),
        ("out: h", "out: 0", ":10: small: node 'down': parameter 'out': 0 is outside 1 to 1000000"),
        ("out: h", "out: 1.5", ":10: small: node 'down': parameter 'out': 1.5 is not a size"),
        ("out: h", "out: true", ":10: small: node 'down': parameter 'out': True is not a size"),
        ("id: bend", "id: down", ":11: small: node 'down': two nodes have the id 'down'"),
        ("id: bend", "id: class", ":11: small: node 'class': 'class' is a reserved name"),
        ("id: bend", "id: __class__", ":11: small: node '__class__': id: String should match pattern"),
        ("inputs: [x]", "inputs: [bend]", ": a cycle: bend -> down -> bend (a kernel runs from x to output)"),
        ("output: up", "output: upp", ":13: small: output 'upp' is no node (did you mean 'up'?)"),
        ("output: up", "output: bend", ":12: small: node 'up': its value is never used"),
        ("nodes:", "nods:", ":6: small: unknown field 'nods' (did you mean 'nodes'?)"),
        ("name: small\n", "", ":1: blueprint: the field 'name' is missing"),
        ("name: small", "name: Small!", ":2: Small!: name: String should match pattern"),
        (
            "name: small",
            "name: sm\u0430ll",
            ":2: sm\u0430ll: name: String should match pattern",
        ),  # Cyrillic a
        ("name: small", "name: small\ntitle: 'a\u202eb'", "the character U+202E is not allowed in text"),
        (
            "version: 1",
            "version: 2",
            ":1: small: version 2 is newer than 1, the newest that is read here (update",
        ),
        ("name: small", 'name: "a\\nb\\e[2J"', ":2: 'a\\nb\\x1b[2J': name: String should match pattern"),
        ("version: 1", "version: -1", ":1: small: version -1 is not read here (write version: 1)"),
        ("version: 1", "version: true", ":1: small: version: Input should be a valid integer, not True"),
        ("version: 1", "version: 1.0", ":1: small: version: Input should be a valid integer, not 1.0"),
        ("[features]", "[feature]", ":3: small: layouts"),
        ("gelu", "conv2d", ":11: small: node 'bend': conv2d needs the parameter 'out'"),
        (
            "op: gelu",
            "op: global_pool",
            "global_pool does not work on features (it works on tokens, channels)",
        ),
        ("ceil(in / 4)", "ceil(on / 4)", ":5: small: size 'h': unknown name 'on' (did you mean 'in'?)"),
        ("ceil(in / 4)", "h + 1", ":5: small: sizes in a cycle: h -> h"),
        ("ceil(in / 4)", "ceil(in / 4", ":5: small: size 'h': the expression"),
        ("ceil(in / 4)", ".nan", ":5: .nan is not a finite number"),
        ("ceil(in / 4)", "1e999", ":5: 1e999 is not a finite number"),
        ("ceil(in / 4)", "9" * 5000, ":5: a number of 5000 characters; at most 24 are read"),
        ("ceil(in / 4)", "&a 3", ":5: an anchor (&a); anchors are not read (remove it)"),
        ("ceil(in / 4)", "*a", ":5: an alias (*a); aliases are not read"),
        ("ceil(in / 4)", "!!python/object/apply:os.system [id]", ":5: a tag (tag:yaml.org"),
        ("name: small", "name: small\nname: other", ":3: the key 'name' stands there twice"),
        ("name: small", "[a, b]: small", ":2: a key that is not a word"),
        ("name: small", "name: [small", ":3: not YAML: "),
    ],
)
def test_mistakes_name_file_line_node_and_word(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert GOOD.count(old) >= 1
    assert message in refusal(tmp_path, GOOD.replace(old, new, 1))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("flow.yaml", "[" * 100_000, "nested deeper than 32 levels"),
        ("block.yaml", "- " * 100_000, "nested deeper than 32 levels"),
        ("maps.yaml", "{a: " * 60_000, "nested deeper than 32 levels"),
        ("keys.yaml", "? " * 100_000, "a key that is not a word"),
        (
            "indent.yaml",
            "".join(" " * depth + "a:\n" for depth in range(600)),
            "nested deeper than 32 levels",
        ),
        ("json.json", "[" * 100_000, "nested deeper than 32 levels"),
        ("maps.json", '{"a":' * 50_000, "nested deeper than 32 levels"),
        ("wide.yaml", "- 1\n" * 60_000, "more than 5000 values"),
        ("wide.json", "[" + "1," * 120_000 + "1]", "more than 5000 values"),
        ("large.yaml", "#" * 300_000, "larger than 256 KiB"),
        ("laughs.yaml", "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n", "anchors are not read"),
        ("word.yaml", "version", "a single value where a blueprint should be"),
        ("list.yaml", "[1, 2]", "a list where a blueprint should be"),
        ("empty.yaml", "# nothing\n", "the file is empty"),
        ("empty.json", "", "not JSON"),
        ("bytes.yaml", b"name: \xff\n", "not UTF-8 text"),
        ("control.yaml", "name: \x00\n", "not YAML"),
        ("nan.json", '{"version": NaN}', "NaN is not a finite number"),
        ("twice.json", '{"version": 1, "version": 1}', "the key 'version' stands there twice"),
        ("number.json", '{"version": ' + "9" * 5000 + "}", "a number of 5000 characters"),
        ("string.json", '{"version": "1', "not JSON: a string does not end"),
        ("comma.json", '{"version": 1,}', "not JSON"),
        ("surrogate.json", '{"version": "\\ud800"}', "blueprint"),
        ("other.txt", "version: 1", "not a blueprint file"),
    ],
)
def test_bombs_are_refused(tmp_path: Path, name: str, text: str | bytes, message: str) -> None:
    assert message in refusal(tmp_path, text, name)


@pytest.mark.parametrize("name", ["flow.yaml", "json.json"])
def test_nesting_stays_within_200_mb(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("[" * 100_000)
    script = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (200 << 20, 200 << 20))\n"
        "from pathlib import Path; from esper.blueprint import load_blueprints\n"
        "from esper.errors import BlueprintError\n"
        "try: load_blueprints(Path(sys.argv[1]))\n"
        "except BlueprintError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, timeout=LONG)
    assert (done.returncode, done.stderr) == (0, "")
    assert "nested deeper than 32 levels" in done.stdout


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(BlueprintError):
            load_blueprints(path)


def test_plain_words_are_not_yaml_1_1() -> None:
    """``no`` is a word and ``010`` is not eight: what a file says does not depend on YAML's version."""
    data = json.loads(json.dumps(_data()))
    data["nodes"][0]["params"]["bias"] = "no"
    with pytest.raises(BlueprintError, match="'no' is neither true nor false"):
        parse_blueprint(data)


def test_canonical_json_reads_back() -> None:
    blueprint = parse_blueprint(_data())
    assert from_json(blueprint.canonical_json()) == blueprint
    with pytest.raises(BlueprintError, match="nested deeper"):
        from_json("[" * 100_000)
    with pytest.raises(BlueprintError, match="a list"):
        from_json("[]")


def _data() -> dict[str, object]:
    return {
        "version": 1,
        "name": "one",
        "layouts": ["features"],
        "nodes": [{"id": "map", "op": "linear", "inputs": ["x"], "params": {"out": "out"}}],
        "output": "map",
    }
