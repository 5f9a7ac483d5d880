"""A sink that speaks OTLP over HTTP, through OpenTelemetry's own exporters."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from esper.errors import SinkUnavailable
from esper.nissa.telemetry.messages import Message
from esper.nissa.telemetry.scalars import Scalar, Scalars

if TYPE_CHECKING:
    from opentelemetry.sdk._logs import ReadableLogRecord
    from opentelemetry.sdk.metrics.export import Metric

CALL_SECONDS = 5.0
"""How long one export may take, with what the exporter tries again by itself."""


class Otlp:
    """Numbers as gauges named ``esper.*`` and events as log records named ``esper.EVENT``.

    The resource is ``service.name=esper`` with the run's id as ``service.instance.id``, and nothing of the
    host.
    """

    name = "otlp"

    def __init__(self, endpoint: str | None, run_id: str) -> None:
        """``endpoint`` is the base URL of a collector; None for what the OTEL_* variables say."""
        from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope

        logging.getLogger("opentelemetry.exporter").setLevel(logging.CRITICAL)  # the writer says it, once
        base = endpoint.rstrip("/") if endpoint else None
        self._metrics = OTLPMetricExporter(base and f"{base}/v1/metrics", timeout=CALL_SECONDS)
        self._logs = OTLPLogExporter(base and f"{base}/v1/logs", timeout=CALL_SECONDS)
        self._resource = Resource({"service.name": "esper", "service.instance.id": run_id})
        self._scope = InstrumentationScope("esper")
        self._scalars = Scalars()

    def position(self) -> None:
        """It keeps none."""

    def write(self, batch: Sequence[Message]) -> None:
        """Export the numbers, then the events."""
        from opentelemetry.sdk._logs.export import LogRecordExportResult
        from opentelemetry.sdk.metrics.export import (
            MetricExportResult,
            MetricsData,
            ResourceMetrics,
            ScopeMetrics,
        )

        scalars = [scalar for message in batch for scalar in self._scalars.of(message)]
        if scalars:
            scope = ScopeMetrics(self._scope, _gauges(scalars), "")
            told = self._metrics.export(MetricsData([ResourceMetrics(self._resource, [scope], "")]))
            if told is not MetricExportResult.SUCCESS:
                raise SinkUnavailable("the collector took no metrics")
        records = [self._log_record(message) for message in batch if message.kind == "event"]
        if records and self._logs.export(records) is not LogRecordExportResult.SUCCESS:
            raise SinkUnavailable("the collector took no log records")

    def idle(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Close the connections."""
        self._metrics.shutdown()
        self._logs.shutdown()  # type: ignore[no-untyped-call]  # theirs

    def _log_record(self, message: Message) -> ReadableLogRecord:
        from opentelemetry._logs import LogRecord, SeverityNumber
        from opentelemetry.sdk._logs import ReadableLogRecord

        at = int(1e9 * message.at)
        record = LogRecord(
            timestamp=at,
            observed_timestamp=at,
            severity_number=SeverityNumber.INFO,
            body=message.json,
            attributes={"esper.place": message.place},
            event_name=f"esper.{message.name}",
        )
        return ReadableLogRecord(record, self._resource, self._scope)


def _gauges(scalars: Sequence[Scalar]) -> list[Metric]:
    from opentelemetry.sdk.metrics.export import Gauge, Metric, NumberDataPoint

    points: dict[str, list[NumberDataPoint]] = {}
    for scalar in scalars:
        point = NumberDataPoint(scalar.labels, 0, int(1e9 * scalar.at), scalar.value)
        points.setdefault(f"esper.{scalar.name.replace('/', '.')}", []).append(point)
    return [Metric(name, "", "", Gauge(data)) for name, data in points.items()]
