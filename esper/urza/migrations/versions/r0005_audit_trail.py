"""The audit trail and its head; without an entry, as nobody noted what was before."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from esper.errors import LibraryError

revision = "0005"
down_revision: str | None = "0004"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    """Add the tables."""
    op.create_table(
        "audit",
        sa.Column("sequence", sa.Integer, nullable=False, autoincrement=False),
        _words("at", 40),
        _words("who", 400),
        _words("action", 64),
        _words("subject", 400),
        _words("before", 64),
        _words("after", 64),
        sa.Column("detail", sa.Text, nullable=False),
        _words("link", 64),
        _words("key_id", 64),
        _words("mac", 64),
        sa.PrimaryKeyConstraint("sequence", name="pk_audit"),
    )
    op.create_index("ix_audit_key_id", "audit", ["key_id"])
    op.create_table(
        "audit_head",
        sa.Column("id", sa.Integer, nullable=False, autoincrement=False),
        _words("trail", 64),
        sa.Column("sequence", sa.Integer, nullable=False),
        _words("link", 64),
        _words("key_id", 64),
        _words("mac", 64),
        sa.PrimaryKeyConstraint("id", name="pk_audit_head"),
    )


def downgrade() -> None:
    """Drop them; refused where there are entries, which an older version would not go on with."""
    if op.get_bind().scalar(sa.text("SELECT count(*) FROM audit")):
        raise LibraryError(
            "the library has an audit trail, and older versions write none", hint="keep this one"
        )
    op.drop_table("audit_head")
    op.drop_table("audit")


def _words(name: str, length: int) -> sa.Column[str]:
    kind = sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")
    return sa.Column(name, kind, nullable=False)
