"""Mutated blueprints and the named bombs, in a process that may have 200 MB; longer: blueprint_fuzzer.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from blueprint_fuzzer import BOMBS, HARMLESS

FUZZER = Path(__file__).with_name("blueprint_fuzzer.py")
COUNT = 4_000


def test_each_is_read_or_refused_in_200_mb() -> None:
    command = [sys.executable, str(FUZZER), "--count", str(COUNT), "--seed", "1", "--seconds", "60"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert (done.returncode, done.stderr) == (0, "")
    outcomes = json.loads(done.stdout)["outcomes"]
    assert sum(outcomes.values()) == COUNT + len(BOMBS)
    assert outcomes["bomb refused"] == len(BOMBS) - len(HARMLESS)
    for kind in ("bytes", "words", "trees"):  # a mutator that never hits, or always, would test nothing
        assert outcomes[f"{kind} refused"] > COUNT // 20
        assert outcomes[f"{kind} accepted"] > COUNT // 200
