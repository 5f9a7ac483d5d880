"""The process that invents while a run trains: asked over stdin, a JSON document a line, and answering so.

Its stdin is a pipe from the run's process. At its end, which is the end of that process at the latest, this
one ends at once: a library takes a kernel whole or not at all.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from esper.assembly.inventing import Inventing, build_inventor
from esper.assembly.kernels import build_pipeline
from esper.assembly.storage import build_library, place_of
from esper.assembly.workers import build_workers
from esper.errors import EsperError
from esper.karn.invention import Place
from esper.messages import InventionRecord, Slot
from esper.tezzeret.alerts import FailureAlert


def main() -> None:
    """Invent whenever asked until the budget is spent; then wait for the end."""
    first = json.loads(sys.stdin.readline())
    cfg = DictConfig(OmegaConf.create(first["config"]))
    os.nice(cfg.karn.nice)
    asked: queue.SimpleQueue[list[Place]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(asked,), daemon=True).start()
    try:
        _serve(cfg, first["run_id"], asked)
    except EsperError as error:
        sys.exit(str(error))


def _serve(cfg: DictConfig, run_id: str, asked: queue.SimpleQueue[list[Place]]) -> None:
    left = int(cfg.karn.budget)
    with build_library(cfg) as library, build_workers(cfg, _say) or nullcontext() as workers:
        inventing = Inventing(
            library,
            build_pipeline(cfg),
            build_inventor(cfg),
            [Path(path) for path in cfg.karn.paths],
            workers=workers,
            on_failure=FailureAlert(place_of(cfg.tezzeret.get("alert_url"), "tezzeret.alert_url"), _say),
            on_queue=lambda queue: _tell("compile_queue", asdict(queue)),
            run_id=run_id,
            only_new=True,
        )
        while left > 0:
            places = asked.get()
            while not asked.empty():
                places = asked.get()  # only the latest counts
            left -= len(inventing.invent(places, min(left, cfg.karn.batch), _invented))
            for kernel_id, why in inventing.retire().items():
                _say(f"retired {kernel_id}: {why}")
    _say(f"the budget of {cfg.karn.budget} inventions is spent")
    threading.Event().wait()


def _listen(asked: queue.SimpleQueue[list[Place]]) -> None:
    for line in sys.stdin:
        places = json.loads(line)["places"]
        asked.put([Place(Slot(**place["slot"]), place["layer_kind"]) for place in places])
    os._exit(0)  # whatever this process is doing


def _invented(record: InventionRecord) -> None:
    _tell("invention", {"record": asdict(record)})


def _say(text: str) -> None:
    _tell("message", {"text": text})


_telling = threading.Lock()


def _tell(event: str, fields: dict[str, Any]) -> None:
    with _telling:
        sys.stdout.write(json.dumps({"event": event, "fields": fields}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
