"""One run from its first event to its last: what is recorded whatever ends it."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from esper.data.splits import Split
from esper.errors import EsperError, RunError, StorageError
from esper.tolaria.durable import write_atomically
from esper.tolaria.evaluation import HeldOut
from esper.tolaria.trainer import Trainer
from esper.tolaria.weight_average import WeightAverage

SUMMARY_NAME = "summary.json"
"""Name of the file that a finished run has."""


@dataclass(frozen=True, slots=True)
class RunInfo:
    """What a run is called and where it lives."""

    run_id: str
    folder: Path
    experiment: str
    task: str
    seed: int


class Run:
    """A training run and its folder. ``test`` is the split that is reported; it is measured once.

    ``beside`` ends what goes on beside the training; it is called when the run ends, however it does.
    """

    def __init__(
        self, info: RunInfo, trainer: Trainer, test: Split, beside: Callable[[], None] = lambda: None
    ) -> None:
        self.info = info
        self.trainer = trainer
        self.test = test
        self._end_beside = beside
        self._size_at_start = self._size()
        self._resumed = False
        self._skipped: list[str] = []

    def restore(self) -> None:
        """Go on from the newest checkpoint.

        Raises CheckpointError when there is none that is whole, and RunError when no epoch is left to train:
        a run that ended after its last epoch but before its summary is finished, another is left as it is.
        """
        state, skipped = self.trainer.checkpoints.load_newest_good()
        self.trainer.restore(state)
        for error in skipped:
            self.trainer.recorder.emit("message", text=f"passed over: {error.message}")
        # By their names: a journal says of no place on this machine where it is.
        folder = f"{self.info.folder / 'checkpoints'}/"
        self._skipped = [error.message.replace(folder, "") for error in skipped]
        done, settings = self.trainer.progress.epochs_done, self.trainer.settings
        whole = (self.info.folder / SUMMARY_NAME).exists()
        if settings.flops is not None:
            if self.trainer.finished and whole:
                raise RunError(
                    f"run {self.info.run_id} has used its tolaria.flops of {settings.flops:g}",
                    hint=f"to train on: esper train --resume {self.info.run_id} tolaria.flops=N",
                )
        elif done > settings.epochs or (done == settings.epochs and whole):
            raise RunError(
                f"run {self.info.run_id} has done {done} epochs, and tolaria.epochs is {settings.epochs}",
                hint=f"to train on: esper train --resume {self.info.run_id} tolaria.epochs=N",
            )
        self._resumed = True

    def run(self) -> dict[str, Any]:
        """Train to the end and return the summary, which is also written to ``summary.json``.

        An error or Ctrl-C is recorded in the journal and passed on.
        """
        emit = self.trainer.recorder.emit
        try:
            self._announce()
            if self.trainer.group.rank == 0:  # of an end that is none any more
                (self.info.folder / SUMMARY_NAME).unlink(missing_ok=True)
            self.trainer.fit()
            summary = self._summary()
            if self.trainer.group.rank == 0:
                self._write(summary)
        except KeyboardInterrupt:
            emit("run_interrupted", epoch=self.trainer.progress.epochs_done)
            raise
        except Exception as error:
            text = str(error) if isinstance(error, EsperError) else f"{type(error).__name__}: {error}"
            with contextlib.suppress(StorageError):  # on a full disk the first error is the one to pass on
                emit("run_failed", error=text)
            raise
        else:
            emit("run_finished", summary=summary)
            return summary
        finally:
            self._end_beside()
            self.trainer.orchestrator.library.close()
            self.trainer.recorder.close()

    def _announce(self) -> None:
        last_epoch = self.trainer.progress.epochs_done - 1
        self.trainer.recorder.emit(
            "run_started",
            run_id=self.info.run_id,
            experiment=self.info.experiment,
            task=self.info.task,
            seed=self.info.seed,
            resumed_from_epoch=last_epoch if self._resumed else None,
            resumed_from_step=self.trainer.progress.global_step if self._resumed else None,
            damaged_checkpoints=self._skipped,
            parameters=self._size_at_start["parameters"],
            flops_per_sample=self._size_at_start["flops_per_sample"],
            total_epochs=self.trainer.total_epochs,
            layers={
                name: {"kind": layer.kind, "seeds": len(layer.seeds)}
                for name, layer in self.trainer.seeds.layers.items()
            },
        )

    def _size(self) -> dict[str, float]:
        return {
            "parameters": sum(p.numel() for p in self.trainer.model.parameters()),
            "flops_per_sample": self.trainer.flops().forward,
        }

    def _summary(self) -> dict[str, Any]:
        trainer = self.trainer
        progress, library = trainer.progress, trainer.orchestrator.library
        average = trainer.held_out.average
        tested = HeldOut(trainer.model, self.test.x, self.test.y, trainer.group, average).evaluate()
        last = progress.history[-1]
        states = Counter(
            layer.seed(idx).state.value
            for layer in trainer.seeds.layers.values()
            for idx in range(len(layer.seeds))
        )
        return {
            "run_id": self.info.run_id,
            "experiment": self.info.experiment,
            "task": self.info.task,
            "seed": self.info.seed,
            "epochs": progress.epochs_done,
            "steps": progress.global_step,
            "seconds": progress.seconds,
            "samples_per_second": progress.samples / progress.seconds,
            "start": self._size_at_start,
            "end": self._size(),
            "training_flops": progress.flops,
            "held_out": {"loss": last.loss, "accuracy": last.accuracy},
            "test": {"loss": tested.loss, "accuracy": tested.accuracy},
            "adaptations": [asdict(report) for report in trainer.seeds.reports],
            "seeds": dict(states),
            "rollbacks": [asdict(rollback) for rollback in progress.rollbacks],
            "cache": {name: asdict(tier) for name, tier in library.tier_counts().items()},
            "weights_sha256": weights_digest(trainer.model, trainer.held_out.average),
            "folder": str(self.info.folder),
        }

    def _write(self, summary: dict[str, Any]) -> None:
        path = self.info.folder / SUMMARY_NAME
        try:
            write_atomically(path, json.dumps(summary, indent=2).encode())
        except OSError as error:
            raise StorageError.from_os(error, path, "cannot write the summary") from error


def weights_digest(model: nn.Module, average: WeightAverage | None = None) -> str:
    """SHA-256 over the names and bytes of all parameters and buffers: equal only for equal networks.

    Where there is an ``average``, over the network of the averages.
    """
    digest = hashlib.sha256()
    with contextlib.nullcontext() if average is None else average.swapped():
        for name, tensor in model.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
