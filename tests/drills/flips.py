"""Flip bits of a checkpoint of a real run and of its past, cut the files at every length: each is refused.

Bits are drawn from all files alike, by their length. Exits 1 if one is not refused, or if anything is made of
the bytes of one before it is.

    python tests/drills/flips.py [--flips 5000] [--seed 0]
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from omegaconf import DictConfig

from esper.assembly.keys import build_envelope
from esper.assembly.training import build_training
from esper.errors import CheckpointError, UnknownKey
from esper.tolaria.checkpoints import Checkpoints
from esper.tolaria.checkpoints.past import NAMES
from esper_cli.config import compose


def changed(files: list[Path], flips: int, chance: random.Random) -> Iterator[tuple[str, Path, bytes]]:
    """What is done, to which file, and what it then holds."""
    whole = {path: path.read_bytes() for path in files}
    lengths = [len(data) for data in whole.values()]
    for path in chance.choices(files, weights=lengths, k=flips):
        data = bytearray(whole[path])
        bit = chance.randrange(8 * len(data))
        data[bit // 8] ^= 1 << bit % 8
        yield "flip", path, bytes(data)
    for path, data in whole.items():
        for length in range(len(data)):
            yield "truncation", path, data[:length]


def refused(checkpoints: Checkpoints) -> bool:
    """Whether its one checkpoint is refused and nothing is made of it."""
    with mock.patch("esper.tolaria.checkpoints.store.join") as made:
        try:
            checkpoints.load()
        except (CheckpointError, UnknownKey):
            return not made.called
    return False


def trained(folder: Path) -> DictConfig:
    """The configuration of a short run below ``folder``."""
    home = f"security.path={folder}/keys.json"
    smoke = ("+experiment=smoke", "tamiyo=never", "urza=memory", "tolaria.epochs=1", home)
    return compose([*smoke, f"runs={folder}/runs"])


def main() -> int:
    """Change, and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--flips", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    done, accepted = {"flip": 0, "truncation": 0}, 0
    with tempfile.TemporaryDirectory() as folder:
        cfg = trained(Path(folder))
        run = Path(build_training(cfg).run()["folder"])
        path, *older = sorted(run.glob("checkpoints/step-*"), reverse=True)
        for each in older:
            shutil.rmtree(each)
        checkpoints = Checkpoints(run / "checkpoints", build_envelope(cfg))
        assert not refused(checkpoints), "it is refused as it was written"
        files = sorted([*path.iterdir(), run / "checkpoints" / NAMES[0]])
        size, began = sum(file.stat().st_size for file in files), time.perf_counter()
        for what, file, data in changed(files, arguments.flips, random.Random(arguments.seed)):
            before = file.read_bytes()
            same = [file.with_name(name) for name in NAMES] if file.name in NAMES else [file]
            for each in same:  # damaged in one alone it is read from the other
                each.write_bytes(data)
            done[what] += 1
            accepted += not refused(checkpoints)
            for each in same:
                each.write_bytes(before)
    seconds = round(time.perf_counter() - began, 1)
    told = {"bytes": size, "flips": done["flip"], "truncations": done["truncation"], "not refused": accepted}
    print(json.dumps({**told, "seconds": seconds}))
    return 0 if accepted == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
