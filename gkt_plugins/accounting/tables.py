"""A report as rich tables. What is unknown reads ``unknown``, never 0."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group as Stack
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from gkt_plugins.accounting.counterfactual import ASSUMPTIONS, Comparison, TeacherAlone
from gkt_plugins.accounting.money import NANO, format_money
from gkt_plugins.accounting.report import Group, Report, Tally

__all__ = ["render"]


def render(report: Report) -> RenderableType:
    """Everything that the report says."""
    if not report.total.calls:
        return Text("The ledger holds no calls in this time.")
    parts: list[RenderableType] = [_usage_table(report)]
    if report.total.estimated_calls:
        parts.append(Text(f"{report.total.estimated_calls} calls are estimated: their engine did not report them."))
    if report.teacher_alone.comparisons or report.teacher_alone.left_out:
        parts += ["", *_teacher_alone(report.teacher_alone)]
    return Stack(*parts)


def _usage_table(report: Report) -> Table:
    table = Table(title="Usage and cost", title_justify="left")
    for dimension in report.by:
        table.add_column(dimension, overflow="fold")
    drafts = report.total.drafted_tokens > 0
    for heading in ("calls", "prompt", "cached", "completion", *(("drafted", "accepted") if drafts else ()), "seconds"):
        table.add_column(heading, justify="right")
    table.add_column("cost", justify="right", overflow="fold")
    for group in report.groups:
        table.add_row(*(Text(value or "(none)") for value in group.key), *_cells(group, drafts=drafts))
    if len(report.groups) > 1:
        table.add_section()
        names = [Text("total"), *(Text("") for _ in report.by[1:])]
        table.add_row(*names, *_cells(report.total, drafts=drafts), style="bold")
    return table


def _cells(group: Group, *, drafts: bool) -> Iterator[Text]:
    unfinished = [f"{n:,} {status}" for status, n in sorted(group.statuses.items()) if status != "final"]
    yield Text("\n".join([f"{group.calls:,}", *unfinished]))
    for tally in (group.prompt_tokens, group.cached_tokens, group.completion_tokens):
        yield _tally(tally, f"{tally.known:,}")
    if drafts:
        yield Text(f"{group.drafted_tokens:,}")
        yield Text(f"{group.accepted_tokens:,}")
    yield _tally(group.duration_ns, f"{group.duration_ns.known / NANO:,.3f}")
    known = [format_money(nano, currency) for currency, nano in sorted(group.cost_nano.items())]
    yield Text("\n".join([*known, *_unknown(group.unknown_cost_calls)]))


def _tally(tally: Tally, known: str) -> Text:
    return Text("\n".join([*([known] if tally.known_calls else []), *_unknown(tally.unknown_calls)]))


def _unknown(calls: int) -> list[str]:
    return [f"{calls:,} unknown"] if calls else []


def _teacher_alone(estimate: TeacherAlone) -> Iterator[RenderableType]:
    table = Table(title="Against the teacher alone (estimate)", title_justify="left")
    table.add_column("pipeline", overflow="fold")
    table.add_column("teacher", overflow="fold")
    for heading in ("requests", "spent", "teacher alone", "saved"):
        table.add_column(heading, justify="right")
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
