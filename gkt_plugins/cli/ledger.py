"""``gkt ledger``: what was used, what it cost, what the teacher alone would have cost, and whether the bill agrees."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gkt_plugins.errors import BackendError, ConfigError

if TYPE_CHECKING:
    from gkt_plugins.accounting.location import Location
    from gkt_plugins.contracts import PriceSource

__all__ = ["register"]

ledger = typer.Typer(help="What was used, what it cost, and whether the bill agrees.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.add_typer(ledger, name="ledger")


class By(StrEnum):
    """What a report tells apart."""

    PIPELINE = "pipeline"
    MODEL = "model"
    ROLE = "role"
    DAY = "day"


ConfigOption = Annotated[
    Path | None, typer.Option("--config", help="gkt.toml; default: GKT_CONFIG, else gkt.toml in this folder.")
]
UrlOption = Annotated[
    str | None,
    typer.Option("--url", help="sqlite:///FILE or postgresql://HOST/DATABASE; default: the configuration's."),
]
SinceOption = Annotated[
    str | None, typer.Option("--since", help="Only calls from this day or time on, e.g. 2026-11-21; UTC.")
]
UntilOption = Annotated[str | None, typer.Option("--until", help="Only calls before this day or time; UTC.")]


@ledger.command()
def report(
    config: ConfigOption = None,
    url: UrlOption = None,
    by: Annotated[list[By] | None, typer.Option("--by", help="May be repeated; default: model.")] = None,
    since: SinceOption = None,
    until: UntilOption = None,
    ratio: Annotated[
        list[str] | None,
        typer.Option("--ratio", help="TEACHER,STUDENT=R: measured teacher tokens per student token; default 1."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of tables.")] = False,
) -> None:
    """Add up calls, tokens, seconds and money. An unknown cost is counted as unknown, never as zero."""
    from gkt_plugins.accounting.records import read_records
    from gkt_plugins.accounting.report import DIMENSIONS, build_report

    place, prices = _ledger_and_prices(config, url)
    chosen = [name for name in DIMENSIONS if name in (by or [By.MODEL])]
    ratios = dict(_parse_ratio(text) for text in ratio or [])
    records = read_records(place, since=_moment("--since", since), until=_moment("--until", until))
    built = build_report(records, chosen, prices=prices, token_ratios=ratios)
    if as_json:
        typer.echo(json.dumps(built.as_json(), ensure_ascii=False, indent=2))
    else:
        from rich.console import Console

        from gkt_plugins.accounting.tables import show

        show(built, Console())


@ledger.command()
def recover(config: ConfigOption = None, url: UrlOption = None) -> None:
    """Mark calls whose process died as interrupted. Every opening of the ledger does this by itself."""
    from gkt_plugins.accounting.ledger import Ledger
    from gkt_plugins.accounting.records import ledger_version

    place, _ = _ledger_and_prices(config, url)
    ledger_version(place)  # a ledger that does not exist is not made
    opened = Ledger(place)
    opened.close()
    typer.echo(f"{opened.recovered} calls marked interrupted.")


@ledger.command()
def export(
    config: ConfigOption = None,
    url: UrlOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    requests: Annotated[bool, typer.Option("--requests", help="Requests of clients instead of engine calls.")] = False,
    jsonl: Annotated[str, typer.Option("--jsonl", metavar="FILE", help="Where to write; - is the terminal.")] = "-",
) -> None:
    """Write every engine call, or every request, as one line of JSON; unknown is null."""
    from gkt_plugins.accounting.export import write_jsonl
    from gkt_plugins.accounting.records import read_records, read_requests

    place, _ = _ledger_and_prices(config, url)
    read = read_requests if requests else read_records
    records = read(place, since=_moment("--since", since), until=_moment("--until", until))
    if jsonl == "-":
        write_jsonl(records, sys.stdout)
        return
    try:
        with Path(jsonl).open("w", encoding="utf-8") as out:
            lines = write_jsonl(records, out)
    except OSError as exc:
        raise BackendError(f"the export {jsonl!r} could not be written: {exc}; name another file") from exc
    typer.echo(f"{lines} records written to {jsonl}.", err=True)


@ledger.command()
def reconcile(
    bill: Annotated[Path, typer.Argument(help="The provider's bill: CSV with a heading line.", metavar="BILL.csv")],
    config: ConfigOption = None,
    url: UrlOption = None,
    since: Annotated[
        str | None, typer.Option("--since", help="Only calls from then on; default: the bill's first day.")
    ] = None,
    until: Annotated[
        str | None, typer.Option("--until", help="Only calls before then; default: the end of the bill's last day.")
    ] = None,
    tolerance: Annotated[
        str, typer.Option("--tolerance", help="Fraction of the bill by which both may differ, in [0, 1).")
    ] = "0.01",
    column: Annotated[
        list[str] | None,
        typer.Option("--column", help="FIELD=HEADING, e.g. cost='Amount (USD)'; may be repeated."),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", help="BILLED=LEDGER: the ledger's name of a model that is billed under another one."),
    ] = None,
    engine: Annotated[
        list[str] | None,
        typer.Option("--engine", help="Engine that the bill is for: all its models must be billed. May be repeated."),
    ] = None,
    currency: Annotated[str, typer.Option("--currency", help="The bill's.")] = "USD",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
) -> None:
    """Hold the ledger against a provider's bill, per model. Exit code 1 where they do not agree."""
    from gkt_plugins.accounting.bill import FIELDS, read_bill
    from gkt_plugins.accounting.reconcile import period
    from gkt_plugins.accounting.reconcile import reconcile as compare
    from gkt_plugins.accounting.records import read_records

    allowed = _parse_tolerance(tolerance)
    lines = read_bill(bill, dict(_parse_pair("--column", text, keys=tuple(FIELDS)) for text in column or []))
    place, _ = _ledger_and_prices(config, url)
    first, last = period(lines)
    start, end = _moment("--since", since), _moment("--until", until)
    result = compare(
        lines,
        read_records(place, since=first if start is None else start, until=last if end is None else end),
        tolerance=allowed,
        currency=currency,
        names=dict(_parse_pair("--model", text) for text in model or []),
        engines=engine or (),
    )
    if as_json:
        typer.echo(json.dumps(result.as_json(), ensure_ascii=False, indent=2))
    else:
        from rich.console import Console

        from gkt_plugins.accounting.tables import show_reconciliation

        show_reconciliation(result, Console())
    if not result.agrees:
        raise typer.Exit(1)


def _ledger_and_prices(config: Path | None, url: str | None) -> tuple[Location, PriceSource | None]:
    """Where the ledger is, and today's prices. With ``--url`` alone no configuration is read, so prices are unknown."""
    from gkt_plugins.accounting.location import Location

    if url is not None and config is None:
        return Location.of(url), None
    from gkt_plugins.accounting.accountant import price_sources
    from gkt_plugins.config import load_config
    from gkt_plugins.plugins import load_plugins

    plugins = load_plugins()
    loaded = load_config(config, plugins=plugins)
    place = Location.of(loaded.ledger.resolved_url(os.environ), loaded.base_dir) if url is None else Location.of(url)
    return place, price_sources(loaded, plugins)


def _moment(option: str, text: str | None) -> float | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as exc:
        raise ConfigError(f"{option} must be a day or a time, such as 2026-11-21T08:00, got {text!r}") from exc
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _parse_pair(option: str, text: str, *, keys: Sequence[str] = ()) -> tuple[str, str]:
    left, _, right = text.partition("=")
    if not (left and right) or (keys and left not in keys):
        expected = f"FIELD=HEADING, with a field out of {', '.join(keys)}" if keys else "BILLED=LEDGER"
        raise ConfigError(f"{option} must be {expected}, got {text!r}")
    return left, right


def _parse_tolerance(text: str) -> Decimal:
    try:
        tolerance = Decimal(text)
    except InvalidOperation:
        tolerance = Decimal("NaN")
    if not (tolerance.is_finite() and 0 <= tolerance < 1):
        raise ConfigError(f"--tolerance must be a fraction in [0, 1), such as 0.01, got {text!r}")
    return tolerance


def _parse_ratio(text: str) -> tuple[tuple[str, str], Fraction]:
    pair, _, number = text.rpartition("=")
    teacher, _, student = pair.partition(",")
    try:
        ratio = Fraction(number)
    except (ValueError, ZeroDivisionError):
        ratio = Fraction(0)
    if not (teacher and student and ratio > 0):
        raise ConfigError(f"--ratio must be TEACHER,STUDENT=R with R above 0, such as large,small=1.12, got {text!r}")
    return (teacher, student), ratio
