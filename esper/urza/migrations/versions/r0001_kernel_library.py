"""Kernels with their tags and blobs, the log of compilations, the results of trials."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision: str | None = None
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    """Make the tables."""
    _create_blobs()
    _create_kernels()
    _create_kernel_tags()
    _create_compilations()
    _create_trials()


def downgrade() -> None:
    """Drop the tables; their indexes go with them."""
    for table in ("kernel_tags", "kernels", "blobs", "compilations", "trials"):
        op.drop_table(table)


def _words(length: int) -> sa.String:
    kind: sa.String = sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")
    return kind


def _slot() -> list[sa.Column[object]]:
    return [
        sa.Column("layout", _words(16), nullable=False),
        sa.Column("in_features", sa.Integer, nullable=False),
        sa.Column("out_features", sa.Integer, nullable=False),
        sa.Column("stride", sa.Integer, nullable=False),
    ]


def _create_blobs() -> None:
    op.create_table(
        "blobs",
        sa.Column("digest", _words(64), nullable=False),
        sa.Column("data", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("digest", name="pk_blobs"),
    )


def _create_kernels() -> None:
    blobs = ("program_digest", "weights_digest", "blueprint_digest")
    op.create_table(
        "kernels",
        sa.Column("kernel_id", _words(128), nullable=False),
        sa.Column("blueprint_id", _words(128), nullable=False),
        sa.Column("name", _words(200), nullable=False),
        *_slot(),
        sa.Column("target", _words(32), nullable=False),
        sa.Column("device", _words(32), nullable=False),
        sa.Column("dtype", _words(32), nullable=False),
        sa.Column("status", _words(16), nullable=False),
        sa.Column("parameters", sa.BigInteger, nullable=False),
        sa.Column("compilation_time", sa.Double, nullable=False),
        sa.Column("performance_score", sa.Double, nullable=False),
        sa.Column("latency_ms", sa.Double, nullable=False),
        sa.Column("latency_ratio", sa.Double, nullable=False),
        *[sa.Column(name, _words(64), nullable=False) for name in blobs],
        sa.Column("program_bytes", sa.BigInteger, nullable=False),
        sa.Column("weights_bytes", sa.BigInteger, nullable=False),
        sa.Column("created_at", _words(40), nullable=False),
        sa.Column("trial_count", sa.Integer, nullable=False),
        sa.Column("kept_count", sa.Integer, nullable=False),
        sa.Column(
            "rank",
            sa.Double,
            sa.Computed("(kept_count + performance_score) / (trial_count + 1)", persisted=True),
            nullable=False,
        ),
        *[sa.ForeignKeyConstraint([name], ["blobs.digest"], name=f"fk_kernels_{name}") for name in blobs],
        sa.PrimaryKeyConstraint("kernel_id", name="pk_kernels"),
    )
    for name in ("blueprint_id", *blobs):
        op.create_index(f"ix_kernels_{name}", "kernels", [name])
    slot = ["in_features", "out_features", "stride", "layout", "status"]
    op.create_index("ix_kernels_slot", "kernels", [*slot, sa.text("rank DESC"), "latency_ratio", "kernel_id"])


def _create_kernel_tags() -> None:
    op.create_table(
        "kernel_tags",
        sa.Column("kernel_id", _words(128), nullable=False),
        sa.Column("tag", _words(100), nullable=False),
        sa.Column("position", sa.Integer, nullable=False),
        sa.ForeignKeyConstraint(
            ["kernel_id"], ["kernels.kernel_id"], name="fk_kernel_tags_kernel_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("kernel_id", "tag", name="pk_kernel_tags"),
    )
    op.create_index("ix_kernel_tags_tag", "kernel_tags", ["tag", "kernel_id"])


def _create_compilations() -> None:
    op.create_table(
        "compilations",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("blueprint_id", _words(128), nullable=False),
        sa.Column("blueprint_name", _words(200), nullable=False),
        *_slot(),
        sa.Column("target", _words(32), nullable=False),
        sa.Column("status", _words(16), nullable=False),
        sa.Column("seconds", sa.Double, nullable=False),
        sa.Column("at", _words(40), nullable=False),
        sa.Column("kernel_id", _words(128), nullable=True),
        sa.Column("stage", _words(32), nullable=True),
        sa.Column("reason", sa.Text, nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_compilations"),
    )
    op.create_index("ix_compilations_blueprint_id", "compilations", ["blueprint_id"])


def _create_trials() -> None:
    measurements = ("expected_impact", "gain", "gain_error", "threshold")
    outcomes = ("loss_before", "loss_after", "accuracy_before", "accuracy_after")
    op.create_table(
        "trials",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("run_id", _words(200), nullable=False),
        sa.Column("task", _words(200), nullable=False),
        sa.Column("layer", _words(400), nullable=False),
        sa.Column("layer_kind", _words(32), nullable=False),
        sa.Column("seed_idx", sa.Integer, nullable=False),
        *_slot(),
        sa.Column("site", _words(16), nullable=False),
        sa.Column("kernel_id", _words(128), nullable=False),
        sa.Column("blueprint_id", _words(128), nullable=False),
        sa.Column("started_epoch", sa.Integer, nullable=False),
        sa.Column("ended_epoch", sa.Integer, nullable=False),
        sa.Column("verdict", _words(16), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        *[sa.Column(name, sa.Double, nullable=True) for name in (*measurements, *outcomes)],
        sa.Column("parameters", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_trials"),
        sa.UniqueConstraint("run_id", "layer", "seed_idx", "started_epoch", name="uq_trials_place"),
    )
    op.create_index("ix_trials_kernel_id", "trials", ["kernel_id"])
