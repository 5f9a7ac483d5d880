"""``GET /api/v1/runs/{run_id}/history``: a run's whole history, or what came since, for whoever draws it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, StringConstraints
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from esper.messages import CompileQueue
from esper.nissa.api.answers import tagged_answer
from esper.nissa.api.models import Number, Outcome, RunItem
from esper.nissa.api.queries import MAX_NAME, Model
from esper.nissa.api.requests import read_query
from esper.nissa.api.run_history import RunHistories
from esper.nissa.run_records import CacheTier


class HistoryQuery(Model):
    """From where on."""

    after: Annotated[
        str | None,
        StringConstraints(max_length=40),
        Field(description="the cursor of the history that is known; what came since is told"),
    ] = None


class HistoryRun(RunItem):
    """The run as a whole; ``result`` is that of a finished one."""

    seed: Any
    preparing: Annotated[bool, Field(description="whether kernels are compiled before it starts")]
    last_event: str | None
    resumes: int
    parameters_at_start: int | None
    flops_per_sample: Number
    error: str | None
    inventing_error: str | None
    damaged_lines: int
    result: dict[str, Any] | None


class HistoryLayer(Model):
    """A layer, in the order of the network."""

    name: str
    kind: str
    seeds: int


class HistoryAdaptation(Model):
    """A decision, its outcome and trial, and its impact as shares of the held-out loss, once it is known."""

    index: int
    epoch: int
    at: str
    decision: dict[str, Any]
    outcome: Outcome
    trial: dict[str, Any] | None
    impact: dict[str, Number] | None


class HistoryInvention(Model):
    """What was invented beside the run: a kernel, or why it failed; the gain that was predicted, in nats."""

    blueprint_name: str
    origin: str
    reason: str
    predicted_impact: Number | None
    uncertainty: Number | None
    kernel_id: str | None
    failure: str | None
    at: str


class HistorySink(Model):
    """A sink of telemetry: ``up`` or ``down``, and its last error."""

    state: str
    reason: str


class History(Model):
    """A run from ``from_epoch`` on: columns by epoch, and what changed in its network.

    ``sizes`` are [epoch, layer, parameters] and ``states`` [epoch, layer, seed, state, kernel], with layers
    by their place in ``layers``.
    """

    cursor: str
    from_epoch: int
    run: HistoryRun
    layers: list[HistoryLayer]
    epochs: dict[str, list[Number]]
    sizes: list[tuple[int, int, int]]
    states: list[tuple[int, int, int, str, str | None]]
    adaptations: list[HistoryAdaptation]
    growths: list[dict[str, Any]]
    faults: list[dict[str, Any]]
    fault_counts: dict[str, int]
    rollbacks: list[dict[str, Any]]
    checkpoint: dict[str, Any] | None
    cache: dict[str, CacheTier]
    queue: Annotated[CompileQueue | None, Field(description="what is compiled for the run now")]
    sinks: dict[str, HistorySink]
    inventions: list[HistoryInvention]


class HistoryReads:
    """The handler of the endpoint ``run_history``."""

    def __init__(self, histories: RunHistories) -> None:
        self._histories = histories

    async def run_history(self, request: Request) -> Response:
        """The history; 404 when there is no such run, 400 when the cursor is none."""
        query = read_query(request, HistoryQuery)
        name = str(request.path_params["run_id"])
        if len(name) > MAX_NAME or not name.isprintable():
            raise HTTPException(404, "nothing is called that")
        try:
            history = await run_in_threadpool(self._histories.history, name, query.after)
        except ValueError as error:
            raise HTTPException(400, f"after: {error}; take the cursor of an earlier answer") from error
        return tagged_answer(request, history)
