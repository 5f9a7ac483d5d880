"""The folder of a proof: what is finished, and in the end the proof and its report."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from esper.assembly.proving.jobs import Job
from esper.errors import ConfigError, RunError, StorageError
from esper.proof.results import Result
from esper.tolaria.durable import write_atomically

STATE_NAME, PROOF_NAME, REPORT_NAME = "state.json", "proof.json", "report.md"


class ProofFolder:
    """``path``, bound to the configuration whose digest is ``digest``. Writing raises StorageError."""

    def __init__(self, path: Path, digest: str) -> None:
        self.path = path
        self.digest = digest

    def load(self) -> dict[Job, Result]:
        """What is finished; nothing in a folder that is not there yet.

        Raises ConfigError for a folder that holds the proof of another configuration, RunError for one that
        cannot be read.
        """
        path = self.path / STATE_NAME
        if not path.exists():
            return {}
        try:
            state = json.loads(path.read_bytes())
            found = [Result.from_json(item) for item in state["finished"]]
            configuration = state["configuration"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(
                f"cannot read {path}: {error}", hint="choose another: prove.folder=FOLDER"
            ) from error
        if configuration != self.digest:
            raise ConfigError(
                f"{self.path} holds the proof of another configuration",
                hint="choose another with prove.folder=FOLDER, or remove that one",
            )
        return {Job(r.arm, r.seed, r.overrides, r.width): r for r in found}

    def prepare(self) -> None:
        """Make it; runs are large, and none of git's business."""
        self._write(self.path / "runs" / ".gitignore", "*\n")

    def save(self, finished: Iterable[Result]) -> None:
        """Replace what ``load`` returns."""
        state = {"configuration": self.digest, "finished": [result.to_json() for result in finished]}
        self._write(self.path / STATE_NAME, json.dumps(state, indent=1))

    def write(self, proof: Mapping[str, Any], report: str) -> None:
        """Write the proof, and its report."""
        self._write(self.path / PROOF_NAME, json.dumps(proof, indent=1, allow_nan=False))
        self._write(self.path / REPORT_NAME, report)

    def _write(self, path: Path, text: str) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, text.encode())
        except OSError as error:
            raise StorageError.from_os(error, path, "cannot write") from error
