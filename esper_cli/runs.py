"""``esper runs``: list, show, compare and export what was trained."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from esper.errors import RunError
from esper_cli.completion import complete_names, complete_overrides
from esper_cli.importing import importing_pytorch
from esper_cli.terminal import count, duration, percent, print_json, print_lines, table

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from esper.nissa.runs import RunStore, RunView

app = typer.Typer(no_args_is_help=True, help="List, show, compare and export runs.")


def open_store(overrides: Sequence[str] = ()) -> RunStore:
    """The runs of the configuration."""
    from esper.nissa.runs import RunStore
    from esper_cli.config import compose

    return RunStore(Path(compose(list(overrides)).runs))


def open_run(name: str, root: Path) -> RunView:
    """The run ``name`` (an id, the start of one, or ``latest``) below ``root``."""
    from esper.nissa.runs import RunStore

    return RunStore(root).open(name)


def run_ids() -> list[str]:
    """The ids of all runs, for completion."""
    return list(open_store().run_ids())


Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Overrides of the configuration, such as runs=FOLDER.",
        autocompletion=complete_overrides,
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
RunId = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="A run's id, the start of one, or latest.",
        autocompletion=complete_names(lambda: ["latest", *run_ids()]),
    ),
]


@app.command("ls", epilog="Example: esper runs ls")
def list_runs(
    overrides: Overrides = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many.")] = None,
    as_json: AsJson = False,
) -> None:
    """List runs, the latest first."""
    store = open_store(overrides or ())
    with _no_collections():
        runs = store.list(limit)
    if as_json:
        print_json([run.to_json() for run in runs])
        return
    if not runs and not store.problems:
        print_lines(f"No runs in {store.root} yet. Start one with: esper train +experiment=smoke")
        return
    rows = table(
        ("run", "status", "epochs", "loss", "accuracy", "kept", "time"),
        right=("epochs", "loss", "accuracy", "kept", "time"),
        whole=("run", "status"),
    )
    for run in runs:
        rows.add_row(
            run.run_id,
            run.status.value,
            f"{run.epochs}/{run.total_epochs}",
            "" if run.held_out_loss is None else f"{run.held_out_loss:.4f}",
            "" if run.accuracy is None else percent(run.accuracy),
            f"{run.kept}/{run.adaptations}",
            duration(run.seconds),
        )
    if runs:
        print_lines(rows)
    for problem in store.problems.values():
        print_lines(str(problem), stderr=True)


@contextmanager
def _no_collections() -> Iterator[None]:
    """For reading many records: none is garbage, and looking for some in all that is imported takes long."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@app.command("show", epilog="Example: esper runs show latest")
def show_run(run: RunId, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Show a run: its decisions with their evidence, its trials and its seeds."""
    from esper_cli.history import print_history

    view = open_store(overrides or ()).open(run)
    if as_json:
        print_json(_as_data(view))
        return
    print_history(view)


@app.command("compare", epilog="Example: esper runs compare 20261123-1812 latest")
def compare_runs(first: RunId, second: RunId, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Compare two runs: results, costs, and the first epoch in which their losses differ."""
    store = open_store(overrides or ())
    views = [store.open(first), store.open(second)]
    facts = [_facts(view) for view in views]
    parted, differences = _parting(*views), _config_differences(*views)
    if as_json:
        print_json({"runs": facts, "losses_equal_until_epoch": parted, "config": differences})
        return
    rows = table(("", "A", "B", "B - A"), right=("A", "B", "B - A"))
    for name, (show, difference) in _ROWS.items():
        a, b = (fact.get(name) for fact in facts)
        if a is None and b is None:
            continue
        between = difference(b - a) if difference and a is not None and b is not None else ""
        rows.add_row(name, *(show(value) if value is not None else "" for value in (a, b)), between)
    print_lines(f"A  {views[0].run_id}", f"B  {views[1].run_id}", "", rows, "", _parting_words(parted))
    for key, (a, b) in differences.items():
        print_lines(f"{key}: {a} in A, {b} in B")


_ROWS: dict[str, tuple[Any, Any]] = {
    "experiment": (str, None),
    "seed": (str, None),
    "status": (str, None),
    "epochs": (str, "{:+d}".format),
    "training loss": ("{:.4f}".format, "{:+.4f}".format),
    "held-out loss": ("{:.4f}".format, "{:+.4f}".format),
    "held-out accuracy": (percent, lambda share: f"{100 * share:+.2f} points"),
    "test loss": ("{:.4f}".format, "{:+.4f}".format),
    "test accuracy": (percent, lambda share: f"{100 * share:+.2f} points"),
    "parameters": ("{:,.0f}".format, "{:+,.0f}".format),
    "FLOPs a sample": (count, lambda flops: f"{'+' if flops >= 0 else '-'}{count(abs(flops))}"),
    "FLOPs spent": (count, lambda flops: f"{'+' if flops >= 0 else '-'}{count(abs(flops))}"),
    "seconds": ("{:.1f}".format, "{:+.1f}".format),
    "adaptations": (str, "{:+d}".format),
    "seeds kept": (str, "{:+d}".format),
}


def _facts(view: RunView) -> dict[str, Any]:
    summary, last = view.summary or {}, view.last
    end: Mapping[str, Any] = summary.get("end", {})
    test: Mapping[str, Any] = summary.get("test", {})
    return {
        "run_id": view.run_id,
        "experiment": view.experiment,
        "seed": view.seed,
        "status": view.status.value,
        "epochs": len(view.epochs),
        "training loss": last.loss if last else None,
        "held-out loss": last.held_out_loss if last else None,
        "held-out accuracy": last.accuracy if last else None,
        "test loss": test.get("loss"),
        "test accuracy": test.get("accuracy"),
        "parameters": end.get("parameters", view.parameters),
        "FLOPs a sample": end.get("flops_per_sample", view.flops_per_sample),
        "FLOPs spent": last.training_flops if last else None,
        "seconds": view.seconds,
        "adaptations": sum(adaptation.performed for adaptation in view.adaptations),
        "seeds kept": sum(trial.verdict == "kept" for trial in view.trials),
    }


def _parting(a: RunView, b: RunView) -> int:
    """How many epochs from the start have bit-identical training losses."""
    equal = 0
    for left, right in zip(a.epochs, b.epochs, strict=False):
        if left.loss != right.loss:
            break
        equal += 1
    return equal


def _parting_words(epochs: int) -> str:
    if not epochs:
        return "Their losses differ from the first epoch on."
    return f"Their losses are equal bit for bit up to epoch {epochs}."


def _config_differences(a: RunView, b: RunView) -> dict[str, tuple[Any, Any]]:
    from omegaconf import OmegaConf

    from esper_cli.config_errors import keys

    left, right = _config(a), _config(b)
    differing = {}
    for key in dict.fromkeys([*keys(left), *keys(right)]):
        values = OmegaConf.select(left, key), OmegaConf.select(right, key)
        if values[0] != values[1] and not any(OmegaConf.is_config(value) for value in values):
            differing[key] = values
    return differing


def _config(view: RunView) -> DictConfig:
    """The configuration that a run began with; RunError when it is not there or not readable."""
    from omegaconf import DictConfig, OmegaConf
    from yaml import YAMLError

    path = view.folder / "config.yaml"
    try:
        return DictConfig(OmegaConf.load(path))
    except (OSError, ValueError, YAMLError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise RunError(f"cannot read {path}: {reason}", hint="choose another run") from error


@app.command("export", epilog="Example: esper runs export latest --to plain")
def export_run(
    run: RunId,
    overrides: Overrides = None,
    to: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where to; RUN/export unless given.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the grown network as plain PyTorch source and safetensors, to be used without Esper."""
    with importing_pytorch():
        from esper.assembly.exporting import export_run as export
        from esper_cli.config import compose_from

    view = open_store(overrides or ()).open(run)
    cfg = compose_from(view.folder / "config.yaml", [])
    report = export(cfg, view.folder, to or view.folder / "export")
    if as_json:
        print_json({**asdict(report), "source": str(report.source), "weights": str(report.weights)})
        return
    print_lines(
        f"wrote {report.source}",
        f"wrote {report.weights}",
        f"{report.parameters:,} parameters; on a held-out batch the outputs of the exported network and of "
        f"the grown one differ by {report.max_difference:.3g} at most",
    )


def _as_data(view: RunView) -> dict[str, Any]:
    from esper.nissa.calibration import calibration

    found = calibration(view.trials)
    return {
        "run_id": view.run_id,
        "status": view.status.value,
        "experiment": view.experiment,
        "task": view.task,
        "seed": view.seed,
        "folder": str(view.folder),
        "error": view.error,
        "summary": view.summary,
        "epochs": [
            {name: value for name, value in asdict(epoch).items() if name not in ("packet", "at")}
            for epoch in view.epochs
        ],
        "adaptations": [{**asdict(item), "at": item.at.isoformat()} for item in view.adaptations],
        "transitions": [{**asdict(item), "at": item.at.isoformat()} for item in view.transitions],
        "trials": [asdict(report) for report in view.trials],
        "calibration": None if found is None else asdict(found),
        "seeds": {layer: [asdict(seed) for seed in seeds] for layer, seeds in view.seeds.items()},
        "inventions": [asdict(record) for record in view.inventions.values()],
        "faults": dict(view.fault_counts),
        "rollbacks": [{**asdict(item), "at": item.at.isoformat()} for item in view.rollbacks],
        "cache": {name: asdict(tier) for name, tier in view.cache.items()},
    }
