"""Mutated blueprints and named bombs, each read, or refused in one line, within 1 s and 200 MB.

By hand, for longer: ``python tests/property/blueprint_fuzzer.py --count 1000000 --seed 7``. Ends with 1 and
keeps the file where one of them does anything else.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import re
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from esper.blueprint import Blueprint, fits, from_json, load_blueprints
from esper.blueprint.drawing import draw
from esper.blueprint.lint import Linter
from esper.errors import BlueprintError
from esper.messages import Slot

MEGABYTES, CHARACTERS = 200, 2_000
BLUEPRINTS = Path(__file__).resolve().parents[2] / "blueprints"
SLOTS = [
    Slot("features", 8, 8),
    Slot("tokens", 1, 3),
    Slot("channels", 16, 32, 2),
    Slot("channels", 10**6, 1),
]
TOKEN = re.compile(r"\w+|[^\w\s]|\s+")
NASTY_TOKENS = [
    *(
        "&a",
        "*a",
        "!!python/name:os.system",
        "<<",
        "? ",
        "- ",
        "---\n",
        "...",
        "|",
        ">",
        "\t",
        "{",
        "}",
        "[",
        "]",
    ),
    *("9" * 30, "1e999", ".nan", "-.inf", "NaN", "-0.0", "0x10", "010", "1_000", "~", "null", "true", "no"),
    *(
        "__class__",
        "\u0430",
        "\u202e",
        "\ufeff",
        "\u2028",
        "\x00",
        "in",
        "x",
        "**",
        "%",
        "//",
        "(" * 40,
        "ceil(",
    ),
]
NASTY_VALUES: list[Any] = [
    *(
        None,
        True,
        -1,
        0,
        10**18,
        10**23,
        -0.0,
        1e308,
        0.5,
        "",
        "x",
        "in",
        "__class__",
        "\u0456n",
        "a\nb",
        "\ud83d",
    ),
    *(
        [],
        {},
        [[]],
        {"x": {}},
        "1/0",
        "in/0",
        "in*1000000*1000000*1000000",
        "-" * 30 + "1",
        "(" * 20,
        "h",
        ["x"] * 9,
    ),
    *(
        "max(" + ",".join(["in"] * 9) + ")",
        "9" * 13,
        "features",
        "linear",
        ["x", "x"],
        "\uff49\uff4e",
        1.0,
        64,
    ),
]


def one_node(**changes: Any) -> dict[str, Any]:
    node = {"id": "a", "op": "linear", "inputs": ["x"], "params": {"out": "out"}}
    data = {"version": 1, "name": "bomb", "layouts": ["features"], "nodes": [node], "output": "a"}
    for path, value in changes.items():
        *way, last = path.split("__") if not path.startswith("_") else [path]
        holder: Any = data
        for part in way:
            holder = holder[int(part) if part.isdigit() else part]
        holder[last] = value
    return data


def ladder(op: str, width: int, count: int = 64) -> dict[str, Any]:
    """Nodes that each use the one before several times: as many ways through it as ``width ** count``."""
    nodes = [{"id": f"n{i}", "op": op, "inputs": [f"n{i - 1}" if i else "x"] * width} for i in range(count)]
    return {**one_node(), "nodes": nodes, "output": f"n{count - 1}"}


def ring(count: int) -> dict[str, Any]:
    nodes = [{"id": f"n{i}", "op": "relu", "inputs": [f"n{(i + 1) % count}"]} for i in range(count)]
    return {**one_node(), "nodes": nodes, "output": "n0"}


def doubling(operator: str) -> dict[str, Any]:
    sizes = {f"s{i}": operator.join([f"s{i - 1}" if i else "in"] * 40) for i in range(16)}
    return one_node(sizes=sizes, nodes__0__params={"out": "s15"})


BOMBS: dict[str, str | dict[str, Any]] = {
    "aliases": "a: &a [x, x, x, x]\nb: &b [*a, *a, *a, *a]\nc: [*b, *b, *b, *b]\n",
    "merge keys": "a: &a {version: 1}\n<<: *a\n",
    "nested lists": "nodes: " + "[" * 100_000,
    "nested maps": "{a: " * 60_000,
    "nested blocks": "- " * 120_000,
    "a quarter of a megabyte of keys": "".join(f"k{i}: 1\n" for i in range(26_000)),
    "not a number": "version: 1\nname: .nan\n",
    "duplicate keys": "version: 1\nversion: 1\n",
    "a tag that would run": "!!python/object/apply:os.system [id]",
    "10^18 features": one_node(nodes__0__params={"out": 10**18}),
    "10^18 by multiplication": one_node(nodes__0__params={"out": "1000000*1000000*1000000"}),
    "10^480 by multiplication": one_node(nodes__0__params={"out": "*".join(["999999999999"] * 12)}),
    "sizes that multiply": doubling("*"),
    "sizes that add up": doubling("+"),
    "a deep expression": one_node(nodes__0__params={"out": "(" * 79 + "1" + ")" * 79}),
    "a long expression": one_node(nodes__0__params={"out": "1+" * 50_000 + "1"}),
    "minus minus": one_node(nodes__0__params={"out": "-" * 159 + "1"}),
    "division by zero": one_node(sizes={"h": "in/(in-in)"}, nodes__0__params={"out": "h"}),
    "many ways through": ladder("add", 8),
    "features that multiply": ladder("concat", 8),
    "a ring": ring(64),
    "a node of itself": one_node(nodes__0__inputs=["a"]),
    "sizes in a ring": one_node(sizes={f"s{i}": f"s{(i + 1) % 16}" for i in range(16)}),
    "a class as an id": one_node(nodes__0__id="__class__", output="__class__"),
    "a class as an op": one_node(nodes__0__op="__class__"),
    "a class as an input": one_node(nodes__0__inputs=["__class__"]),
    "a class as a parameter": one_node(nodes__0__params={"out": 1, "__class__": 1}),
    "a class in an expression": one_node(nodes__0__params={"out": "in.__class__"}),
    "a class as a size": one_node(sizes={"__class__": 1}),
    "a class as a field": one_node(__class__="Blueprint"),
    "a Cyrillic look-alike": one_node(nodes__0__op="line\u0430r"),
    "a full-width look-alike": one_node(nodes__0__params={"\uff4f\uff55\uff54": 1}),
    "a Greek look-alike in an expression": one_node(nodes__0__params={"out": "\u03bfut"}),
    "digits of another script": one_node(nodes__0__params={"out": "\u0661\u0662"}),
    "a long word": one_node(nodes__0__op="a" * 200_000),
    "a long parameter": one_node(nodes__0__params={"out": "out", "gain": "a" * 200_000}),
    "thousands of unknown fields": {**one_node(), **{f"nodez{i}": 1 for i in range(2000)}},
    "thousands of nodes": {**one_node(), "nodes": [{"id": f"n{i}", "op": "rel"} for i in range(1600)]},
}
"""All are refused but those that are harmless until they are built: see ``HARMLESS``."""
HARMLESS = {"division by zero", "many ways through", "features that multiply", "sizes that multiply",
            "10^18 by multiplication", "10^480 by multiplication", "sizes that add up"}  # fmt: skip


def bombs() -> Iterator[tuple[str, bytes, str]]:
    """Each bomb as the bytes of a file: name, bytes, suffix."""
    for name, bomb in BOMBS.items():
        if isinstance(bomb, str):
            yield name, bomb.encode(), ".yaml"
        else:
            yield name, json.dumps(bomb).encode(), ".json"


class Mutator:
    """Draws files from those that ship: a few bytes, words or values of one are not what they were."""

    def __init__(self, seed: int) -> None:
        self.order = random.Random(seed)
        texts = [path.read_text() for path in sorted(BLUEPRINTS.glob("*.yaml"))]
        self.data = [yaml.safe_load(text) for text in texts]
        self.texts = [*((text, ".yaml") for text in texts)]
        self.texts += [(json.dumps(data, indent=1), ".json") for data in self.data] * 4
        self.kinds: dict[str, Callable[[], tuple[bytes, str]]] = {
            "bytes": self.of_bytes,
            "words": self.of_words,
            "trees": self.of_trees,
        }

    def draw(self) -> tuple[str, bytes, str]:
        """A kind of mutation, the bytes of a file, and its suffix."""
        kind = self.order.choice(list(self.kinds))
        return kind, *self.kinds[kind]()

    def of_bytes(self) -> tuple[bytes, str]:
        text, suffix = self.order.choice(self.texts)
        made = bytearray(text.encode())
        for _ in range(self.order.choice([1, 1, 2, 8])):
            at, size = self.order.randrange(len(made)), self.order.choice([0, 1, 1, 2, 16])
            other = self.order.choice(self.texts)[0].encode()
            start = self.order.randrange(len(other))
            made[at : at + size] = self.order.choice(
                [b"", self.order.randbytes(1), made[at : at + size] * 2, other[start : start + 16]]
            )
        return bytes(made), suffix

    def of_words(self) -> tuple[bytes, str]:
        text, suffix = self.order.choice(self.texts)
        words = TOKEN.findall(text)
        for _ in range(self.order.choice([1, 1, 2, 4])):
            at = self.order.randrange(len(words))
            other = TOKEN.findall(self.order.choice(self.texts)[0])
            words[at] = self.order.choice(
                [
                    self.order.choice(NASTY_TOKENS),
                    self.order.choice(other),
                    self.order.choice(words),
                    "",
                    words[at] * 2,
                ]
            )
        return "".join(words).encode(errors="replace"), suffix

    def of_trees(self) -> tuple[bytes, str]:
        data = json.loads(json.dumps(self.order.choice(self.data)))
        for _ in range(self.order.choice([1, 1, 2, 4])):
            holder, key = self.order.choice(list(_places(data)))
            others = [
                *NASTY_VALUES,
                *(below[place] for below, place in _places(self.order.choice(self.data))),
            ]
            action = self.order.randrange(4)
            if action == 0:
                del holder[key]
            elif action == 1 and isinstance(holder, list):
                holder.append(holder[key])
            elif action == 1 and isinstance(holder, dict):
                holder[self.order.choice(["__class__", "x", "in", "op", "z", "\u0430"])] = holder[key]
            else:
                holder[key] = copy.deepcopy(self.order.choice(others))
            if not data:
                break
        if self.order.randrange(5) == 0:
            return yaml.safe_dump(data, default_flow_style=None).encode(errors="replace"), ".yaml"
        return json.dumps(data).encode(), ".json"


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container below ``value`` with each of its keys."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from _places(value[key])


def examine(path: Path, *, lint: bool) -> str:
    """ "accepted" or "refused"; raises AssertionError, or whatever it should not, for anything else."""
    refused: BlueprintError | None = None
    blueprints = []
    try:
        blueprints = load_blueprints(path)
    except BlueprintError as error:
        refused = error
    for blueprint in blueprints:
        _use(blueprint)
    if lint:
        errors = [one for one in _lint_errors(path) if not one.startswith("another blueprint")]
        assert bool(errors) == bool(refused), f"lint says {errors[:1]}, loading {refused}"
    if refused is None:
        return "accepted"
    assert "\n" not in refused.message, "a message of several lines"
    assert len(str(refused)) < CHARACTERS, "a message without end"
    assert str(path) in refused.message, "a message that does not name the file"
    return "refused"


def _use(blueprint: Blueprint) -> None:
    assert from_json(blueprint.canonical_json()) == blueprint, "another spelling"
    assert blueprint.graph_id.startswith("graph_")
    assert max(map(len, draw(blueprint))) <= 80, "a drawing too wide"
    for slot in SLOTS:
        fits(blueprint, slot)


def _lint_errors(path: Path) -> list[str]:
    return [one.message for one in Linter().read(path) if one.severity == "error"]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=1.0, help="of the processor, that one may take")
    options = parser.parse_args(arguments)
    resource.setrlimit(resource.RLIMIT_AS, (MEGABYTES << 20, MEGABYTES << 20))
    mutator = Mutator(options.seed)
    outcomes: Counter[str] = Counter()
    slowest, worst = 0.0, ""
    with tempfile.TemporaryDirectory() as folder:
        cases = [("bomb", text, suffix, name) for name, text, suffix in bombs()]
        for index in range(len(cases) + options.count):
            kind, text, suffix, name = (
                cases[index] if index < len(cases) else (*mutator.draw(), f"number {index - len(cases)}")
            )
            path = Path(folder, f"a{suffix}")
            path.write_bytes(text)
            start = time.process_time()
            try:
                outcome = examine(path, lint=kind == "bomb" or index % 8 == 0)
                taken = time.process_time() - start
                assert taken < options.seconds, f"{taken:.2f} s"
                assert kind != "bomb" or (outcome == "accepted") == (name in HARMLESS), outcome
            except Exception as error:
                kept = Path(tempfile.gettempdir(), f"blueprint-{options.seed}-{index}{suffix}")
                kept.write_bytes(text)
                print(f"{kind}, {name}, kept as {kept}: {type(error).__name__}: {error}", file=sys.stderr)
                return 1
            outcomes[f"{kind} {outcome}"] += 1
            if taken > slowest:
                slowest, worst = taken, f"{kind}, {name}"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(json.dumps({"outcomes": outcomes, "slowest_seconds": slowest, "slowest": worst, "peak_mb": peak}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
