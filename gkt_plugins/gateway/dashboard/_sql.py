"""What the two databases write differently."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, ColumnElement
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import GenericFunction

__all__ = ["whole"]


class whole(GenericFunction[int]):  # noqa: N801 - an SQL function, written like SQLAlchemy's own
    """The whole part of a number that is at least 0."""

    type = BigInteger()
    inherit_cache = True


@compiles(whole)
def _floor(element: whole, compiler: SQLCompiler, **options: Any) -> str:
    return f"CAST(FLOOR({_argument(element, compiler, options)}) AS BIGINT)"


@compiles(whole, "sqlite")
def _truncate(element: whole, compiler: SQLCompiler, **options: Any) -> str:
    """Casting truncates there, and FLOOR is not in every build."""
    return f"CAST({_argument(element, compiler, options)} AS INTEGER)"


def _argument(element: whole, compiler: SQLCompiler, options: dict[str, Any]) -> str:
    [argument] = element.clauses
    assert isinstance(argument, ColumnElement)
    return str(compiler.process(argument, **options))
