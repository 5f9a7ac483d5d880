"""Train with kernels that fail in five ways, in every seed again and again; what of it was seen, and is left.

Each kernel raises, or gives NaN, infinity, another shape or another dtype, in its second step of training. A
network survives when training ends, every fault was told of and its seed was shown in ERROR_RECOVERY, and no
value in it, in the optimizer or in the losses is other than finite. Exits 1 unless all do.

    PYTHONPATH=tests python -m drills.kernel_faults [--faults 1000]
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, get_args

import torch

from esper.assembly.drill_faults import FailingLibrary, KernelFault, graft_into
from esper.assembly.network import build_data
from esper.assembly.training import build_training
from esper.messages import SeedState, SystemStatePacket
from esper.nissa.runs import RunStore
from esper.tolaria.recovery import check_epoch, check_values
from esper.tolaria.stability import first_non_finite
from esper.tolaria.trainer import Trainer
from esper_cli.config import compose

KINDS = get_args(KernelFault)
NETWORKS = {
    "perceptron": ("+experiment=smoke", "model.hidden=[32,32,32]", "kasmina.seeds=8"),
    "residual network": ("+experiment=resnet",),
    "transformer": ("+experiment=transformer",),
}
"""Seeds along the features of vectors, the channels of images, and the features of tokens."""


def train(faults: int, runs: Path, *overrides: str) -> dict[str, Any]:
    """Graft a failing kernel into every free seed after each epoch until ``faults`` have failed."""
    own = ["tamiyo=never", "urza=memory", "tolaria.batch_size=64", "tolaria.epochs=10000", f"runs={runs}"]
    cfg = compose([*overrides, *own])
    run = build_training(cfg, data=build_data(cfg).subset(train=512, held_out=128, test=128))
    trainer = run.trainer
    library = trainer.orchestrator.library = FailingLibrary(KINDS)
    began = time.perf_counter()
    epoch, losses = 0, []
    while len(library.reports) < faults:
        packet = trainer.run_epoch(epoch)
        check_epoch(packet, (), trainer.limits)
        check_values(trainer.model, epoch, trainer.progress.global_step)
        losses += [packet.loss, packet.held_out_loss]
        _graft(trainer, packet, faults - library.found)
        epoch += 1
    view = RunStore(runs).open("latest")
    shown = Counter(
        (step.layer, step.seed_idx) for step in view.transitions if step.to_state == SeedState.ERROR_RECOVERY
    )
    failed = Counter((report.layer, report.seed_idx) for report in library.reports)
    return {
        "faults": sum(view.fault_counts.values()),
        "kinds": len({report.kernel_id for report in library.reports}),
        "each seed shown in ERROR_RECOVERY": shown == failed,
        "seeds": len(failed),
        "epochs": epoch,
        "not finite": _not_finite(trainer) + sum(not math.isfinite(loss) for loss in losses),
        "seconds": round(time.perf_counter() - began, 1),
    }


def _graft(trainer: Trainer, packet: SystemStatePacket, left: int) -> None:
    free = [
        (layer, idx)
        for layer, metrics in packet.layer_metrics.items()
        for idx, state in enumerate(metrics.seed_states)
        if state is SeedState.DORMANT
    ]
    for layer, idx in free[: max(left, 0)]:
        outcome = trainer.orchestrator.apply(graft_into(layer, idx), packet)
        assert outcome is not None
        assert outcome.status == "grafted", outcome.reason


def _not_finite(trainer: Trainer) -> int:
    moments = [value for state in trainer.optimizer.state.values() for value in state.values()]
    tensors = [value for value in moments if isinstance(value, torch.Tensor)]
    broken = sum(not bool(torch.isfinite(tensor).all()) for tensor in tensors)
    return broken + (first_non_finite(trainer.model) is not None)


def survived(found: dict[str, Any], faults: int) -> bool:
    """Whether ``found`` says that all of it went well."""
    return bool(
        found["faults"] == faults
        and found["kinds"] == len(KINDS)
        and found["each seed shown in ERROR_RECOVERY"]
        and found["not finite"] == 0
    )


def main() -> int:
    """Train each network and say what was seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--faults", type=int, default=1000)
    faults = parser.parse_args().faults
    good = True
    for name, overrides in NETWORKS.items():
        with tempfile.TemporaryDirectory() as folder:
            found = train(faults, Path(folder), *overrides)
        good &= survived(found, faults)
        print(json.dumps({"network": name, **found}), flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
