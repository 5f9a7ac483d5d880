"""Completion as bash asks for it: its own words, broken at ``=``, through the script that is installed."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BASH = shutil.which("bash")
ESPER = Path(sys.executable).with_name("esper")

pytestmark = pytest.mark.skipif(BASH is None or not ESPER.exists(), reason="needs bash and the esper command")

SCRIPT = """
eval "$(esper --show-completion bash)"
asked() {
  COMP_WORDS=("$@"); COMP_CWORD=$(( $# - 1 )); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}; COMPREPLY=()
  _esper_completion esper
  printf '%s ' "${COMPREPLY[@]}"; echo
}
"""


@pytest.fixture
def complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The answers to each command line, given as bash's words."""
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments/study").mkdir()
    (tmp_path / "experiments/results").mkdir()  # holds no experiment
    for name in ("mine", "study/one"):
        (tmp_path / f"experiments/{name}.yaml").write_text("# @package _global_\nseed: 5\n")
    monkeypatch.setenv("PATH", str(ESPER.parent), prepend=":")
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")

    def ask(*lines: list[str]) -> list[list[str]]:
        calls = "\n".join("asked " + " ".join(f"'{word}'" for word in line) for line in lines)
        done = subprocess.run(
            [str(BASH), "--norc", "-c", SCRIPT + calls],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stderr == ""
        return [line.split() for line in done.stdout.splitlines()]

    return ask


def test_bash_completes_commands_experiments_groups_keys_and_runs(complete) -> None:
    commands, group, equals, study, started, key, value, chosen, options, run = complete(
        ["esper", "ru"],
        ["esper", "train", "+exp"],
        ["esper", "train", "+experiment", "="],
        ["esper", "train", "+experiment/"],
        ["esper", "train", "+experiment", "=", "mi"],
        ["esper", "train", "tolaria.ep"],
        ["esper", "train", "tolaria.epochs", "="],
        ["esper", "train", "+experiment", "=", "mine", "see"],
        ["esper", "train", "tamiyo", "="],
        ["esper", "runs", "show", "la"],
    )
    assert commands == ["runs"]
    # A second candidate keeps bash from putting a space after the equals sign.
    assert group[0] == "+experiment="
    assert "+experiment/" in group
    assert {"+experiment=mine", "+experiment=smoke"} <= set(group)
    assert {"mine", "smoke", "resnet"} <= set(equals)
    assert study == ["+experiment/study=", "+experiment/study=one"]
    assert started == ["mine"]
    assert key[0] == "tolaria.epochs="
    assert len(value) == 1
    assert value[0].isdigit()
    assert chosen == ["seed=", "seeds=", "seed=5"]
    assert {"never", "plateau"} <= set(options)
    assert run == ["latest"]


def test_a_command_line_that_does_not_compose_has_no_completions(complete) -> None:
    assert complete(["esper", "train", "+experiment", "=", "nope", "see"]) == [[]]
