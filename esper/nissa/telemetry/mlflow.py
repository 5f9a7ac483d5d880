"""A sink of runs in MLflow, through its own client."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from esper.errors import SinkUnavailable
from esper.nissa.telemetry.messages import Message
from esper.nissa.telemetry.scalars import NOTED, Scalars

if TYPE_CHECKING:
    from mlflow import MlflowClient

RUN_TAG = "esper.run_id"
"""The tag that says which of our runs a run of MLflow is."""

_PARAMETERS = ("experiment", "task", "seed", "parameters", "flops_per_sample", "total_epochs")
_ENDS = {"run_finished": "FINISHED", "run_failed": "FAILED", "run_interrupted": "KILLED"}
_MOST_METRICS, _MOST_CHARACTERS = 500, 4900  # of what it takes in one request, in one tag
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",  # reports to its makers
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # the same messages come again anyway
}


class Mlflow:
    """One run of MLflow for each of ours, found again when ours goes on: parameters, metrics, how it ended.

    What changes a run, such as a decision, is a tag with its place. The health of seeds is left out: MLflow
    keeps each number as a row.
    """

    name = "mlflow"

    def __init__(self, uri: str, experiment: str, run_id: str) -> None:
        """``uri`` is that of a tracking server or a database. Connects to nothing yet.

        Environment variables of MLflow's own count where they are set.
        """
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        self._uri, self._experiment, self._run_id = uri, experiment, run_id
        self._scalars = Scalars()
        self._client: MlflowClient | None = None
        self._their_run = ""

    def position(self) -> None:
        """It keeps none."""

    def write(self, batch: Sequence[Message]) -> None:
        """Log what ``batch`` has, in few requests."""
        # Here, on the sink's own thread: the import takes seconds.
        from mlflow.entities import Metric, Param, RunTag
        from mlflow.exceptions import MlflowException

        told = [message for message in batch if message.kind != "health"]
        scalars = [scalar for message in told for scalar in self._scalars.of(message)]
        metrics = [Metric(each.path, each.value, int(1000 * each.at), each.step) for each in scalars]
        events = [message for message in batch if message.kind == "event"]
        params = [Param(name, str(value)) for event in events for name, value in _parameters(event).items()]
        tags = [RunTag(*_tag(event)) for event in events if event.name in NOTED]
        try:
            client = self._connected()
            for first in range(0, len(metrics), _MOST_METRICS):
                client.log_batch(self._their_run, metrics=metrics[first : first + _MOST_METRICS])
            if params or tags:
                client.log_batch(self._their_run, params=params, tags=tags)
            for event in events:
                if event.name in _ENDS:
                    client.set_terminated(self._their_run, _ENDS[event.name])
        except MlflowException as error:
            raise SinkUnavailable(str(error)[:200]) from None

    def idle(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing is open between two requests."""

    def _connected(self) -> MlflowClient:
        """The client, once there is a run of MLflow to log to."""
        if self._client is None:
            from mlflow import MlflowClient
            from sqlalchemy.exc import SADeprecationWarning

            logging.getLogger("mlflow").setLevel(logging.WARNING)
            warnings.filterwarnings("ignore", category=SADeprecationWarning, module="mlflow")
            client = MlflowClient(self._uri)
            self._their_run = self._run_of(client)
            self._client = client
        return self._client

    def _run_of(self, client: MlflowClient) -> str:
        experiment = client.get_experiment_by_name(self._experiment)
        ident = experiment.experiment_id if experiment else client.create_experiment(self._experiment)
        found = client.search_runs([ident], f"tags.`{RUN_TAG}` = '{self._run_id}'", max_results=1)
        if found:
            client.update_run(found[0].info.run_id, status="RUNNING")
            return str(found[0].info.run_id)
        made = client.create_run(ident, run_name=self._run_id, tags={RUN_TAG: self._run_id})
        return str(made.info.run_id)


def _parameters(event: Message) -> dict[str, object]:
    # A parameter of MLflow cannot be changed, so those of a run that goes on stay as they were.
    if event.name != "run_started" or event.fields.get("resumed_from_epoch") is not None:
        return {}
    return {name: event.fields[name] for name in _PARAMETERS if name in event.fields}


def _tag(event: Message) -> tuple[str, str]:
    return f"esper.{event.name}.{event.place}", event.json[:_MOST_CHARACTERS]
