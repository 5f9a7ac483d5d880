"""A proof as tables and as Markdown, whatever its mode."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from esper.proof import growth, rescue, size

_INTERVALS = (
    "Intervals are two-sided, 95 %, Student's t over paired differences. None is corrected for their number."
)
_NOTES = {
    "growth": "That of the share of the gap is Fieller's. The best static size is chosen on these same runs, "
    "which favours it.",
    "rescue": "FLOPs are those spent after the base, which the trained-on and the grown network start from. "
    "The large network is the smallest static one with at least as many parameters as the grown one ends "
    "with.",
    "size": "All networks are trained for the same epochs. Which width is best, and which is enough, is "
    "found on these same runs.",
}
_PLOTS = {
    "growth": "Accuracy against training FLOPs",
    "rescue": "Held-out accuracy against further FLOPs, and test accuracy at the end, paired by seed",
    "size": "Accuracy against parameters",
}
FLOPS = {"growth": "training FLOPs", "rescue": "further FLOPs", "size": "training FLOPs"}
"""What FLOPs are called, by mode."""


def label(arm: str, mode: str) -> str:
    """The name of an arm for people."""
    labels = {"growth": growth.label, "rescue": rescue.LABELS.__getitem__, "size": size.label}
    return labels[mode](arm)


def markdown(proof: Mapping[str, Any]) -> str:
    """The whole report; ``proof`` is what ``analyse`` returns beside what the run of it recorded."""
    mode = proof["mode"]
    lines = [
        f"# Proof: {proof['experiment']}, mode {mode}",
        "",
        f"{len(proof['seeds'])} paired seeds, {proof['seeds'][0]} to {proof['seeds'][-1]}; "
        "accuracy and loss on the test split, which each run measures once, at its end.",
        "",
        "## Verdict",
        *(f"- {sentence[0].upper()}{sentence[1:]}." for sentence in proof["verdict"]),
        "",
        "## Arms",
        f"| arm | accuracy, % | loss | {FLOPS[mode]} | seconds | parameters |",
        "|---|---|---|---|---|---|",
        *(f"| {' | '.join(cells)} |" for cells in arm_cells(proof)),
        "",
        *([f"The base took {proof['base_flops']:.3g} FLOPs before.", ""] if mode == "rescue" else []),
        "## Grown minus each other arm",
        "| arm | points | 95 % interval |",
        "|---|---|---|",
        *(f"| {' | '.join(cells)} |" for cells in difference_cells(proof)),
        "",
        f"{_INTERVALS} {_NOTES[mode]}",
        "",
        f"![{_PLOTS[mode]}](plot.png)",
        "",
        "## Run it again",
        "```text",
        proof["command"],
        "```",
        ", ".join(f"{name} {version}" for name, version in proof["versions"].items()),
        "",
    ]
    return "\n".join(lines)


def arm_cells(proof: Mapping[str, Any]) -> list[list[str]]:
    """The table of arms: name, accuracy in percent and loss as mean +- sd, FLOPs, seconds, parameters."""
    return [
        [
            label(arm["arm"], proof["mode"]),
            f"{100 * arm['accuracy']['mean']:.2f} ± {100 * arm['accuracy']['sd']:.2f}",
            f"{arm['loss']['mean']:.4f} ± {arm['loss']['sd']:.4f}",
            f"{arm['training_flops']:.3g}",
            f"{arm['seconds']:.1f}",
            f"{arm['parameters']:,.0f}",
        ]
        for arm in proof["arms"]
    ]


def difference_cells(proof: Mapping[str, Any]) -> list[list[str]]:
    """The table of differences: name, mean in points, interval."""
    return [
        [label(arm, proof["mode"]), f"{item['mean']:+.2f}", f"[{item['low']:+.2f}, {item['high']:+.2f}]"]
        for arm, item in proof["differences"].items()
    ]
