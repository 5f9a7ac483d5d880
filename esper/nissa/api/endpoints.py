"""Every endpoint of the HTTP API, in one table, and the role that each asks for.

The application is built from it, and whoever asks for tokens reads it: what is not here does not exist.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Role = Literal["public", "viewer", "operator", "admin"]
"""What a caller must be allowed at least, in rising order; ``public`` asks for no token at all."""

CALLER: Final = "esper.caller"
"""Where the scope of a request says who asks, an object with a ``name``; absent for what is public."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One method of one path; ``{name}`` in the path stands for one part of it.

    ``name`` is what the application knows it by, and its OpenAPI operation.
    """

    method: Literal["GET", "POST"]
    path: str
    name: str
    role: Role
    summary: str


ENDPOINTS = (
    Endpoint("GET", "/", "index", "viewer", "the page: what trains, live"),
    Endpoint("GET", "/page/{file}", "page_file", "viewer", "a file of the page"),
    Endpoint("GET", "/health", "health", "viewer", "overall system health"),
    Endpoint("GET", "/health/live", "health_live", "public", "whether this server answers"),
    Endpoint("GET", "/health/ready", "health_ready", "viewer", "whether all that it reads can be read"),
    Endpoint("GET", "/metrics", "metrics", "viewer", "metrics for Prometheus"),
    Endpoint("GET", "/api/v1/openapi.json", "openapi", "viewer", "this API, in OpenAPI 3.1"),
    Endpoint("GET", "/api/v1/status", "status", "viewer", "every component in detail"),
    Endpoint("GET", "/api/v1/adaptations", "adaptations", "viewer", "adaptations, the newest first"),
    Endpoint("GET", "/api/v1/runs", "runs", "viewer", "runs, the newest first"),
    Endpoint("GET", "/api/v1/runs/{run_id}", "run", "viewer", "a run: its layers, epochs and results"),
    Endpoint("GET", "/api/v1/runs/{run_id}/history", "run_history", "viewer", "a run, epoch by epoch"),
    Endpoint("GET", "/api/v1/kernels", "kernels", "viewer", "kernels of the library that fit a question"),
    Endpoint("GET", "/api/v1/kernels/{kernel_id}", "kernel", "viewer", "a kernel: record, lineage, results"),
    Endpoint("GET", "/api/v1/compilations", "compilations", "viewer", "compilations, the newest first"),
    Endpoint("GET", "/api/v1/events", "events", "viewer", "events of runs as they come (server-sent)"),
    Endpoint("POST", "/api/v1/runs/{run_id}/pause", "pause_run", "operator", "have a run pause"),
    Endpoint("POST", "/api/v1/runs/{run_id}/resume", "resume_run", "operator", "have a paused run go on"),
    Endpoint("POST", "/api/v1/runs/{run_id}/rollback", "rollback_run", "operator", "have a run go back"),
    Endpoint("POST", "/api/v1/kernels/{kernel_id}/tags", "tag_kernel", "operator", "add and remove tags"),
)
"""Every endpoint. HEAD goes with GET, and asks for the same role."""
