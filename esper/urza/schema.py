"""The tables of the kernel library, as SQLAlchemy models.

``migrations/`` makes these tables; a test compares the two. A change here needs a new revision there.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

from sqlalchemy import (
    BigInteger,
    Computed,
    Dialect,
    Double,
    ForeignKey,
    Index,
    LargeBinary,
    MetaData,
    String,
    Text,
    UniqueConstraint,
    desc,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

from esper.messages import Layout

_SORTS: dict[str, Any] = {
    "rank": desc("rank"),
    "name": text("lower(name)"),
    "created_at": desc("created_at"),
    "score": desc("performance_score"),
    "parameters": "parameters",
    "size": text("(program_bytes + weights_bytes)"),
    "trials": desc("trial_count"),
}
"""What kernels are listed by, besides their latency and id, with its index."""

RANK = "(kept_count + performance_score) / (trial_count + 1)"
"""Mean verdict over a kernel's trials, with its validation score counted as one more trial."""


def words(length: int) -> String:
    """Text of so many characters at most, ordered by code point in every database."""
    kind: String = String(length).with_variant(String(length, collation="C"), "postgresql")
    return kind


class Base(DeclarativeBase):
    """The declarative base; its metadata is the whole schema, every constraint with a name to alter it by."""

    metadata = MetaData(
        naming_convention={
            "pk": "pk_%(table_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "ix": "ix_%(table_name)s_%(column_0_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {float: Double}


class Measurement(TypeDecorator[float]):
    """A float that may be NaN, which SQLite stores as NULL."""

    impl = Double
    cache_ok = True

    def process_result_value(self, value: float | None, _: Dialect) -> float:
        """NULL to NaN."""
        return math.nan if value is None else value


class BlobRow(Base):
    """Bytes under their own SHA-256, and the id of the key that they are sealed with; empty if not sealed.

    Kernels of one blueprint share its text.
    """

    __tablename__ = "blobs"

    digest: Mapped[str] = mapped_column(words(64), primary_key=True)
    data: Mapped[bytes] = mapped_column(LargeBinary)
    key_id: Mapped[str] = mapped_column(words(64), server_default="", index=True)


class KernelRow(Base):
    """One kernel: ``KernelMetadata`` field for field, what refers to its blobs, and its tally of trials.

    ``signature`` covers all of it that does not change; empty if the library is not sealed.
    """

    __tablename__ = "kernels"

    kernel_id: Mapped[str] = mapped_column(words(128), primary_key=True)
    blueprint_id: Mapped[str] = mapped_column(words(128), index=True)
    name: Mapped[str] = mapped_column(words(200))
    layout: Mapped[Layout] = mapped_column(words(16))
    in_features: Mapped[int]
    out_features: Mapped[int]
    stride: Mapped[int]
    target: Mapped[str] = mapped_column(words(32))
    device: Mapped[str] = mapped_column(words(32))
    dtype: Mapped[str] = mapped_column(words(32))
    status: Mapped[str] = mapped_column(words(16))
    parameters: Mapped[int] = mapped_column(BigInteger)
    compilation_time: Mapped[float]
    performance_score: Mapped[float]
    latency_ms: Mapped[float]
    latency_ratio: Mapped[float]
    program_digest: Mapped[str] = mapped_column(ForeignKey("blobs.digest"), index=True)
    weights_digest: Mapped[str] = mapped_column(ForeignKey("blobs.digest"), index=True)
    blueprint_digest: Mapped[str] = mapped_column(ForeignKey("blobs.digest"), index=True)
    program_bytes: Mapped[int] = mapped_column(BigInteger)
    weights_bytes: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[str] = mapped_column(words(40))
    author: Mapped[str] = mapped_column(words(200), server_default="")
    parent_blueprint: Mapped[str] = mapped_column(words(128), server_default="")
    parent_kernel: Mapped[str] = mapped_column(words(128), server_default="")
    run_id: Mapped[str] = mapped_column(words(200), server_default="")
    decision: Mapped[str] = mapped_column(words(600), server_default="")
    signature: Mapped[str] = mapped_column(words(100), server_default="", index=True)
    trial_count: Mapped[int]
    kept_count: Mapped[int]
    rank: Mapped[float] = mapped_column(Double, Computed(RANK, persisted=True))

    __table_args__ = (
        # What find() filters on, then the order that it wants: the best of a slot without a sort.
        Index(
            "ix_kernels_slot",
            "in_features",
            "out_features",
            "stride",
            "layout",
            "status",
            desc("rank"),
            "latency_ratio",
            "kernel_id",
        ),
        # In the whole order of a list, so that a page anywhere in it reads its own rows alone.
        *[Index(f"ix_kernels_{name}", key, "latency_ratio", "kernel_id") for name, key in _SORTS.items()],
        Index("ix_kernels_latency", "latency_ratio", "kernel_id"),
    )


class KernelTagRow(Base):
    """One tag of one kernel; ``position`` keeps the order in which the metadata gave them.

    The slot is that of the kernel, which never changes: how many kernels of a slot have a tag, and which, is
    answered by the index alone.
    """

    __tablename__ = "kernel_tags"

    kernel_id: Mapped[str] = mapped_column(
        ForeignKey("kernels.kernel_id", ondelete="CASCADE"), primary_key=True
    )
    tag: Mapped[str] = mapped_column(words(100), primary_key=True)
    position: Mapped[int]
    layout: Mapped[Layout] = mapped_column(words(16), server_default="")
    in_features: Mapped[int] = mapped_column(server_default="0")
    out_features: Mapped[int] = mapped_column(server_default="0")
    stride: Mapped[int] = mapped_column(server_default="0")

    __table_args__ = (
        Index("ix_kernel_tags_tag", "tag", "in_features", "out_features", "stride", "layout", "kernel_id"),
    )


class CompilationRow(Base):
    """One attempt to compile a blueprint for a slot: ``CompilationRecord`` field for field."""

    __tablename__ = "compilations"

    id: Mapped[int] = mapped_column(primary_key=True)
    blueprint_id: Mapped[str] = mapped_column(words(128), index=True)
    blueprint_name: Mapped[str] = mapped_column(words(200))
    layout: Mapped[Layout] = mapped_column(words(16))
    in_features: Mapped[int]
    out_features: Mapped[int]
    stride: Mapped[int]
    target: Mapped[str] = mapped_column(words(32))
    status: Mapped[str] = mapped_column(words(16))
    seconds: Mapped[float]
    at: Mapped[str] = mapped_column(words(40))
    kernel_id: Mapped[str | None] = mapped_column(words(128))
    stage: Mapped[str | None] = mapped_column(words(32))
    reason: Mapped[str | None] = mapped_column(Text)


class TrialRow(Base):
    """One finished trial of a seed in a run: ``FieldReport`` field for field, its run and its task.

    ``kernel_id`` is no foreign key: the results of a kernel outlive its removal, and count again when the
    same kernel, whose id comes from its content, is compiled anew.
    """

    __tablename__ = "trials"

    id: Mapped[int] = mapped_column(primary_key=True)
    run_id: Mapped[str] = mapped_column(words(200))
    task: Mapped[str] = mapped_column(words(200))
    layer: Mapped[str] = mapped_column(words(400))
    layer_kind: Mapped[str] = mapped_column(words(32))
    seed_idx: Mapped[int]
    layout: Mapped[Layout] = mapped_column(words(16))
    in_features: Mapped[int]
    out_features: Mapped[int]
    stride: Mapped[int]
    site: Mapped[str] = mapped_column(words(16))
    kernel_id: Mapped[str] = mapped_column(words(128), index=True)
    blueprint_id: Mapped[str] = mapped_column(words(128))
    started_epoch: Mapped[int]
    ended_epoch: Mapped[int]
    verdict: Mapped[str] = mapped_column(words(16))
    reason: Mapped[str] = mapped_column(Text)
    expected_impact: Mapped[float] = mapped_column(Measurement, nullable=True)
    gain: Mapped[float] = mapped_column(Measurement, nullable=True)
    gain_error: Mapped[float] = mapped_column(Measurement, nullable=True)
    threshold: Mapped[float] = mapped_column(Measurement, nullable=True)
    loss_before: Mapped[float] = mapped_column(Measurement, nullable=True)
    loss_after: Mapped[float] = mapped_column(Measurement, nullable=True)
    accuracy_before: Mapped[float] = mapped_column(Measurement, nullable=True)
    accuracy_after: Mapped[float] = mapped_column(Measurement, nullable=True)
    parameters: Mapped[int] = mapped_column(BigInteger)
    depth: Mapped[int | None]
    layers: Mapped[int | None]
    gradient_norm: Mapped[float | None]
    activation_variance: Mapped[float | None]
    health: Mapped[float | None]
    latency_ms: Mapped[float | None]
    seconds: Mapped[float | None]

    __table_args__ = (
        # A resumed run repeats the epochs after its checkpoint, and their trials replace the earlier ones.
        UniqueConstraint("run_id", "layer", "seed_idx", "started_epoch", name="uq_trials_place"),
        # What a kernel showed in a slot, by layer kind and task: answered from the index alone.
        Index(
            "ix_trials_context",
            "in_features",
            "out_features",
            "stride",
            "layout",
            "kernel_id",
            "layer_kind",
            "task",
            "verdict",
        ),
    )


class InventionRow(Base):
    """One invented blueprint: ``InventionRecord`` field for field; ``parents`` with blanks between.

    ``kernel_id`` is no foreign key, as that of a trial: what a removed kernel was made of is still known, and
    the same graph is not invented for the same slot again.
    """

    __tablename__ = "inventions"

    id: Mapped[int] = mapped_column(primary_key=True)
    graph_id: Mapped[str] = mapped_column(words(64))
    blueprint_id: Mapped[str] = mapped_column(words(128), index=True)
    blueprint_name: Mapped[str] = mapped_column(words(200))
    layout: Mapped[Layout] = mapped_column(words(16))
    in_features: Mapped[int]
    out_features: Mapped[int]
    stride: Mapped[int]
    layer_kind: Mapped[str] = mapped_column(words(32))
    origin: Mapped[str] = mapped_column(words(32))
    parents: Mapped[str] = mapped_column(Text)
    reason: Mapped[str] = mapped_column(Text)
    predicted_impact: Mapped[float | None]
    uncertainty: Mapped[float | None]
    run_id: Mapped[str] = mapped_column(words(200))
    at: Mapped[str] = mapped_column(words(40))
    kernel_id: Mapped[str | None] = mapped_column(words(128), index=True)
    failure: Mapped[str | None] = mapped_column(Text)

    __table_args__ = (
        UniqueConstraint(
            "graph_id", "in_features", "out_features", "stride", "layout", name="uq_inventions_graph"
        ),
    )


class AuditRow(Base):
    """One entry of the audit trail: ``esper.security.audit.Entry`` field for field."""

    __tablename__ = "audit"

    sequence: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    at: Mapped[str] = mapped_column(words(40))
    who: Mapped[str] = mapped_column(words(400))
    action: Mapped[str] = mapped_column(words(64))
    subject: Mapped[str] = mapped_column(words(400))
    before: Mapped[str] = mapped_column(words(64))
    after: Mapped[str] = mapped_column(words(64))
    detail: Mapped[str] = mapped_column(Text)
    link: Mapped[str] = mapped_column(words(64))
    key_id: Mapped[str] = mapped_column(words(64), index=True)
    mac: Mapped[str] = mapped_column(words(64))


class AuditHeadRow(Base):
    """The newest entry of the trail, apart from the entries; one row, once there is an entry."""

    __tablename__ = "audit_head"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    trail: Mapped[str] = mapped_column(words(64))
    sequence: Mapped[int]
    link: Mapped[str] = mapped_column(words(64))
    key_id: Mapped[str] = mapped_column(words(64))
    mac: Mapped[str] = mapped_column(words(64))
