"""The plot of a proof: accuracy against training FLOPs, with the frontier of the static networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, PercentFormatter

from esper.proof.growth import label
from esper_cli.plot import dress, save
from esper_cli.terminal import count

# Okabe and Ito's palette, as in the plot of a run.
STYLES = {
    "grown": ("#D55E00", "o"),
    "small": ("#56B4E9", "s"),
    "small_flops": ("#56B4E9", "D"),
    "large": ("#0072B2", "s"),
    "large_flops": ("#0072B2", "D"),
    "sweep": ("#999999", "D"),
    "random": ("#CC79A7", "o"),
}


def plot_proof(proof: Mapping[str, Any], path: Path) -> None:
    """Draw ``proof`` into the PNG file ``path``: each run small, each arm's mean with one standard deviation.

    The line is the best static mean that as many FLOPs or fewer reach. Raises StorageError.
    """
    figure = Figure(figsize=(9, 5.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    swept = False
    for run in proof["runs"]:
        colour, marker = STYLES[run["arm"].partition("-")[0]]
        axes.plot(run["training_flops"], run["accuracy"], marker, ms=4, color=colour, alpha=0.35, mew=0)
    for arm in proof["arms"]:
        kind = arm["arm"].partition("-")[0]
        colour, marker = STYLES[kind]
        named = label(arm["arm"] if kind != "sweep" else "sweep") if kind != "sweep" or not swept else None
        swept = swept or kind == "sweep"
        axes.errorbar(
            arm["training_flops"],
            arm["accuracy"]["mean"],
            yerr=arm["accuracy"]["sd"],
            fmt=marker,
            ms=10 if kind == "grown" else 7,
            color=colour,
            mec="white",
            capsize=3,
            zorder=5 if kind == "grown" else 4,
            label=named,
        )
    _frontier(axes, [arm for arm in proof["arms"] if arm["arm"] not in ("grown", "random")])
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(lambda flops, _: count(flops))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    axes.set_xlabel("training FLOPs")
    axes.set_ylabel("test accuracy")
    axes.set_title(
        f"{proof['experiment']}, {len(proof['seeds'])} seeds", loc="left", fontweight="bold", pad=10
    )
    dress(axes)
    axes.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    save(figure, path)


def _frontier(axes: Axes, static: Sequence[Mapping[str, Any]]) -> None:
    best, xs, ys = 0.0, [], []
    for arm in sorted(static, key=lambda arm: (arm["training_flops"], -arm["accuracy"]["mean"])):
        best = max(best, arm["accuracy"]["mean"])
        xs.append(arm["training_flops"])
        ys.append(best)
    axes.step(xs, ys, where="post", color="#444444", lw=1.2, ls="--", label="static frontier", zorder=2)
