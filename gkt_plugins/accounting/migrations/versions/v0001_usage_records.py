"""One row per engine call."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the table and its indexes."""
    op.create_table(
        "usage_records",
        sa.Column("request_id", sa.String, primary_key=True),
        sa.Column("call", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("role", sa.String, primary_key=True),
        sa.Column("attempt", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("pipeline", sa.String, nullable=False),
        sa.Column("engine", sa.String, nullable=False),
        sa.Column("model", sa.String, nullable=False),
        sa.Column("status", sa.String, nullable=False),
        sa.Column("started_at", sa.Float, nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger),
        sa.Column("cached_tokens", sa.BigInteger),
        sa.Column("completion_tokens", sa.BigInteger),
        sa.Column("drafted_tokens", sa.BigInteger, nullable=False),
        sa.Column("accepted_tokens", sa.BigInteger, nullable=False),
        sa.Column("duration_ns", sa.BigInteger),
        sa.Column("estimated", sa.Boolean, nullable=False),
        sa.Column("currency", sa.String, nullable=False),
        sa.Column("cost_nano", sa.BigInteger),
        sa.Column("price_source", sa.String),
        sa.Column("writer", sa.String, nullable=False),
    )
    op.create_index("usage_records_started_at", "usage_records", ["started_at"])
    still_open = sa.text("status = 'open'")
    op.create_index(
        "usage_records_open", "usage_records", ["writer"], sqlite_where=still_open, postgresql_where=still_open
    )
