"""Each codename stands once, as a package, and says the same in its docstring and in the glossary."""

from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path

import esper

ROOT = Path(__file__).resolve().parents[2]
ROW = re.compile(r"^\| (\w+) \| (.+?) \| `(esper/\w+)` \|$", re.MULTILINE)
NOT_CODENAMES = {"assembly", "blueprint", "data", "models", "proof", "security"}


def glossary() -> dict[str, tuple[str, str]]:
    rows = ROW.findall((ROOT / "docs" / "glossary.md").read_text())
    return {package: (name, job) for name, job, package in rows}


def packages() -> set[str]:
    return {m.name for m in pkgutil.iter_modules(esper.__path__) if m.ispkg} - NOT_CODENAMES


def test_every_codename_is_a_package_and_every_package_has_one() -> None:
    assert set(glossary()) == {f"esper/{name}" for name in packages()}


def test_the_first_line_of_each_package_is_its_job() -> None:
    for package, (name, job) in glossary().items():
        doc = importlib.import_module(package.replace("/", ".")).__doc__ or ""
        assert doc.splitlines()[0] == f"{name}: {job}.", package


def test_a_codename_is_used_below_its_package_by_no_name() -> None:
    codenames = "|".join(name for name, _ in glossary().values())
    named = re.compile(rf"^\s*(?:class|def)\s+\w*(?:{codenames})\w*", re.IGNORECASE | re.MULTILINE)
    for path in [*(ROOT / "esper").rglob("*.py"), *(ROOT / "esper_cli").rglob("*.py")]:
        assert not named.search(path.read_text()), path
