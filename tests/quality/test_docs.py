"""Each ``esper ...`` that the pages of docs/ name is there: its command, its options, its overrides."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from esper_cli.app import app
from esper_cli.config import compose

PAGES = sorted((Path(__file__).resolve().parents[2] / "docs").glob("*.md"))
FENCE = re.compile(r"^```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
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
