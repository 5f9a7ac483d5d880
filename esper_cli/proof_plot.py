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
from esper_cli.terminal import count, counted

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
    """Draw ``proof`` into the PNG file ``path``: accuracy against FLOPs, and grown minus each other arm.

    Left: each run small, each arm's mean with one standard deviation; the line is the best static mean that
    as many FLOPs or fewer reach. Arms with grown's FLOPs stand side by side, so that each can be seen.
    Right: mean paired differences with their intervals. Raises StorageError.
    """
    figure = Figure(figsize=(12, 5.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    reached, differences = figure.subplots(1, 2, width_ratios=(1.35, 1))
    _draw_arms(reached, proof)
    _draw_differences(differences, proof)
    figure.legend(*reached.get_legend_handles_labels(), frameon=False, ncols=4, loc="outside lower center")
    save(figure, path)


def _draw_arms(axes: Axes, proof: Mapping[str, Any]) -> None:
    places = _places(proof["arms"])
    runs: dict[str, list[float]] = {}
    for run in proof["runs"]:
        runs.setdefault(run["arm"], []).append(run["accuracy"])
    named: set[str] = set()
    for arm in proof["arms"]:
        kind = arm["arm"].partition("-")[0]
        colour, marker = STYLES[kind]
        x, accuracy = places[arm["arm"]], runs[arm["arm"]]
        axes.plot([x] * len(accuracy), accuracy, marker, ms=3.5, color=colour, alpha=0.35, mew=0)
        axes.errorbar(
            x,
            arm["accuracy"]["mean"],
            yerr=arm["accuracy"]["sd"],
            fmt=marker,
            ms=11 if kind == "grown" else 7,
            color=colour,
            mec="white",
            capsize=3,
            zorder=5 if kind == "grown" else 4,
            label=None if kind in named else label("sweep" if kind == "sweep" else arm["arm"]),
        )
        named.add(kind)
        if kind == "sweep":
            width = arm["arm"].partition("-")[2]
            offset = (0, 4)
            axes.annotate(
                width, (x, max(accuracy)), offset, textcoords="offset points", ha="center", fontsize=8
            )
    _frontier(axes, [arm for arm in proof["arms"] if arm["arm"] not in ("grown", "random")])
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(lambda flops, _: count(flops))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    axes.set_xlabel("training FLOPs")
    axes.set_ylabel("test accuracy")
    title = f"{proof['experiment']}, {counted(len(proof['seeds']), 'seed')}"
    axes.set_title(title, loc="left", fontweight="bold", pad=10)
    dress(axes)


def _places(arms: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Where each arm stands: at its FLOPs; those with grown's stand side by side, grown among them."""
    places = {arm["arm"]: arm["training_flops"] for arm in arms}
    at_grown = [a for a in places if a.endswith("_flops") or a.startswith("sweep-")]
    order = ["small_flops", *(a for a in at_grown if a.startswith("sweep-")), "large_flops", "random"]
    beside = [arm for arm in order if arm in at_grown]
    beside.insert(len(beside) // 2, "grown")
    step = (max(places.values()) / min(places.values())) ** (1 / 28)
    for index, arm in enumerate(beside):
        places[arm] = places["grown"] * step ** (index - beside.index("grown"))
    return places


def _draw_differences(axes: Axes, proof: Mapping[str, Any]) -> None:
    arms = list(proof["differences"])
    for y, arm in enumerate(arms):
        found = proof["differences"][arm]
        told = found["low"] > 0 or found["high"] < 0
        colour = "#009E73" if found["low"] > 0 else "#D55E00" if told else "#777777"
        reach = [[found["mean"] - found["low"]], [found["high"] - found["mean"]]]
        axes.errorbar(found["mean"], y, xerr=reach, fmt="o", ms=6, color=colour, capsize=3, mec="white")
    axes.axvline(0, color="#444444", lw=1)
    axes.set_yticks(range(len(arms)), [label(arm) for arm in arms])
    axes.set_ylim(len(arms) - 0.5, -0.5)
    axes.set_xlabel("points, 95 % interval")
    axes.set_title("grown minus each other arm", loc="left", fontweight="bold", pad=10)
    dress(axes)


def _frontier(axes: Axes, static: Sequence[Mapping[str, Any]]) -> None:
    best, xs, ys = 0.0, [], []
    for arm in sorted(static, key=lambda arm: (arm["training_flops"], -arm["accuracy"]["mean"])):
        best = max(best, arm["accuracy"]["mean"])
        xs.append(arm["training_flops"])
        ys.append(best)
    axes.step(xs, ys, where="post", color="#444444", lw=1.2, ls="--", label="static frontier", zorder=2)
