"""Does growing pay? The shipped experiment beside its control and a static network of the grown size.

    python experiments/resnet_study/run.py --seeds 1 2 3 4 5 --jobs 2

Every run is ``esper train +experiment=resnet`` with the same data order and split; arms differ in what is
named here and in nothing else. Each starts from an empty kernel library. Results land in ``results.json``
beside this file and are printed as the table of the README. What is there already is not run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from math import sqrt
from pathlib import Path
from typing import Any

from esper.models.resnet import ResNet

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
ARMS = ("grown", "control", "static")
T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""Two-sided 95 % points of Student's t by degrees of freedom."""


def train(seed: int, *overrides: str) -> dict[str, Any]:
    """One run of the command line; returns what its summary says."""
    with tempfile.TemporaryDirectory() as runs:
        command = [sys.executable, "-m", "esper_cli", "train", "--json", "+experiment=resnet", f"seed={seed}"]
        done = subprocess.run(
            [*command, "urza=memory", f"runs={runs}", *overrides], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(done.stderr)
    summary: dict[str, Any] = json.loads(done.stdout)
    kept = [a["verdict"] for a in summary["adaptations"]]
    return {
        "accuracy": summary["test"]["accuracy"],
        "loss": summary["test"]["loss"],
        "parameters": summary["end"]["parameters"],
        "training_flops": summary["training_flops"],
        "seconds": summary["seconds"],
        "kept": kept.count("kept"),
        "trials": len(kept),
    }


def width_of(parameters: float) -> int:
    """The width of the smallest static network that is at least as large: the control gets the odd weight."""
    widths = range(1, 65)
    return next(w for w in widths if sum(p.numel() for p in ResNet(w).parameters()) >= parameters)


def run_arms(seed: int, done: dict[str, Any]) -> dict[str, Any]:
    """The arms of one seed that are not in ``done`` yet, beside those that are."""
    arms = dict(done)
    if "grown" not in arms:
        arms["grown"] = train(seed)
    if "control" not in arms:
        arms["control"] = train(seed, "tamiyo=never")
    if "static" not in arms:
        width = width_of(arms["grown"]["parameters"])
        arms["static"] = {"width": width, **train(seed, "tamiyo=never", f"model.width={width}")}
    return arms


def interval(values: list[float]) -> str:
    """Mean and its 95 % interval."""
    mean, n = statistics.mean(values), len(values)
    half = T_95[n - 1] * statistics.stdev(values) / sqrt(n)
    return f"{mean:+.2f} [{mean - half:+.2f}, {mean + half:+.2f}]"


def report(results: dict[str, Any]) -> None:
    """The table, in Markdown."""
    seeds = sorted(results, key=int)
    print(f"| seed | {' | '.join(ARMS)} | seeds kept / tried |")
    print("|---|---|---|---|---|")
    for seed in seeds:
        row = results[seed]
        cells = " | ".join(f"{row[arm]['accuracy']:.2%}" for arm in ARMS)
        print(f"| {seed} | {cells} | {row['grown']['kept']} / {row['grown']['trials']} |")
    for name, form in (("accuracy", "{:.2%}"), ("parameters", "{:,.0f}"), ("training_flops", "{:.3g}")):
        means = [statistics.mean(results[s][arm][name] for s in seeds) for arm in ARMS]
        print(f"| mean {name.replace('_', ' ')} | {' | '.join(form.format(m) for m in means)} | |")
    if len(seeds) > 1:
        for arm in ARMS[1:]:
            points = [100 * (results[s]["grown"]["accuracy"] - results[s][arm]["accuracy"]) for s in seeds]
            print(f"\nGrown minus {arm}: {interval(points)} points (mean, 95 % interval, {len(seeds)} seeds)")


def main() -> None:
    """Run what is missing, then report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    arguments = parser.parse_args()
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    with ThreadPoolExecutor(arguments.jobs) as pool:
        started = [results.get(str(seed), {}) for seed in arguments.seeds]
        for seed, arms in zip(arguments.seeds, pool.map(run_arms, arguments.seeds, started), strict=True):
            results[str(seed)] = arms
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")
            print(f"seed {seed} done", file=sys.stderr)
    report({str(seed): results[str(seed)] for seed in arguments.seeds})


if __name__ == "__main__":
    main()
