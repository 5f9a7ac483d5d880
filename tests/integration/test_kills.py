"""Killed at random moments, a run goes on. The long form: python tests/drills/kills.py."""

import json
import sys
from pathlib import Path

import forked
from drills.kills import main


def kill() -> None:
    sys.exit(main(["--kills", "3"]))


def test_whatever_moment_it_is_killed_at_nothing_that_was_acknowledged_is_lost() -> None:
    done = forked.call(kill, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr + done.stdout
    seen = json.loads(done.stdout)
    assert seen["kills"] == 3
    assert seen["runs to their end"] >= 1
    assert seen["checkpoints acknowledged"] > 3
