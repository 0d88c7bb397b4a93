"""One row per request of a client; what each day's budget has spent and set aside."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Make the three tables."""
    op.create_table(
        "requests",
        sa.Column("request_id", sa.String, primary_key=True),
        sa.Column("pipeline", sa.String, nullable=False),
        sa.Column("key", sa.String, nullable=False),
        sa.Column("started_at", sa.Float, nullable=False),
        sa.Column("route", sa.String, nullable=False),
        sa.Column("status", sa.String, nullable=False),
        sa.Column("error", sa.String, nullable=False),
        sa.Column("streamed", sa.Boolean, nullable=False),
        sa.Column("choices", sa.Integer, nullable=False),
        sa.Column("guidance_tokens", sa.Integer, nullable=False),
        sa.Column("degraded", sa.Boolean, nullable=False),
        sa.Column("cached", sa.Boolean, nullable=False),
        sa.Column("first_token_s", sa.Float),
        sa.Column("total_s", sa.Float),
        sa.Column("teacher_s", sa.Float),
        sa.Column("student_s", sa.Float),
        sa.Column("overhead_s", sa.Float),
        sa.Column("retries", sa.Integer, nullable=False),
    )
    op.create_index("requests_started_at", "requests", ["started_at"])
    op.create_table(
        "budget_days",
        sa.Column("scope", sa.String, primary_key=True),
        sa.Column("currency", sa.String, primary_key=True),
        sa.Column("day", sa.String, primary_key=True),
        sa.Column("spent_nano", sa.BigInteger, nullable=False),
        sa.Column("reserved_nano", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "budget_reservations",
        sa.Column("reservation_id", sa.String, primary_key=True),
        sa.Column("scope", sa.String, primary_key=True),
        sa.Column("currency", sa.String, nullable=False),
        sa.Column("day", sa.String, nullable=False),
        sa.Column("amount_nano", sa.BigInteger, nullable=False),
        sa.Column("writer", sa.String, nullable=False),
    )
