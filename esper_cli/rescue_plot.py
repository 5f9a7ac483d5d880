"""The plot of a rescue: how each arm came along, and where each seed ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from esper.proof.rescue import LABELS
from esper_cli.plot import dress, save
from esper_cli.terminal import count, counted

# Okabe and Ito's palette, as in the other plots.
COLOURS = {"base": "#666666", "train_on": "#56B4E9", "grown": "#D55E00", "large": "#0072B2"}
PAIRED = ("base", "train_on", "large", "grown")
"""The arms from left to right where each seed is a line."""


def plot_rescue(proof: Mapping[str, Any], path: Path) -> None:
    """Draw ``proof`` of ``mode=rescue`` into the PNG file ``path``. Raises StorageError.

    On the left the held-out accuracy after each epoch against further FLOPs, seeds thin and their mean bold,
    above the base; on the right the test accuracy at the end, a line a seed.
    """
    figure = Figure(figsize=(10.5, 5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(1.35, 1))
    runs = {arm: [run for run in proof["runs"] if run["arm"] == arm] for arm in LABELS}
    _curves(left, runs)
    _ends(right, runs, {arm["arm"]: arm for arm in proof["arms"]})
    figure.suptitle(
        f"{proof['experiment']}, rescue, {counted(len(proof['seeds']), 'seed')}",
        x=0.01,
        ha="left",
        fontweight="bold",
        fontsize=12,
    )
    save(figure, path)


def _curves(axes: Axes, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    base = fmean(run["curve"][-1][1] for run in runs["base"])
    axes.axhline(base, color=COLOURS["base"], lw=1.5, ls="--", label=LABELS["base"], zorder=2)
    kept = [base]
    for arm in ("train_on", "large", "grown"):
        curves = [np.array(run["curve"]).T for run in runs[arm]]
        for flops, accuracy in curves:
            axes.plot(flops, accuracy, color=COLOURS[arm], lw=0.8, alpha=0.35)
            kept += list(accuracy[flops >= flops[-1] / 2])
        grid = np.linspace(max(c[0][0] for c in curves), min(c[0][-1] for c in curves), 200)
        mean = np.mean([np.interp(grid, *curve) for curve in curves], axis=0)
        bold = 2.6 if arm == "grown" else 2
        axes.plot(grid, mean, color=COLOURS[arm], lw=bold, label=LABELS[arm], zorder=4)
    # A network from scratch begins near chance, which would press all the rest into one line.
    spread = max(max(kept) - min(kept), 0.01)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(lambda flops, _: count(flops))
    axes.set_xlabel("further FLOPs")
    axes.set_ylabel("held-out accuracy")
    _dress(axes)
    axes.set_xlim(left=0)
    axes.set_ylim(min(kept) - 0.1 * spread, max(kept) + 0.1 * spread)
    axes.legend(frameon=False, fontsize=9, loc="lower right")


def _ends(
    axes: Axes, runs: Mapping[str, Sequence[Mapping[str, Any]]], arms: Mapping[str, Mapping[str, Any]]
) -> None:
    places = {arm: place for place, arm in enumerate(PAIRED)}
    for same_seed in zip(*(runs[arm] for arm in PAIRED), strict=True):
        for before, after in pairwise(same_seed):
            ends = [places[before["arm"]], places[after["arm"]]]
            axes.plot(ends, [before["accuracy"], after["accuracy"]], color="#bbbbbb", lw=1, zorder=2)
        for run in same_seed:
            axes.plot(places[run["arm"]], run["accuracy"], "o", ms=4, color=COLOURS[run["arm"]], alpha=0.5)
    for arm, place in places.items():
        reached = arms[arm]["accuracy"]
        axes.errorbar(
            place + 0.14,
            reached["mean"],
            yerr=reached["sd"],
            fmt="D" if arm == "grown" else "s",
            ms=9,
            color=COLOURS[arm],
            mec="white",
            capsize=3,
            zorder=4,
        )
    axes.axhline(arms["base"]["accuracy"]["mean"], color=COLOURS["base"], lw=1.5, ls="--", zorder=1)
    axes.set_xticks(list(places.values()), [LABELS[arm].replace(", ", ",\n") for arm in PAIRED])
    axes.set_ylabel("test accuracy at the end: seeds, mean and sd")
    _dress(axes)
    axes.set_xlim(-0.4, len(PAIRED) - 0.5)


def _dress(axes: Axes) -> None:
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=1))
    dress(axes)
