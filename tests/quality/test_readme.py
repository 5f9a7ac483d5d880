"""The README is run, not believed: its commands, its examples and its links."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

from esper_cli.app import run
from esper_cli.config import compose, experiments

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
COMMANDS = sorted(set(re.findall(r"`(esper [^`]+)`", README)))


def runnable(command: str) -> list[str]:
    """The command's arguments, made short: training stops after composing, what is long after its help."""
    arguments = shlex.split(command)[1:]
    if arguments[0] == "train":
        swept = [a for a in arguments if a != "-m" and "," not in a and "--resume" not in a and a != "latest"]
        return swept if "--cfg" in swept else [*swept, "--cfg", "job"]
    long = ("prove", "keys", "serve-metrics", "watch", "token", "audit", "--install-completion")
    return [*arguments, "--help"] if arguments[0] in long else arguments


def test_it_opens_with_two_commands_that_set_themselves_up() -> None:
    shell = [text.strip() for language, text in BLOCKS if language == "sh"]
    setup = "python3 -m venv .venv && .venv/bin/pip install -c constraints.txt -e "
    assert shell[0] == f"{setup}. && .venv/bin/esper train +experiment=resnet"
    assert shell[1] == f"{setup}'.[dev]' && .venv/bin/pytest"


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_runs(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "blueprints").mkdir()
    (tmp_path / "blueprints" / "one.yaml").write_text((ROOT / "blueprints" / "low_rank.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    assert run(runnable(command)) == 0


def test_every_experiment_and_command_is_named() -> None:
    for name in experiments():
        assert f"`{name}`" in README or f"+experiment={name}" in README, name
    done = subprocess.run(
        [sys.executable, "-m", "esper_cli", "--help"], capture_output=True, text=True, check=True
    )
    for name in re.findall(r"^│ ([a-z][a-z-]+) ", done.stdout, re.MULTILINE):
        assert f"esper {name}" in README, name


def test_the_experiment_of_ones_own_composes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for text in (text for language, text in BLOCKS if language == "yaml"):
        (name,) = re.findall(r"^# (\S+\.yaml)$", text, re.MULTILINE)
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    cfg = compose(["+experiment=mine"])
    assert cfg.model == {"_target_": "mynets.ConvNet", "classes": None}
    assert cfg.data.root == "/data/cifar-10-batches-bin"
    assert "mynets." in cfg.allow_targets


def test_the_python_example_runs() -> None:
    import torch

    (text,) = [text for language, text in BLOCKS if language == "python"]
    convolutions = [nn.Conv2d(8, 8, 3, padding=1) for _ in range(4)]
    model = nn.Sequential()
    model.add_module("features", nn.Sequential(*convolutions))
    names = {
        "model": model,
        "example_input": torch.randn(2, 8, 8, 8),
        "my_kernel": nn.Conv2d(2, 2, 3, padding=1),
    }
    before = model(names["example_input"])
    exec(text, names)
    assert torch.equal(model(names["example_input"]), before)


def test_links_lead_somewhere() -> None:
    for document in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"
