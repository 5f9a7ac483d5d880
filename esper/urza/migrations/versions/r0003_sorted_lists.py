"""An index for each way to sort a list of kernels, and the slot of a kernel beside each of its tags."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision: str | None = "0002"
branch_labels: str | None = None
depends_on: str | None = None

_SORTS = {
    "rank": "rank DESC",
    "name": "lower(name)",
    "created_at": "created_at DESC",
    "score": "performance_score DESC",
    "parameters": "parameters",
    "size": "(program_bytes + weights_bytes)",
    "trials": "trial_count DESC",
}
_SLOT = ("layout", "in_features", "out_features", "stride")


def upgrade() -> None:
    """Add the columns, filled from the kernels, and the indexes."""
    op.drop_index("ix_kernels_created_at", "kernels")
    for name, key in _SORTS.items():
        op.create_index(f"ix_kernels_{name}", "kernels", [sa.text(key), "latency_ratio", "kernel_id"])
    op.create_index("ix_kernels_latency", "kernels", ["latency_ratio", "kernel_id"])
    words = sa.String(16).with_variant(sa.String(16, collation="C"), "postgresql")
    op.add_column("kernel_tags", sa.Column("layout", words, nullable=False, server_default=""))
    for name in _SLOT[1:]:
        op.add_column("kernel_tags", sa.Column(name, sa.Integer, nullable=False, server_default="0"))
    columns = ", ".join(f"{name} = kernels.{name}" for name in _SLOT)
    op.execute(
        f"UPDATE kernel_tags SET {columns} FROM kernels WHERE kernels.kernel_id = kernel_tags.kernel_id"
    )
    op.drop_index("ix_kernel_tags_tag", "kernel_tags")
    op.create_index("ix_kernel_tags_tag", "kernel_tags", ["tag", *_SLOT[1:], _SLOT[0], "kernel_id"])


def downgrade() -> None:
    """Drop them."""
    op.drop_index("ix_kernel_tags_tag", "kernel_tags")
    op.create_index("ix_kernel_tags_tag", "kernel_tags", ["tag", "kernel_id"])
    for name in reversed(_SLOT):
        op.drop_column("kernel_tags", name)
    for name in ("latency", *_SORTS):
        op.drop_index(f"ix_kernels_{name}", "kernels")
    op.create_index("ix_kernels_created_at", "kernels", ["created_at"])
