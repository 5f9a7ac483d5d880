"""The plot of a run: loss and held-out accuracy over its epochs, with each adaptation marked."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, PercentFormatter, StrMethodFormatter

from esper.errors import StorageError
from esper.messages import FieldReport
from esper.nissa.runs import RunView

# Okabe and Ito's palette, which stays apart for the colour-blind.
TRAIN, HELD_OUT = "#999999", "#0072B2"
GROWN = "#D55E00"
VERDICTS = {"kept": ("#009E73", "o"), "culled": ("#D55E00", "X"), "failed": ("#CC3311", "P")}
GRID = "#e6e6e6"


def plot_run(view: RunView, path: Path) -> None:
    """Draw ``view`` into the PNG file ``path``; the file appears whole or not at all.

    A dotted line marks the epoch after which a kernel was grafted (grey while its trial goes on), the marker
    on the curve where its trial ended and how. A dashed line marks growth of the host's own shape.

    Raises:
        StorageError: the file cannot be written.
    """
    figure = Figure(figsize=(9, 6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    epochs = [epoch.epoch + 1 for epoch in view.epochs]
    held_out = [epoch.held_out_loss for epoch in view.epochs]
    accuracy = [epoch.accuracy for epoch in view.epochs]
    above.plot(epochs, [epoch.loss for epoch in view.epochs], color=TRAIN, lw=1.5, label="training")
    above.plot(epochs, held_out, color=HELD_OUT, lw=2, label="held-out")
    below.plot(epochs, accuracy, color=HELD_OUT, lw=2)
    for axes, values in ((above, held_out), (below, accuracy)):
        _mark_trials(axes, epochs, values, view.trials)
        for adaptation in view.adaptations:
            if adaptation.status == "grown":
                axes.axvline(adaptation.epoch + 1, color=GROWN, lw=1.4, ls="--", zorder=0)
            elif adaptation.performed and adaptation.trial is None:
                axes.axvline(adaptation.epoch + 1, color=TRAIN, lw=1.2, ls=":", zorder=0)
        dress(axes)
    above.set_ylabel("loss (nats)")
    _scale(above, [*held_out, *(epoch.loss for epoch in view.epochs)])
    below.set_ylabel("held-out accuracy")
    below.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    below.set_xlabel("epoch")
    below.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    above.set_title(f"{view.experiment or 'run'} on {view.task}", loc="left", fontweight="bold", pad=10)
    above.set_title(view.run_id, loc="right", fontsize=8, color="#666666", pad=10)
    above.legend(
        handles=[*above.get_legend_handles_labels()[0], *_legend(view.trials), *_growths(view)],
        frameon=False,
        fontsize=9,
        loc="best",
    )
    figure.align_ylabels()
    save(figure, path)


def _scale(axes: Axes, losses: Sequence[float]) -> None:
    """A logarithmic axis where the first epochs would press all others together."""
    if losses and min(losses) > 0 and max(losses) < math.inf and max(losses) > 5 * min(losses):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_locator(NullLocator())


def _mark_trials(
    axes: Axes, epochs: Sequence[int], values: Sequence[float], trials: Iterable[FieldReport]
) -> None:
    at = dict(zip(epochs, values, strict=True))
    for trial in trials:
        colour, marker = VERDICTS.get(trial.verdict, (TRAIN, "s"))
        axes.axvline(trial.started_epoch + 1, color=colour, lw=1, ls=":", alpha=0.7, zorder=0)
        end = trial.ended_epoch + 1
        if end in at:
            axes.plot(end, at[end], marker=marker, ms=8, mfc=colour, mec="white", mew=1.2, ls="", zorder=3)


def _legend(trials: Iterable[FieldReport]) -> list[Line2D]:
    present = dict.fromkeys(trial.verdict for trial in trials)
    handles = [
        Line2D(
            [],
            [],
            color=VERDICTS[verdict][0],
            marker=VERDICTS[verdict][1],
            ls=":",
            lw=1,
            label=f"seed {verdict} (dotted: its graft)",
        )
        for verdict in present
        if verdict in VERDICTS
    ]
    for handle in handles:
        handle.set_markeredgecolor("white")
        handle.set_markersize(8)
    return handles


def _growths(view: RunView) -> list[Line2D]:
    sizes = [item.decision.get("parameters", {}) for item in view.adaptations if item.status == "grown"]
    words = {"widen": "widened", "deepen": "deepened"}
    done = dict.fromkeys(words.get(str(item.get("operator")), "grown") for item in sizes)
    return [Line2D([], [], color=GROWN, lw=1.4, ls="--", label=f"host {', '.join(done)}")] if done else []


def dress(axes: Axes) -> None:
    """The look of every plot: a faint grid, no box."""
    axes.grid(color=GRID, lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#aaaaaa")
    axes.tick_params(color="#aaaaaa", labelcolor="#333333")
    axes.margins(x=0.02, y=0.08)


def save(figure: Figure, path: Path) -> None:
    """Write the PNG file ``path``, whole or not at all; StorageError when it cannot be."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    partial = path.with_suffix(".partial")
    try:
        partial.write_bytes(drawn.getvalue())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise StorageError.from_os(error, path, "cannot write the plot") from error
