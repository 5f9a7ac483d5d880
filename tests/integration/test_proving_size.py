"""``esper prove mode=size``: a row of static widths beside the grown network."""

from __future__ import annotations

from pathlib import Path

import proving_support as support
import pytest

from esper_cli.size_plot import plot_size


@pytest.mark.parametrize("host", sorted(support.HOSTS))
def test_static_widths_reach_past_the_grown_one_and_are_trained_as_long(host: str, tmp_path: Path) -> None:
    # Widening by a fifth keeps the row short.
    grown = [] if host == "mlp" else ["tamiyo.widening.factor=1.2"]
    step = ["prove.width_step=4"] if host == "sequence" else []
    given = support.overrides(host, tmp_path / "size", *grown, *step, "mode=size")
    proof = support.ran(given)
    widths = sorted({run["width"] for run in proof["runs"] if run["width"] is not None})
    assert len(widths) >= 2
    assert proof["grown_width"] < widths[-1]
    assert proof["best"] in widths
    assert proof["enough"] <= proof["best"]
    for width in widths:
        runs = support.runs_of(proof, f"width-{width}")
        assert sorted(runs) == [100, 101]
        assert len({run["parameters"] for run in runs.values()}) == 1
    for run in proof["runs"]:
        losses, _ = support.epochs_of(tmp_path / "size", run)
        assert len(losses) == 2
    assert "## Verdict\n- The smallest width within" in (tmp_path / "size" / "report.md").read_text()
    plot_size(proof, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 20_000
