"""Cut-down proofs: tiny networks on slices of the shipped data, two epochs, two seeds."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra.types import RunMode
from omegaconf import DictConfig, open_dict, read_write

from esper.assembly.proving.proof import Proof
from esper_cli.config import NAME, compose, loader

HOSTS = {
    # Kernels in seeds, and growth at random beside it.
    "mlp": [
        "+experiment=smoke",
        "tamiyo=schedule",
        "tamiyo.at=[0.3]",
        "karn.paths=[blueprints/low_rank.yaml]",
        "model.hidden=[8,8]",
    ],
    # Wider layers.
    "resnet": [
        "+experiment=resnet",
        "data=digits",
        "tamiyo=widen",
        "tamiyo.at=[0.3]",
        "tamiyo.widening.factor=2",
        "model.width=2",
        "prove.random=false",
    ],
    "sequence": [
        "+experiment=text",
        "data.length=8",
        "data.samples=256",
        "data.held_out=64",
        "data.test=96",
        "tamiyo=widen",
        "tamiyo.at=[0.3]",
        "tamiyo.widening.factor=2",
        "model.dim=8",
        "prove.random=false",
    ],
}
LONG = bool(os.environ.get("ESPER_LONG"))
"""Whether to try every host: ESPER_LONG=1 pytest tests/integration; CI tries those that train quickly."""
if not LONG:
    del HOSTS["resnet"]

COMMON = ["tolaria.epochs=2", "seeds=2"]


def overrides(host: str, folder: Path, *more: str) -> list[str]:
    return [*HOSTS[host], *COMMON, f"prove.folder={folder}", *more]


def composed(overrides: list[str]) -> DictConfig:
    """As ``compose``, which reads everything three times to check it, in a third of the time."""
    with loader() as config_loader:
        cfg = config_loader.load_configuration(NAME, overrides, RunMode.RUN)
    with read_write(cfg), open_dict(cfg):
        del cfg.hydra
    return cfg


def proof_of(given: Sequence[str]) -> Proof:
    """The first configuration is checked, as that of every proof; those of its runs differ in known keys."""
    return Proof(compose(list(given)), composed, given)


def ran(given: Sequence[str], watch: Callable[..., None] = lambda *_: None) -> dict[str, Any]:
    return proof_of(given).run(watch)


def numbers(proof: Any) -> Any:
    """A proof without what differs from one making of it to the next: names, and seconds."""
    apart = ("seconds", "run", "command", "overrides")
    if isinstance(proof, dict):
        return {key: numbers(value) for key, value in proof.items() if key not in apart}
    return [numbers(item) for item in proof] if isinstance(proof, list | tuple) else proof


def runs_of(proof: dict[str, Any], arm: str) -> dict[int, dict[str, Any]]:
    """The runs of an arm by seed."""
    return {run["seed"]: run for run in proof["runs"] if run["arm"] == arm}


def epochs_of(folder: Path, run: dict[str, Any]) -> tuple[list[tuple[float, float]], int]:
    """Training and held-out loss of each epoch, and the epoch of the first decision."""
    events = [json.loads(line) for line in (folder / run["run"] / "journal.jsonl").read_text().splitlines()]
    packets = [event["packet"] for event in events if event["event"] == "epoch"]
    decided = [event["epoch"] for event in events if event["event"] == "decision"]
    return [(packet["loss"], packet["held_out_loss"]) for packet in packets], min(decided, default=-1)


def step_flops(given: Sequence[str], folder: Path, run: dict[str, Any]) -> float:
    """A bound on what one step and one evaluation of a run take."""
    cfg = composed(list(given))
    summary = json.loads((folder / run["run"] / "summary.json").read_text())
    samples = 3.2 * cfg.tolaria.batch_size + cfg.data.held_out
    return float(samples * summary["end"]["flops_per_sample"])
