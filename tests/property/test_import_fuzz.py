"""Damaged kernel files and damaged programs, offered for import; more of them: import_fuzzer.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

FUZZER = Path(__file__).with_name("import_fuzzer.py")
FILES, PROGRAMS = 1_000, 30


def test_each_is_refused_in_a_line_or_made_anew() -> None:
    command = [sys.executable, str(FUZZER), "--files", str(FILES), "--programs", str(PROGRAMS), "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    outcomes = json.loads(done.stdout)["outcomes"]
    assert outcomes.get("file accepted", 0) == 0  # the digest is of all that a file says
    assert outcomes["file refused"] > FILES // 3
    assert outcomes["blueprint refused"] > FILES // 4
    for kind in ("archive", "entry"):  # a mutator that never hits, or always, would test nothing
        assert outcomes[f"{kind} refused"] > PROGRAMS // 20
        assert outcomes[f"{kind} accepted"] > 0
