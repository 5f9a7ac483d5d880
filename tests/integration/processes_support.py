"""What tests/integration/test_processes.py has two processes do, in one go: to start them takes seconds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from drills.processes import EXPERIMENT, stop_and_go_on
from torch import Tensor, nn

from esper.assembly.drill_faults import PoisonedBatches
from esper.assembly.training import build_training
from esper.errors import ConfigError, RunError
from esper.nissa.control import ask
from esper.tolaria.averaging import GradientAverage, share
from esper.tolaria.distributed import Group, check_alike, copy_weights, digest, from_first
from esper.urza.library import Kernel
from esper_cli.config import compose

SHORT = "tolaria.epochs=7"
SELDOM = "tolaria.checkpoint_every=3"


def all_of_it(group: Group, folder: str) -> dict[str, Any]:
    """What each exercise found in this process."""
    exercises: dict[str, Callable[[Group, Path], Any]] = {
        "gradients": gradients,
        "agreement": agreement,
        "stopped": lambda group, place: stop_and_go_on(group, str(place), 2, SHORT, SELDOM),
        "plain": plain,
        "fault": fault_in_one,
        "poisoned": poisoned,
        "asked": asked,
    }
    return {name: run(group, Path(folder, name)) for name, run in exercises.items()}


def batch(samples: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(samples)
    return torch.randn(samples, 5, generator=generator), torch.randint(3, (samples,), generator=generator)


def network(*, norm: bool) -> nn.Sequential:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4) if norm else nn.Tanh(), nn.Linear(4, 3))
    net.register_parameter("idle", nn.Parameter(torch.zeros(2)))
    return net


def averaged(group: Group, net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """One backward pass of this process's share, averaged over the group; the mean loss."""
    average = GradientAverage(net, torch.optim.SGD(net.parameters(), 0.1), group)
    mine = share(len(y), group)
    if mine.start < mine.stop:
        loss = F.cross_entropy(net(x[mine]), y[mine])
        loss.backward()
        average.add(loss, (mine.stop - mine.start) / len(y))
    return average.finish().loss


def gradients(group: Group, _: Path) -> dict[str, Any]:
    """How far gradients of shares are from those of whole batches, and what became of statistics."""
    furthest = 0.0
    for samples in (1, 2, 3, 7, 64):  # less than two a process, uneven, even
        x, y = batch(samples)
        parts, whole = network(norm=False), network(norm=False)
        loss = averaged(group, parts, x, y)
        F.cross_entropy(whole(x), y).backward()
        assert parts.idle.grad is None, "what has no gradient anywhere must not be stepped on"
        pairs = [(a.grad, b.grad) for a, b in zip(parts.parameters(), whole.parameters(), strict=True)]
        distances = [(a - b).abs().max().item() for a, b in pairs if a is not None and b is not None]
        furthest = max(furthest, *distances, abs(float(loss - F.cross_entropy(whole(x), y))))
    net = network(norm=True)
    x, y = batch(7)
    averaged(group, net, x, y)
    mean = net[1].running_mean
    want = 0.1 * net[0](x).mean(0)
    return {"furthest": furthest, "mean": (mean - want).abs().max().item(), "digest": digest(net)}


def agreement(group: Group, _: Path) -> dict[str, Any]:
    """What is said of processes that are not alike, and of an error in the first."""

    def fail() -> None:
        raise ConfigError("asked for on purpose")

    said = {}
    net = network(norm=True)
    with torch.no_grad():
        net[0].weight[0, 0] += group.rank
    for name, act in {
        "values": lambda: check_alike(net, group, "here"),
        "raised": lambda: from_first(group, fail),
        "shapes": lambda: copy_weights(nn.Linear(2 + group.rank, 1), group, "here"),
    }.items():
        try:
            act()
        except (RunError, ConfigError) as error:
            said[name] = str(error)
    copy_weights(net, group, "here")
    check_alike(net, group, "here")
    return said


def plain(group: Group, runs: Path) -> dict[str, Any]:
    """A run that grows, as it would be in one process."""
    run = build_training(compose([*EXPERIMENT, "tolaria=ddp", f"runs={runs}", SHORT]))
    summary = run.run()
    written = sorted(path.name for path in run.info.folder.iterdir()) if group.rank else []
    return {**summary, "digests": group.gather(digest(run.trainer.model)), "written": written}


def fault_in_one(group: Group, runs: Path) -> dict[str, Any]:
    """A run whose first kernel gives gradients that are not numbers, in the last process alone."""
    run = build_training(compose([*EXPERIMENT, "tolaria=ddp", f"runs={runs}", SHORT]))
    orchestrator = run.trainer.orchestrator
    fetch = orchestrator.library.fetch
    spoilt: list[str] = []

    def spoil(kernel_id: str) -> Kernel:
        kernel = fetch(kernel_id)
        if group.rank == group.size - 1 and not spoilt:
            for parameter in kernel.module.parameters():
                parameter.register_hook(lambda gradient: gradient * float("nan"))
        spoilt.append(kernel_id)
        return kernel

    orchestrator.library.fetch = spoil  # type: ignore[method-assign]
    summary = run.run()
    states = [[seed.state.value for seed in layer.seed_list] for layer in orchestrator.layers.values()]
    verdicts = [report.verdict for report in orchestrator.seeds.reports]
    return {**summary, "states": states, "verdicts": verdicts, "digest": digest(run.trainer.model)}


def poisoned(group: Group, runs: Path) -> dict[str, Any]:
    """A run with a batch that is not a number, for which it goes back to a checkpoint."""
    run = build_training(compose([*EXPERIMENT, "tolaria=ddp", f"runs={runs}", SHORT]))
    run.trainer.batches = PoisonedBatches(run.trainer.batches, (3, 5))
    summary = run.run()
    return {**summary, "skipped": run.trainer.progress.skipped, "digest": digest(run.trainer.model)}


def asked(group: Group, runs: Path) -> dict[str, Any]:
    """A run that is asked to pause, to go back and to go on, where it leads; all processes are to follow."""
    done: list[tuple[str, str, int]] = []

    def listen(event: str, fields: Mapping[str, Any]) -> None:
        if event == "epoch" and fields["packet"]["epoch"] == 3 and not done:
            ask(run.info.folder, "pause")
            ask(run.info.folder, "rollback", epoch=3)
        if event == "control":
            done.append((fields["action"], fields["outcome"], fields["epoch"]))
            if len(done) == 2:
                ask(run.info.folder, "resume")

    listeners = [listen] if group.rank == 0 else []
    run = build_training(compose([*EXPERIMENT, "tolaria=ddp", f"runs={runs}", SHORT]), listeners=listeners)
    summary = run.run()
    return {**summary, "done": done, "digest": digest(run.trainer.model)}
