"""The schema and the page on blueprints are true: generated where they can be, held to the code elsewhere."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from esper.blueprint import load_blueprints, parse_blueprint
from esper.blueprint.migration import VERSION
from esper.blueprint.reference import op_table
from esper.blueprint.schema import schema, schema_text

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "blueprints.md").read_text()
SHIPPED = sorted((ROOT / "blueprints").glob("*.yaml"))
TYPES = {
    "object": dict,
    "array": list,
    "string": str,
    "number": (int, float),
    "integer": int,
    "boolean": bool,
}
NOTES = {"$schema", "$defs", "title", "description", "default", "version", "then"}


def violations(value: Any, rule: dict[str, Any], root: dict[str, Any], at: str = "") -> Iterator[str]:
    """Where ``value`` breaks ``rule``, by what ours uses of JSON Schema; other keywords are an error."""
    for keyword, wanted in rule.items():
        if keyword in NOTES:
            continue
        if keyword == "$ref":
            yield from violations(value, root["$defs"][wanted.removeprefix("#/$defs/")], root, at)
        elif keyword == "type":
            of_type = isinstance(value, TYPES[wanted]) and (
                wanted == "boolean" or not isinstance(value, bool)
            )
            if not of_type:
                yield f"{at}: {value!r} is no {wanted}"
        elif keyword == "if":
            if not list(violations(value, wanted, root)):
                yield from violations(value, rule["then"], root, at)
        elif keyword in ("anyOf", "oneOf"):
            good = sum(not list(violations(value, option, root)) for option in wanted)
            if good < 1 or (keyword == "oneOf" and good > 1):
                yield f"{at}: {value!r} is {good} of {keyword}"
        elif keyword == "allOf":
            for option in wanted:
                yield from violations(value, option, root, at)
        elif keyword == "not":
            if not list(violations(value, wanted, root)):
                yield f"{at}: {value!r} is excluded"
        else:
            yield from _simple(value, keyword, wanted, rule, root, at)


def _simple(
    value: Any, keyword: str, wanted: Any, rule: dict[str, Any], root: dict[str, Any], at: str
) -> Iterator[str]:
    number, text = isinstance(value, int | float), isinstance(value, str)
    size = len(value) if isinstance(value, str | list | dict) else 0
    fields = value if isinstance(value, dict) else {}
    if keyword == "properties":
        for name in fields.keys() & wanted.keys():
            yield from violations(fields[name], wanted[name], root, f"{at}.{name}")
    elif keyword == "additionalProperties":
        for name in fields.keys() - rule.get("properties", {}).keys():
            if wanted is False:
                yield f"{at}: {name} is unknown"
            else:
                yield from violations(fields[name], wanted, root, f"{at}.{name}")
    elif keyword == "propertyNames":
        for name in fields:
            yield from violations(name, wanted, root, at)
    elif keyword == "items":
        for index, item in enumerate(value if isinstance(value, list) else []):
            yield from violations(item, wanted, root, f"{at}[{index}]")
    else:
        broken = {
            "const": lambda: value != wanted,
            "enum": lambda: value not in wanted,
            "required": lambda: isinstance(value, dict) and not {*wanted} <= fields.keys(),
            "pattern": lambda: text and not re.search(wanted, value),
            "minLength": lambda: text and size < wanted,
            "maxLength": lambda: text and size > wanted,
            "minItems": lambda: isinstance(value, list) and size < wanted,
            "maxItems": lambda: isinstance(value, list) and size > wanted,
            "maxProperties": lambda: size > wanted and bool(fields),
            "minimum": lambda: number and value < wanted,
            "maximum": lambda: number and value > wanted,
        }
        if broken[keyword]():
            yield f"{at}: {value!r} breaks {keyword} {wanted!r}"


def breaks(data: Any) -> list[str]:
    rules = json.loads((ROOT / "docs" / "blueprint.schema.json").read_text())
    return list(violations(data, rules, rules))


def test_the_schema_that_ships_is_that_of_the_code() -> None:
    assert (ROOT / "docs" / "blueprint.schema.json").read_text() == schema_text(), (
        "python -m esper.blueprint.schema > docs/blueprint.schema.json"
    )
    assert schema()["version"] == VERSION


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_what_ships_is_valid_by_the_schema(path: Path) -> None:
    assert breaks(yaml.safe_load(path.read_text())) == []
    (blueprint,) = load_blueprints(path)
    assert breaks(json.loads(blueprint.canonical_json())) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("version: 1", "version: 2"),
        ("name: ghost", "name: Ghost"),
        ("[channels]", "[channel]"),
        ("[channels]", "[]"),
        ("op: concat", "op: conkat"),
        ("inputs: [bend, derived]", "inputs: [bend]"),
        ("params: {init: 0.1}", "params: {start: 0.1}"),
        ("params: {init: 0.1}", "params: {init: 10.5}"),
        ("bias: false", "bias: 3"),
        ("groups: h", "groups: 0"),
        ("groups: h", "groups: h;1"),
        ("out: h, ", ""),
        ("id: both", "id: in"),
        ("  h: ", "  max: "),
        ("output: scaled", "outputs: scaled"),
    ],
)
def test_what_loading_refuses_for_a_word_or_a_bound_the_schema_refuses(
    old: str, new: str, tmp_path: Path
) -> None:
    text = (ROOT / "blueprints" / "ghost.yaml").read_text()
    assert old in text
    changed = text.replace(old, new, 1)
    assert breaks(yaml.safe_load(changed)) != []
    (tmp_path / "a.yaml").write_text(changed)
    with pytest.raises(Exception, match=r"a\.yaml"):
        load_blueprints(tmp_path / "a.yaml")


def test_the_page_has_the_table_of_ops() -> None:
    _, _, after = PAGE.partition("<!-- ops: python -m esper.blueprint.reference -->\n")
    assert after.partition("<!-- end of ops -->")[0] == op_table()


def test_the_example_on_the_page_is_valid() -> None:
    example = re.findall(r"^```yaml\n(version.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (text,) = example
    blueprint = parse_blueprint(yaml.safe_load(text))
    fields = set(
        re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`[^|]+) \| .*$", PAGE.split("## Sizes")[0], re.M)))
    )
    assert fields == set(type(blueprint).model_fields)
