"""The plot of a proof of size: accuracy against parameters, static networks beside the grown ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, PercentFormatter

from esper.proof.size import NEAR
from esper_cli.plot import dress, save
from esper_cli.terminal import count, counted

# Okabe and Ito's palette, as in the other plots.
STATIC, GROWN = "#0072B2", "#D55E00"


def plot_size(proof: Mapping[str, Any], path: Path) -> None:
    """Draw ``proof`` of ``mode=size`` into the PNG file ``path``. Raises StorageError.

    Static widths as means with one standard deviation, each grown network as a point and their mean; the band
    is what lies within ``NEAR`` points of the best, the line the smallest width that reaches it.
    """
    figure = Figure(figsize=(8.5, 5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    arms = {arm["arm"]: arm for arm in proof["arms"]}
    static = sorted((arm for name, arm in arms.items() if name != "grown"), key=lambda arm: arm["parameters"])
    axes.errorbar(
        [arm["parameters"] for arm in static],
        [arm["accuracy"]["mean"] for arm in static],
        yerr=[arm["accuracy"]["sd"] for arm in static],
        fmt="s-",
        color=STATIC,
        mec="white",
        capsize=3,
        label="static, mean and sd; the number is its width",
    )
    for arm in static:
        place = (arm["parameters"], arm["accuracy"]["mean"] - arm["accuracy"]["sd"])
        width = arm["arm"].partition("-")[2]
        axes.annotate(width, place, (0, -14), textcoords="offset points", ha="center", fontsize=8)
    runs = [run for run in proof["runs"] if run["arm"] == "grown"]
    sizes, reached = [run["parameters"] for run in runs], [run["accuracy"] for run in runs]
    axes.plot(sizes, reached, "o", ms=5, color=GROWN, alpha=0.45, mew=0)
    grown = arms["grown"]
    place = (grown["parameters"], grown["accuracy"]["mean"])
    axes.plot(*place, "D", ms=11, color=GROWN, mec="white", zorder=5, label="grown, each run and their mean")
    best = arms[f"width-{proof['best']}"]["accuracy"]["mean"]
    axes.axhspan(
        best - NEAR / 100, best, color=STATIC, alpha=0.12, lw=0, label=f"within {NEAR} points of the best"
    )
    enough = arms[f"width-{proof['enough']}"]["parameters"]
    axes.axvline(enough, color="#444444", lw=1, ls="--", label=f"width {proof['enough']} is enough")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda parameters, _: count(parameters))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=1))
    axes.set_xlabel("parameters")
    axes.set_ylabel("test accuracy")
    title = f"{proof['experiment']}, size, {counted(len(proof['seeds']), 'seed')}"
    axes.set_title(title, loc="left", fontweight="bold", pad=10)
    dress(axes)
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    save(figure, path)
