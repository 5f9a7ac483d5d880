"""Seals on kernels and blobs, where a kernel came from, and an index of trials by their context."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from esper.errors import LibraryError

revision = "0002"
down_revision: str | None = "0001"
branch_labels: str | None = None
depends_on: str | None = None

_ADDED = (
    ("author", 200),
    ("parent_blueprint", 128),
    ("parent_kernel", 128),
    ("run_id", 200),
    ("decision", 600),
    ("signature", 100),
)
_CONTEXT = (
    "in_features",
    "out_features",
    "stride",
    "layout",
    "kernel_id",
    "layer_kind",
    "task",
    "verdict",
)


def upgrade() -> None:
    """Add the columns, empty, and the indexes."""
    for name, length in _ADDED:
        op.add_column("kernels", _column(name, length))
    op.add_column("blobs", _column("key_id", 64))
    op.create_index("ix_kernels_created_at", "kernels", ["created_at"])
    op.create_index("ix_kernels_signature", "kernels", ["signature"])
    op.create_index("ix_blobs_key_id", "blobs", ["key_id"])
    op.create_index("ix_trials_context", "trials", list(_CONTEXT))


def downgrade() -> None:
    """Drop them; refused where kernels are sealed, which an older version could not read."""
    if op.get_bind().scalar(sa.text("SELECT count(*) FROM blobs WHERE key_id <> ''")):
        raise LibraryError("the library is sealed, and older versions cannot read it", hint="keep this one")
    op.drop_index("ix_trials_context", "trials")
    op.drop_index("ix_blobs_key_id", "blobs")
    op.drop_index("ix_kernels_signature", "kernels")
    op.drop_index("ix_kernels_created_at", "kernels")
    op.drop_column("blobs", "key_id")
    for name, _ in reversed(_ADDED):
        op.drop_column("kernels", name)


def _column(name: str, length: int) -> sa.Column[str]:
    kind = sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")
    return sa.Column(name, kind, nullable=False, server_default="")
