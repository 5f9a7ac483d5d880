"""What the API takes: queries and bodies, read by pydantic models that also describe them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

from esper.messages import Layout
from esper.nissa.api.event_places import EVENT_ID
from esper.nissa.run_records import RunStatus

MAX_LIMIT = 1000
MAX_WAIT_SECONDS = 10
MAX_TAGS = 50
MAX_NAME = 200


class Model(BaseModel):
    """Immutable, and exactly these fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _whole(value: Any) -> Any:
    # int() takes "+5", " 5 " and "1_000" too, and digits of other scripts.
    if isinstance(value, str) and not (value.isascii() and value.isdigit() and len(value) <= 15):
        raise ValueError("not a whole number")
    return value


def _integral(value: Any) -> Any:
    # To JSON 3.0 is a whole number.
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _time(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        at = datetime.fromisoformat(value)
    except ValueError:
        raise ValueError("not a time in ISO 8601, such as 2026-11-28T12:00:00Z") from None
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)


Time = Annotated[
    datetime, BeforeValidator(_time), Field(description="ISO 8601; UTC unless it says otherwise")
]
Word = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]{1,200}$")]
Tag = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x20\x7f-\xa0]{1,100}$")]
Limit = Annotated[int, Field(ge=1, le=MAX_LIMIT, description="how many at most"), BeforeValidator(_whole)]
Count = Annotated[int, Field(ge=0, le=2**53, strict=True), BeforeValidator(_integral)]
Size = Annotated[int, Field(ge=1, le=2**31 - 1, description="features or channels"), BeforeValidator(_whole)]
Cursor = Annotated[
    str,
    StringConstraints(min_length=1, max_length=500),
    Field(description="the next of the page before, with the same filters"),
]


class NoQuery(Model):
    """Nothing can be asked for."""


class AdaptationsQuery(Model):
    """Which adaptations; what is left out does not narrow."""

    limit: Limit = 50
    cursor: Cursor | None = None
    run: Annotated[Word | None, Field(description="a run's id, the start of one, or latest")] = None
    layer: Annotated[Word | None, Field(description="the target, whole")] = None
    type: Annotated[
        Literal["add_seed", "remove_seed", "modify_architecture", "rollback"] | None,
        Field(description="the kind of decision"),
    ] = None
    outcome: Annotated[
        Literal["performed", "refused", "grown", "pending", "kept", "culled", "failed"] | None,
        Field(description="what became of it; performed is all but refused"),
    ] = None
    since: Time | None = None
    until: Annotated[Time | None, Field(description="before that moment")] = None


class RunsQuery(Model):
    """Which runs; what is left out does not narrow."""

    limit: Limit = 50
    cursor: Cursor | None = None
    status: RunStatus | None = None
    experiment: Word | None = None


class KernelsQuery(Model):
    """Which kernels; what is left out does not narrow."""

    limit: Limit = 50
    cursor: Cursor | None = None
    tag: Annotated[tuple[Tag, ...], Field(max_length=MAX_TAGS, description="repeated: with all of them")] = ()
    any_tag: Annotated[tuple[Tag, ...], Field(max_length=MAX_TAGS, description="with one of them")] = ()
    no_tag: Annotated[tuple[Tag, ...], Field(max_length=MAX_TAGS, description="with none of them")] = ()
    input: Size | None = None
    output: Size | None = None
    layout: Layout | None = None
    status: Literal["validated", "retired"] | None = None
    name: Annotated[Word | None, Field(description="a part of the name")] = None
    blueprint: Annotated[Word | None, Field(description="the id of a blueprint")] = None
    sort: Literal["rank", "name", "created", "score", "latency", "parameters", "size", "trials", "id"] = (
        "rank"
    )


class CompilationsQuery(Model):
    """Which attempts to compile; what is left out does not narrow."""

    limit: Limit = 50
    cursor: Cursor | None = None
    status: Literal["compiled", "failed"] | None = None


class EventsQuery(Model):
    """Which events; what is left out does not narrow."""

    run: Annotated[Word | None, Field(description="a run's id, the start of one, or latest")] = None
    types: Annotated[
        Annotated[str, StringConstraints(pattern=r"^[a-z_]{1,40}(,[a-z_]{1,40}){0,30}$")] | None,
        Field(description="names of events, with commas between"),
    ] = None
    after: Annotated[
        Annotated[str, StringConstraints(pattern=rf"^(start|{EVENT_ID})$")] | None,
        Field(description="the id of the last event that was seen; or start"),
    ] = None


class WaitQuery(Model):
    """How long the answer may wait until the run has done what it was asked."""

    wait: Annotated[int, Field(ge=0, le=MAX_WAIT_SECONDS, description="seconds"), BeforeValidator(_whole)] = 0


class RollbackBody(Model):
    """Where to go back to: the newest checkpoint of at most so many whole epochs, or optimizer steps.

    With neither the newest from before where the run is.
    """

    model_config = ConfigDict(json_schema_extra={"maxProperties": 1})

    epoch: Count | None = None
    step: Count | None = None

    @model_validator(mode="after")
    def _one(self) -> RollbackBody:
        if len(self.model_fields_set) > 1:
            raise ValueError("give epoch or step, not both")
        return self


class TagsBody(Model):
    """Tags to give, in this order, and tags to take away."""

    add: Annotated[tuple[Tag, ...], Field(max_length=MAX_TAGS)] = ()
    remove: Annotated[tuple[Tag, ...], Field(max_length=MAX_TAGS)] = ()
