"""Killed at random moments, a run goes on. The long form: python tests/drills/kills.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_whatever_moment_it_is_killed_at_nothing_that_was_acknowledged_is_lost() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "drills" / "kills.py", "--kills", "3"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr + done.stdout
    seen = json.loads(done.stdout)
    assert seen["kills"] == 3
    assert seen["runs to their end"] >= 1
    assert seen["checkpoints acknowledged"] > 3
