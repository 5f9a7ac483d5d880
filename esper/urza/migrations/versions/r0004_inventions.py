"""More of the context of a trial, and what was invented."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision: str | None = "0003"
branch_labels: str | None = None
depends_on: str | None = None

_CONTEXT = {
    "depth": sa.Integer,
    "layers": sa.Integer,
    "gradient_norm": sa.Double,
    "activation_variance": sa.Double,
    "health": sa.Double,
    "latency_ms": sa.Double,
    "seconds": sa.Double,
}


def upgrade() -> None:
    """Add the columns, empty in what is there, and the table."""
    for name, kind in _CONTEXT.items():
        op.add_column("trials", sa.Column(name, kind, nullable=True))
    op.create_table(
        "inventions",
        sa.Column("id", sa.Integer, nullable=False),
        _words("graph_id", 64),
        _words("blueprint_id", 128),
        _words("blueprint_name", 200),
        _words("layout", 16),
        *[sa.Column(name, sa.Integer, nullable=False) for name in ("in_features", "out_features", "stride")],
        _words("layer_kind", 32),
        _words("origin", 32),
        sa.Column("parents", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("predicted_impact", sa.Double, nullable=True),
        sa.Column("uncertainty", sa.Double, nullable=True),
        _words("run_id", 200),
        _words("at", 40),
        _words("kernel_id", 128, nullable=True),
        sa.Column("failure", sa.Text, nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_inventions"),
        sa.UniqueConstraint(
            "graph_id", "in_features", "out_features", "stride", "layout", name="uq_inventions_graph"
        ),
    )
    op.create_index("ix_inventions_blueprint_id", "inventions", ["blueprint_id"])
    op.create_index("ix_inventions_kernel_id", "inventions", ["kernel_id"])


def downgrade() -> None:
    """Drop them; lineage goes with them, kernels and trials stay."""
    op.drop_table("inventions")
    for name in reversed(_CONTEXT):
        op.drop_column("trials", name)


def _words(name: str, length: int, *, nullable: bool = False) -> sa.Column[str]:
    kind = sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")
    return sa.Column(name, kind, nullable=nullable)
