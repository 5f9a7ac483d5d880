"""Which run to go on with, and whether what is asked of it can be. Importing this does not import PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from omegaconf import DictConfig, OmegaConf

from esper.errors import ConfigError, RunError
from esper.nissa.run_outline import RunOutline
from esper.nissa.run_records import RunStatus
from esper.nissa.runs import RunStore
from esper.tolaria.checkpoints.folder import CheckpointFolder

if TYPE_CHECKING:
    from esper.data.splits import DataSplits

DATA_NAME: Final = "data.sha256"
"""The file in a run's folder that has the digest of what it was begun with."""

_OTHER_RUN: Final = {
    "seed": "it is another run: the order of the data and every random number follow from it",
    "data": "its checkpoint counts the steps of an epoch of the data that it had",
    "tolaria.batch_size": "its checkpoint counts steps of that size",
    "model": "its checkpoint has the weights of that network",
    "kasmina": "its checkpoint has the seeds of those layers",
    "tolaria.optimizer._target_": "its checkpoint has the state of that optimizer",
    "tolaria.start": "it has begun long ago",
}
"""Keys and groups that a run cannot change on its way, and why."""

_MAY_MOVE: Final = ("data.root",)
"""Where something is, not what it is."""

_UNTOLD: Final = (
    "runs",
    "experiment",
    "urza",
    "security",
    "audit",
    "log",
    "nissa",
    "tolaria.device",
    "tolaria.threads",
)
"""What says where and how, and is no part of what a run is."""


def changes(before: DictConfig, now: DictConfig) -> list[str]:
    """What ``now`` asks for that the run did not have so far, a line each, for people.

    Raises ConfigError for what would make it another run.
    """
    found = []
    for key, was, is_now in _differences(OmegaConf.to_container(before), OmegaConf.to_container(now)):
        why = next((why for part, why in _OTHER_RUN.items() if _below(key, part)), None)
        if why is not None and key not in _MAY_MOVE:
            raise ConfigError(
                f"a run cannot go on with another {key}: it has {was}, not {is_now}; {why}",
                hint="leave that out, or start a new run; tolaria.start=FOLDER starts one from its network",
            )
        if not any(_below(key, part) for part in _UNTOLD):
            found.append(f"{key} is {is_now} from here on, and was {was}")
    if any(line.startswith(("tolaria.epochs ", "tolaria.flops ")) for line in found):
        found.append("the learning rate follows the share of the run that is done, so it changes too")
    return found


def other_data(run: Path, data: DataSplits) -> str | None:
    """What to tell where ``data`` are not those that the run in the folder ``run`` was begun with.

    Not refused: two machines may normalise images to another last bit. An older run has no digest.
    """
    began = run / DATA_NAME
    if not began.is_file() or began.read_text() == data.digest():
        return None
    return (
        f"the data are not those that the run was begun with, to the last bit: {data.task}; "
        "it will not end with the weights of a run on either alone"
    )


def newest_unfinished(
    store: RunStore,
    experiment: str | None,
    checkpoints_of: Callable[[RunOutline], CheckpointFolder],
    tell: Callable[[str], None],
) -> RunOutline:
    """The run that was begun last and neither ended nor goes on now, and has a checkpoint to go on from.

    Of ``experiment`` alone, unless that is None. ``tell`` learns of each that was passed over, and why.
    Raises RunError where there is none.
    """
    for view in store.outlines.refreshed():
        if view.status is RunStatus.FINISHED or view.status.goes_on:
            continue
        if experiment is not None and view.experiment != experiment:
            continue
        checkpoints = checkpoints_of(view)
        if checkpoints.is_older() or any(found.manifest is not None for found in checkpoints.all()):
            return view
        tell(f"passed over run {view.run_id}: it has no checkpoint that is whole")
    of = f" of {experiment}" if experiment else ""
    start = f"+experiment={experiment or 'NAME'}"
    raise RunError(f"no unfinished run{of} in {store.root}", hint=f"start one with: esper train {start}")


def _differences(a: Any, b: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(a, dict) and isinstance(b, dict):
        for name in _either(a, b):
            yield from _differences(a.get(name), b.get(name), f"{key}.{name}" if key else str(name))
    elif a != b:
        yield key, a, b


def _either(a: Iterable[Any], b: Iterable[Any]) -> Iterable[Any]:
    return dict.fromkeys([*a, *b])


def _below(key: str, part: str) -> bool:
    return key == part or key.startswith(f"{part}.")
