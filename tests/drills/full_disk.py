"""Train until the disk is full, look at what is left, make room, and go on to the weights of a whole run.

The disk is a small file system in memory, so this needs root. tests/e2e/test_cli_full_disk.py does the same
with a limit on the size of files.

    python tests/drills/full_disk.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ESPER = (sys.executable, "-m", "esper_cli")
SMOKE = ("train", "+experiment=smoke", "tamiyo=never", "urza=memory", "tolaria.epochs=6", "--json")
EVERY = ("tolaria.checkpoint_every=2", "tolaria.keep_checkpoints=1000")


def esper(*args: str) -> subprocess.CompletedProcess[str]:
    """The real command."""
    return subprocess.run([*ESPER, *args], capture_output=True, text=True, check=False)


def main() -> int:
    """Fill, and say what came of it."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ESPER_HOME"] = f"{folder}/home"
        whole = json.loads(esper(*SMOKE, *EVERY, f"runs={folder}/whole").stdout)
        disk = Path(folder, "disk")
        disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], check=True)
        try:
            full = esper(*SMOKE, *EVERY, f"runs={disk}")
            left = json.loads(esper("checkpoints", "verify", "--all", "--json", f"runs={disk}").stdout)
            subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
            again = esper("train", "--resume", "auto", "--json", f"runs={disk}")
        finally:
            subprocess.run(["umount", str(disk)], check=True)
    told = {
        "exit code": full.returncode,
        "said": full.stderr.strip().replace(folder, "").splitlines()[-1],
        "checkpoints left": len(left),
        "damaged": sum(row["error"] is not None for row in left),
        "went on to the same weights": json.loads(again.stdout)["weights_sha256"] == whole["weights_sha256"],
    }
    print(json.dumps(told, indent=1))
    good = full.returncode == 10 and left and not told["damaged"] and told["went on to the same weights"]
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
