"""The plot of a run: drawn from its journal, whole or not at all."""

from dataclasses import replace
from pathlib import Path

import pytest
from cli_support import make_run

from esper.errors import StorageError
from esper.nissa.journal import JOURNAL_NAME
from esper.nissa.runs import RunView
from esper_cli.plot import plot_run

PNG = b"\x89PNG\r\n\x1a\n"


def test_a_run_is_drawn(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    plot_run(RunView(folder).refresh(), folder / "plot.png")
    assert (folder / "plot.png").read_bytes().startswith(PNG)
    assert sorted(path.name for path in folder.iterdir()) == ["config.yaml", JOURNAL_NAME, "plot.png"]


def test_adaptations_change_the_picture(tmp_path: Path) -> None:
    view = RunView(make_run(tmp_path)).refresh()
    plot_run(view, tmp_path / "with.png")
    view.trials[0] = replace(view.trials[0], ended_epoch=8)  # the same legend, another place
    plot_run(view, tmp_path / "later.png")
    assert (tmp_path / "with.png").read_bytes() != (tmp_path / "later.png").read_bytes()


@pytest.mark.parametrize("epochs", [0, 1])
def test_a_run_of_hardly_any_epochs_is_drawn(tmp_path: Path, epochs: int) -> None:
    view = RunView(make_run(tmp_path)).refresh()
    del view.epochs[epochs:]
    plot_run(view, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(PNG)


def test_losses_that_are_no_numbers_are_drawn_as_gaps(tmp_path: Path) -> None:
    view = RunView(make_run(tmp_path)).refresh()
    view.epochs[3] = replace(view.epochs[3], loss=float("nan"), held_out_loss=float("inf"))
    plot_run(view, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(PNG)


def test_a_folder_that_is_not_there_is_a_storage_error(tmp_path: Path) -> None:
    view = RunView(make_run(tmp_path)).refresh()
    with pytest.raises(StorageError, match="cannot write the plot"):
        plot_run(view, tmp_path / "missing" / "plot.png")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_full_disk_leaves_the_plot_that_was_there(tmp_path: Path) -> None:
    view = RunView(make_run(tmp_path)).refresh()
    plot_run(view, tmp_path / "plot.png")
    before = (tmp_path / "plot.png").read_bytes()
    (tmp_path / "plot.partial").symlink_to("/dev/full")
    with pytest.raises(StorageError, match="No space left"):
        plot_run(view, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes() == before
