"""Each ``esper ...`` that the pages of docs/ name is there, and a network of one's own trains as they say."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from esper_cli.app import app, run
from esper_cli.config import compose

PAGES = sorted((Path(__file__).resolve().parents[2] / "docs").glob("*.md"))
FENCE = re.compile(r"^```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OWN = next(page for page in PAGES if page.stem == "own-network").read_text()
ASIDE = re.compile(r" # .*|&&.*|[<>].*| \| .*")


def commands(page: str) -> list[str]:
    """What stands in its blocks at the start of a line or after a prompt, and between backticks."""
    blocks = "".join(FENCE.findall(page)).replace("\\\n", " ")
    found = re.findall(r"^(?:\$ )?(?:\w+=\S+ )*(esper [a-z-].*)$", blocks, re.MULTILINE)
    found += re.findall(r"`(?:\w+=\S+ )*(esper [^`\n]+)`", FENCE.sub("", page))
    return sorted({ASIDE.sub("", command).strip() for command in found})


def problems(command: str) -> list[str]:
    """What of ``command`` is not there."""
    root = typer.main.get_command(app)
    context = typer.Context(root)
    leaves, arguments = [root], shlex.split(command)[1:]
    while arguments and arguments[0][0] != "-" and hasattr(leaves[0], "get_command"):
        names = arguments.pop(0).split("|")
        leaves = [leaves[0].get_command(context, name) for name in names]
        if None in leaves:
            return [f"no command {names[leaves.index(None)]}"]
    known = {"-h", "--help"} | {o for p in leaves[0].params for o in (*p.opts, *p.secondary_opts)}
    options = [a.partition("=")[0] for a in arguments if a.startswith("-")]
    if overrides := [a for a in arguments if "=" in a and not a.startswith("-")]:
        compose(overrides)
    return [f"no option {option}" for option in options if option not in known]


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The folder of somebody who has written the files of own-network.md."""
    for text in FENCE.findall(OWN):
        if name := re.search(r"^# (\S+\.(?:py|yaml))$", text, re.MULTILINE):
            (tmp_path / name[1]).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name[1]).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("mynets", None)  # else the next test has that of a folder which is gone


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_each_command_is_there(page: Path) -> None:
    wrong = {command: found for command in commands(page.read_text()) if (found := problems(command))}
    assert not wrong


def test_what_is_not_there_is_found() -> None:
    text = "`esper runs lss`\n```sh\n$ esper compile x \\\n  --wrokers 2  # here\nesper keys ls > file\n```\n"
    assert {command: problems(command) for command in commands(text)} == {
        "esper compile x    --wrokers 2": ["no option --wrokers"],
        "esper keys ls": [],
        "esper runs lss": ["no command lss"],
    }


def test_a_network_of_ones_own_grows_and_leaves_as_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "+experiment=mine", "model.weights=converged.pt"]) == 2
    assert "No such file" in capsys.readouterr().err
    assert run(["train", "+experiment=mine", "tolaria.epochs=2"]) == 0
    assert "grown" in capsys.readouterr().out
    assert run(["runs", "export", "latest"]) == 0


def test_a_loop_of_ones_own_grows_as_it_says() -> None:
    (text,) = [text for text in FENCE.findall(OWN) if text.startswith("import esper")]
    names: dict[str, Any] = {}
    exec(text, names)
    assert names["lower"] > 0
    assert names["seed"].state.value == "FOSSILIZED"
