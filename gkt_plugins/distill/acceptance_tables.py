"""Acceptance on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from gkt_plugins.distill.acceptance_report import FEW, AcceptanceReport, Comparison, compare
from gkt_plugins.evaluation.statistics import Estimate

__all__ = ["show"]


def show(report: AcceptanceReport, console: Console, *, against: AcceptanceReport | None = None) -> None:
    """All figures of ``report``, beside those of another draft on the same prompts where there is one."""
    comparison = None if against is None else compare(against, report)
    kind = "greedy agreement" if report.temperature == 0 else "1 − total variation"
    console.rule(f"temperature {report.temperature:g}, {len(report.prompts)} prompts, {report.tokens} tokens")
    console.print(f"acceptance_tv ({kind}): [bold]{shown(report.acceptance_tv)}[/]", highlight=False)
    if against is not None and comparison is not None:
        difference = _verdict(comparison.acceptance_tv, 0, "+.3f")
        console.print(f"other draft: {shown(against.acceptance_tv)}, difference {difference}", highlight=False)
    console.print(_by_gamma(report, against, comparison))
    console.print(_by_position(report))
    families = _by_family(report)
    if families is not None:
        console.print(families)


def shown(estimate: Estimate, form: str = ".3f") -> str:
    """A value with its interval, where there is one."""
    if not estimate.n:
        return "–"
    if estimate.n < FEW:
        return f"{estimate.value:{form}} [dim]of {estimate.n} alone[/]"
    return f"{estimate.value:{form}} [dim]\\[{estimate.low:{form}}, {estimate.high:{form}}][/]"


def _verdict(estimate: Estimate, question: float, form: str) -> str:
    """An interval that answers the question whether there is a difference is bright."""
    text = shown(estimate, form)
    if not estimate.excludes(question):
        return text
    return f"[{'green' if estimate.value > question else 'red'}]{text}[/]"


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _by_gamma(report: AcceptanceReport, against: AcceptanceReport | None, comparison: Comparison | None) -> Table:
    last = ("other draft", "gain") if comparison is not None else ("predicted", "acceptance_rate")
    table = _table("Tokens per target call", "gamma", "block_efficiency", *last)
    for gamma in report.gammas:
        if against is not None and comparison is not None:
            other, gain = against.block_efficiency(gamma), comparison.block_efficiency[gamma]
            cells = [f"{other.value:.2f}", _verdict(gain, 1, ".3f")]
        else:
            cells = [f"{report.predicted_block_efficiency(gamma).value:.2f}", shown(report.acceptance_rate(gamma))]
        table.add_row(str(gamma), shown(report.block_efficiency(gamma), ".2f"), *cells)
    return table


def _by_position(report: AcceptanceReport) -> Table:
    gamma = max(report.gammas)
    table = _table(f"By place in a block of {gamma}", "place", "tested", "accepted / tested")
    for place, estimate in enumerate(report.by_position):
        tested = sum(prompt.positions[place][0] for prompt in report.prompts)
        table.add_row(str(place + 1), str(tested), shown(estimate))
    return table


def _by_family(report: AcceptanceReport) -> Table | None:
    families = report.by_family
    if not families:
        return None
    gamma = max(report.gammas)
    table = _table("By family of problems", "family", "prompts", "acceptance_tv", f"block_efficiency at {gamma}")
    table.columns[0].justify = "left"
    for name, part in families.items():
        cells = str(len(part.prompts)), shown(part.acceptance_tv), shown(part.block_efficiency(gamma), ".2f")
        table.add_row(name or "(none)", *cells)
    return table
