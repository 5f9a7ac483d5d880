"""A run that is removed, and the word of it. Importing this does not import PyTorch."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from pathlib import Path

from omegaconf import DictConfig

from esper.assembly.auditing import place_of_runs
from esper.assembly.storage import build_library
from esper.errors import StorageError
from esper.nissa.journal import JOURNAL_NAME, Journal
from esper.nissa.runs import RunStore
from esper.security.audit import Action
from esper.urza.trail import TrailQuery


def remove_run(cfg: DictConfig, run_id: str) -> bool:
    """Remove the folder of a run, entered in the library's trail before; whether there was any.

    Of one that is gone already, and began here, it is entered that it may be. Raises RunError for one that
    goes on or is not known, StorageError.
    """
    root = Path(cfg.runs)
    folder = root / run_id
    with build_library(cfg, adopt_later=True) as library, ExitStack() as held:
        if run_id in RunStore(root).run_ids():
            held.enter_context(Journal(folder / JOURNAL_NAME))  # nobody goes on with it meanwhile
        elif run_id not in [each.subject for each in library.trail.entries(TrailQuery("run.began", run_id))]:
            RunStore(root).find(run_id)  # which is not there, and says what is
        library.note(Action("run.removed", run_id, detail={"below": place_of_runs(root)}))
        there = folder.exists()
        try:
            if there:
                shutil.rmtree(folder)
        except OSError as error:
            raise StorageError.from_os(error, folder, "cannot remove") from error
    return there
