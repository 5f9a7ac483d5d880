"""The API in OpenAPI 3.1, made from the table of endpoints and the models of what they take and answer.

``python -m esper.nissa.api.openapi > docs/openapi.json`` writes it for people who have no server.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from pydantic.json_schema import models_json_schema

from esper.nissa.api import models as answers
from esper.nissa.api import queries
from esper.nissa.api.answers import PROBLEM
from esper.nissa.api.endpoints import ENDPOINTS, Endpoint
from esper.nissa.api.history import History, HistoryQuery
from esper.nissa.api.queries import Model

_JSON = "application/json"
_REF = "#/components/schemas/{model}"


@dataclass(frozen=True, slots=True)
class Described:
    """What an endpoint takes and answers; ``answers`` by status, a model or a media type that is no JSON.

    ``tagged`` answers have an ETag, and are 304 to whoever has them.
    """

    answers: Mapping[int, type[Model] | str]
    query: type[Model] = queries.NoQuery
    body: type[Model] | None = None
    problems: tuple[int, ...] = ()
    tagged: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)


_ASKED = {200: answers.Requested, 202: answers.Requested}
_PAGE = {"Link": "the address of the next page, if there is one"}

DESCRIBED: Mapping[str, Described] = {
    "index": Described({200: "text/html"}, tagged=True),
    "page_file": Described({200: "*/*"}, problems=(404,), tagged=True),
    "health": Described({200: answers.Health, 503: answers.Health}, problems=(400,)),
    "health_live": Described({200: answers.Live}, problems=(400,)),
    "health_ready": Described({200: answers.Health, 503: answers.Health}, problems=(400,)),
    "metrics": Described({200: "text/plain"}),
    "openapi": Described({200: _JSON}, problems=(400,), tagged=True),
    "status": Described({200: answers.Status}, problems=(400,)),
    "adaptations": Described(
        {200: answers.Adaptations}, queries.AdaptationsQuery, problems=(400, 404), tagged=True, headers=_PAGE
    ),
    "runs": Described({200: answers.Runs}, queries.RunsQuery, problems=(400,), tagged=True, headers=_PAGE),
    "run": Described({200: answers.Run}, problems=(400, 404), tagged=True),
    "run_history": Described({200: History}, HistoryQuery, problems=(400, 404), tagged=True),
    "kernels": Described(
        {200: answers.Kernels}, queries.KernelsQuery, problems=(400,), tagged=True, headers=_PAGE
    ),
    "kernel": Described({200: answers.Kernel}, problems=(400, 404), tagged=True),
    "compilations": Described(
        {200: answers.Compilations}, queries.CompilationsQuery, problems=(400,), tagged=True, headers=_PAGE
    ),
    "events": Described({200: "text/event-stream"}, queries.EventsQuery, problems=(400, 404)),
    "pause_run": Described(_ASKED, queries.WaitQuery, problems=(400, 404, 409)),
    "resume_run": Described(_ASKED, queries.WaitQuery, problems=(400, 404, 409)),
    "rollback_run": Described(
        _ASKED, queries.WaitQuery, queries.RollbackBody, problems=(400, 404, 409, 413, 415, 422)
    ),
    "tag_kernel": Described({200: answers.Tags}, body=queries.TagsBody, problems=(400, 404, 413, 415, 422)),
}
"""By the names of endpoints. What the server asks for before a handler does (401, 403, 429) is everywhere."""


def openapi(described: Mapping[str, Described] = DESCRIBED) -> dict[str, Any]:
    """The document."""
    known = [endpoint for endpoint in ENDPOINTS if endpoint.name in described]
    models: set[type[Model]] = {answers.Problem}
    models.update(model for each in described.values() for model in _models(each))
    pairs = [(model, "serialization") for model in sorted(models, key=lambda model: model.__name__)]
    _, schemas = models_json_schema(pairs, ref_template=_REF)  # type: ignore[arg-type]
    paths: dict[str, Any] = {}
    for endpoint in known:
        operation = _operation(endpoint, described[endpoint.name])
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Esper",
            "version": version("esper-morph"),
            "description": "Networks that grow while they train: what they do, and what is asked of them.",
        },
        "security": [{"token": []}, {}],
        "paths": paths,
        "components": {
            "schemas": schemas["$defs"],
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
        },
    }


def _models(each: Described) -> Iterable[type[Model]]:
    yield from (model for model in each.answers.values() if not isinstance(model, str))
    if each.body is not None:
        yield each.body


def _operation(endpoint: Endpoint, each: Described) -> dict[str, Any]:
    responses = {str(status): _response(each, model) for status, model in each.answers.items()}
    if each.tagged:
        responses["304"] = {"description": "as it was when the ETag that was sent was given"}
    for status in (*each.problems, "default"):
        responses.setdefault(str(status), _of(PROBLEM, _ref(answers.Problem), "what went wrong"))
    operation: dict[str, Any] = {
        "operationId": endpoint.name,
        "summary": endpoint.summary,
        "x-role": endpoint.role,
        "parameters": [*_in_path(endpoint.path), *_in_query(each.query)],
        "responses": responses,
    }
    if endpoint.role == "public":
        operation["security"] = []
    if each.body is not None:
        content = {_JSON: {"schema": _ref(each.body)}}
        operation["requestBody"] = {"required": False, "content": content}
    return operation


def _response(each: Described, model: type[Model] | str) -> dict[str, Any]:
    if not isinstance(model, str):
        response = _of(_JSON, _ref(model), (model.__doc__ or "").partition("\n")[0])
    elif model == _JSON:
        response = _of(_JSON, {"type": "object"}, "a document")
    else:
        response = _of(model, {"type": "string"}, "text")
    names = {**({"ETag": "of this content"} if each.tagged else {}), **each.headers}
    if names:
        response["headers"] = {
            name: {"description": text, "schema": {"type": "string"}} for name, text in names.items()
        }
    return response


def _of(media_type: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"description": description, "content": {media_type: {"schema": schema}}}


def _ref(model: type[Model]) -> dict[str, Any]:
    return {"$ref": _REF.format(model=model.__name__)}


def _in_path(path: str) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in re.findall(r"{(\w+)}", path)
    ]


def _in_query(query: type[Model]) -> list[dict[str, Any]]:
    schema = query.model_json_schema(mode="validation", ref_template=_REF)
    shared = schema.get("$defs", {})
    return [_parameter(name, found, shared) for name, found in schema.get("properties", {}).items()]


def _parameter(name: str, schema: dict[str, Any], shared: Mapping[str, Any]) -> dict[str, Any]:
    """A field of a query: one that may be null may be left out, and a query has no null."""
    description = schema.pop("description", None)
    default = schema.pop("default", None)
    schema.pop("title", None)
    choices = [choice for choice in schema.pop("anyOf", ()) if choice.get("type") != "null"]
    for choice in choices[:1]:
        schema.update(choice)
    description = schema.pop("description", description)
    if reference := schema.pop("$ref", None):
        schema.update(
            {key: value for key, value in shared[reference.rpartition("/")[2]].items() if key != "title"}
        )
        schema.pop("description", None)
    if default not in (None, []):
        schema["default"] = default
    parameter = {"name": name, "in": "query", "required": False, "schema": schema}
    return parameter if description is None else {**parameter, "description": description}


if __name__ == "__main__":
    print(json.dumps(openapi(), indent=1))
