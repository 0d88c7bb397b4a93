"""A report as rich tables. What is unknown reads ``unknown``, never 0."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rich import box
from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from gkt_plugins.accounting.counterfactual import ASSUMPTIONS, Comparison, TeacherAlone
from gkt_plugins.accounting.money import NANO, format_money
from gkt_plugins.accounting.reconcile import Reconciliation
from gkt_plugins.accounting.report import Group, Report, Tally

__all__ = ["show", "show_reconciliation"]

_VERY_WIDE = 10_000


def show(report: Report, console: Console) -> None:
    """Print everything that the report says. Where a terminal is too narrow lines run on: no digit is left out."""
    _print(_parts(report), console)


def show_reconciliation(result: Reconciliation, console: Console) -> None:
    """Print both sides, quantity by quantity, and what to make of it."""
    _print(_reconciliation_parts(result), console)


def _print(parts: Iterable[RenderableType], console: Console) -> None:
    terminal_width = console.width
    for part in parts:
        if isinstance(part, Table):
            _keep_whole(part)
            least = Measurement.get(console, console.options.update(max_width=_VERY_WIDE), part).minimum
            console.width = max(terminal_width, least)
        console.print(part)
        console.width = terminal_width


def _keep_whole(table: Table) -> None:
    """Columns that do not wrap are never narrower than what is in them."""
    for column in table.columns:
        if column.no_wrap:
            cells = [str(cell) for cell in (column.header, *column.cells)]
            column.min_width = max(len(line) for cell in cells for line in cell.split("\n"))


def _estimated(calls: int) -> Text:
    if calls == 1:
        return Text("1 call is estimated: its engine did not report it.")
    return Text(f"{calls:,} calls are estimated: their engine did not report them.")


def _parts(report: Report) -> Iterator[RenderableType]:
    if not report.total.calls:
        yield Text("The ledger holds no calls in this time.")
        return
    yield _usage_table(report)
    if report.total.estimated_calls:
        yield _estimated(report.total.estimated_calls)
    yield from _teacher_alone(report.teacher_alone)


def _usage_table(report: Report) -> Table:
    table = _table("Usage and cost")
    for dimension in report.by:
        table.add_column(dimension, overflow="fold")
    total = report.total
    optional = {
        "cached": total.cached_tokens.known_calls > 0,
        "accepted/drafted": total.drafted_tokens > 0,
    }
    headings = ("calls", "prompt", "cached", "completion", "accepted/drafted", "seconds", "cost")
    shown = [heading for heading in headings if optional.get(heading, True)]
    for heading in shown:
        table.add_column(heading.replace("/", "/\n"), justify="right", no_wrap=True)  # a number is never cut in two
    for group in report.groups:
        cells = _cells(group)
        table.add_row(*(Text(value or "(none)") for value in group.key), *(cells[heading] for heading in shown))
    if len(report.groups) > 1:
        table.add_section()
        names = [Text("total"), *(Text("") for _ in report.by[1:])]
        cells = _cells(total)
        table.add_row(*names, *(cells[heading] for heading in shown), style="bold")
    return table


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))


def _cells(group: Group) -> dict[str, Text]:
    unfinished = [f"{n:,} {status}" for status, n in sorted(group.statuses.items()) if status != "final"]
    money = [format_money(nano, currency) for currency, nano in sorted(group.cost_nano.items())]
    cells = {
        "calls": [f"{group.calls:,}", *unfinished],
        "prompt": _tally(group.prompt_tokens, f"{group.prompt_tokens.known:,}"),
        "cached": _tally(group.cached_tokens, f"{group.cached_tokens.known:,}"),
        "completion": _tally(group.completion_tokens, f"{group.completion_tokens.known:,}"),
        "accepted/drafted": [f"{group.accepted_tokens:,}/{group.drafted_tokens:,}"],
        "seconds": _tally(group.duration_ns, f"{group.duration_ns.known / NANO:,.3f}"),
        "cost": [*money, *_unknown(group.unknown_cost_calls)],
    }
    return {heading: Text("\n".join(lines)) for heading, lines in cells.items()}


def _tally(tally: Tally, known: str) -> list[str]:
    return [*([known] if tally.known_calls else []), *_unknown(tally.unknown_calls)]


def _unknown(calls: int) -> list[str]:
    return [f"{calls:,} unknown"] if calls else []


def _teacher_alone(estimate: TeacherAlone) -> Iterator[RenderableType]:
    table = _table("Against the teacher alone (estimate)")
    table.add_column("pipeline", overflow="fold")
    table.add_column("teacher", overflow="fold")
    for heading in ("requests", "spent", "teacher alone", "saved"):
        table.add_column(heading, justify="right", no_wrap=True)
    for comparison in estimate.comparisons:
        saving = comparison.saving
        table.add_row(
            Text(comparison.pipeline or "(none)"),
            Text(comparison.teacher),
            f"{comparison.requests:,}",
            format_money(comparison.actual_nano, comparison.currency),
            format_money(comparison.estimate_nano, comparison.currency),
            "unknown" if saving is None else f"{saving:.3f}",
        )
    if estimate.comparisons:
        yield table
    for pipeline, reason, requests in estimate.left_out:
        yield Text(f"Left out of the comparison: {requests:,} requests of {pipeline or '(none)'}: {reason}.")
    if estimate.comparisons:
        yield Text(f"Assumed: {'; '.join([*ASSUMPTIONS, *_ratios(estimate.comparisons)])}.")


def _ratios(comparisons: list[Comparison]) -> list[str]:
    return sorted(
        {
            f"{float(ratio):.3g} {comparison.teacher} tokens per {student} token"
            f" ({'measured' if measured else 'not measured'})"
            for comparison in comparisons
            for student, (ratio, measured) in comparison.token_ratios.items()
        }
    )


def _reconciliation_parts(result: Reconciliation) -> Iterator[RenderableType]:
    table = _table("The ledger against the bill")
    table.add_column("model", overflow="fold")
    table.add_column("quantity", no_wrap=True)
    for heading in ("bill", "ledger", "difference"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for difference in result.differences:
        money = result.currency if difference.quantity == "cost" else None
        booked = [] if difference.booked is None else [_amount(difference.booked, money)]
        table.add_row(
            Text(difference.model),
            difference.quantity.replace("_", " "),
            "not billed" if difference.billed is None else _amount(difference.billed, money),
            "\n".join([*booked, *_unknown(difference.unknown_calls)]),
            "" if difference.difference is None else _amount(difference.difference, money),
            difference.verdict,
            style="" if difference.verdict == "agrees" else "bold",
        )
    if not result.differences:
        yield Text("The bill has no lines.")
        return
    yield table
    estimated = {difference.model: difference.estimated_calls for difference in result.differences}
    if any(estimated.values()):
        yield _estimated(sum(estimated.values()))
    outcome = "Everything agrees" if result.agrees else "Not everything agrees"
    yield Text(f"{outcome} within {float(result.tolerance):.4g} of the bill, over {result.calls:,} calls.")


def _amount(amount: int, currency: str | None) -> str:
    return f"{amount:,}" if currency is None else format_money(amount, currency)
