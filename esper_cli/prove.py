"""``esper prove``: the grown network beside its controls, and a verdict that can go either way."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from esper_cli.completion import complete_overrides
from esper_cli.importing import importing_pytorch
from esper_cli.terminal import duration, print_json, print_lines, table

if TYPE_CHECKING:  # PyTorch takes seconds to import; --help and completion must not wait for it
    from esper.assembly.proving.jobs import Job

EPILOG = """Examples: esper prove +experiment=smoke seeds=5

esper prove +experiment=resnet tamiyo=widen mode=rescue prove.rescue.learning_rate=0.03 prove.jobs=2"""


def prove(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="OVERRIDES",
            help="What differs from the defaults: +experiment=NAME, seeds=N, GROUP=OPTION, KEY=VALUE.",
            autocompletion=complete_overrides,
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the proof as JSON.")] = False,
) -> None:
    """Train the grown network and its static controls on paired seeds, and say which does better.

    Controls are the small network, one as large as the grown one, and sizes
    between, each also at the FLOPs that the grown one spent. With mode=rescue a
    network is trained first; then it is grown, and beside that, for the same
    further FLOPs, trained on, and a larger one started from scratch. With
    mode=size a row of static widths shows which is enough, and whether growth
    ends there.

    All lands in experiments/NAME_proof/, NAME_rescue/ or NAME_size/; given
    again, it goes on where it stopped. prove.jobs=N trains N runs at once.
    """
    with importing_pytorch():
        from esper.assembly.proving.folder import PROOF_NAME, REPORT_NAME
        from esper.assembly.proving.proof import Proof
        from esper_cli.config import compose
        from esper_cli.proof_plot import plot_proof
        from esper_cli.rescue_plot import plot_rescue
        from esper_cli.size_plot import plot_size

    given = list(overrides or ())
    proof = Proof(compose(given), compose, given)
    try:
        found = proof.run(Progress(proof.settings.cfg.mode))
    except KeyboardInterrupt:
        command = shlex.join(["esper", "prove", *given])
        typer.echo(
            f"esper: interrupted; {len(proof.results)} finished runs are kept; go on with: {command}",
            err=True,
        )
        raise
    plots = {"growth": plot_proof, "rescue": plot_rescue, "size": plot_size}
    plots[found["mode"]](found, proof.folder / "plot.png")
    files = [str(proof.folder / name) for name in (PROOF_NAME, REPORT_NAME, "plot.png")]
    if as_json:
        print_json({**found, "files": files})
        return
    _print(found)
    print_lines(*(f"wrote {file}" for file in files))


@dataclass
class Progress:
    """A line on stderr before each run of a proof in ``mode``."""

    mode: str

    def __call__(self, job: Job, number: int, of: int, left: float | None) -> None:
        """Say which run comes, and how long all are to take."""
        from esper.proof.report import label

        time = f", about {duration(left)} left" if left is not None else ""
        print_lines(f"run {number} of {of}: {label(job.arm, self.mode)}, seed {job.seed}{time}", stderr=True)


def _print(proof: Mapping[str, Any]) -> None:
    from esper.proof.report import FLOPS, arm_cells, difference_cells

    costs = ("accuracy, %", "loss", FLOPS[proof["mode"]], "seconds", "parameters")
    arms = table(("arm", *costs), right=costs)
    for cells in arm_cells(proof):
        arms.add_row(*cells)
    differences = table(("grown minus", "points", "95 % interval"), right=("points", "95 % interval"))
    for cells in difference_cells(proof):
        differences.add_row(*cells)
    print_lines(arms, "", differences, "", *proof["verdict"], "")
