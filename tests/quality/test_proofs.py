"""Recorded proofs are of what ships, and the README and docs/results.md say what they say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from esper.assembly.proving.settings import Settings
from esper_cli.config import compose

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
RESULTS = (ROOT / "docs" / "results.md").read_text()
FOLDERS = sorted(path.parent for path in (ROOT / "experiments").glob("*/proof.json"))


def proof(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "experiments" / name / "proof.json").read_text())
    return found


def told(name: str, arm: str) -> str:
    """A difference of a proof as the results write it."""
    found = proof(name)["differences"][arm]
    return f"{found['mean']:+.1f} [{found['low']:+.1f}, {found['high']:+.1f}]"


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_proof_is_of_the_configuration_that_ships(folder: Path) -> None:
    recorded = json.loads((folder / "proof.json").read_text())
    given = recorded["overrides"]
    settings = Settings(compose(given), compose, given)
    assert settings.config == recorded["config"], "run its command again"
    assert settings.folder == Path("experiments") / folder.name
    assert json.loads((folder / "state.json").read_text())["configuration"] == recorded["configuration"]


def table(text: str) -> dict[str, list[str]]:
    """The cells of text, resnet and mlp by what their row compares with."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if "|" in line]
    return {re.sub(r"\*\*.*?\*\*: ", "", row[0]): row[-3:] for row in rows if len(row) == 5}


def test_the_readme_has_rows_of_the_results() -> None:
    shown, results = table(README), table(RESULTS)
    assert len(shown) > 4
    assert {row: results[row] for row in shown} == shown


def test_the_results_have_the_numbers_of_the_proofs_in_the_columns_of_their_hosts() -> None:
    results = table(RESULTS)
    wanted = {
        "trained on, same further FLOPs": ("rescue", "train_on"),
        "large from scratch, same further FLOPs": ("rescue", "large"),
        "small, same epochs": ("proof", "small"),
        "small, same FLOPs": ("proof", "small_flops"),
        "large, same FLOPs": ("proof", "large_flops"),
        "growth at random, same times": ("proof", "random"),
    }
    for row, (kind, arm) in wanted.items():
        for host, cell in zip(("text", "resnet", "mlp"), results[row], strict=True):
            assert told(f"{host}_{kind}", arm) in cell, f"{row}: {host}"
    budgets = {"best static width at each budget: half": "_half", "whole": "", "double": "_double"}
    for row, suffix in budgets.items():
        for host, cell in zip(("text", "resnet", "mlp"), results[row], strict=True):
            name = f"{host}_proof{suffix}"
            if (ROOT / "experiments" / name).exists():
                assert told(name, proof(name)["best_static"]) in cell, f"{row}: {host}"
            else:
                assert cell == "not run"
