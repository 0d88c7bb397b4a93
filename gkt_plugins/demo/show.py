"""The demo on a terminal: two tables, and one problem in full with who wrote what in colours."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from gkt_plugins.demo.guided import Way
from gkt_plugins.demo.speculated import Comparison
from gkt_plugins.guidance.answers import Answer

__all__ = ["show_guidance", "show_problem", "show_speculation"]

TEACHER, STUDENT, DRAFT, TARGET = "bold dark_orange3", "dodger_blue2", "green3", "bold red3"
_DRAFT_LABELS = {"draft": "draft, undistilled", "distilled": "draft, distilled"}


def show_guidance(console: Console, ways: Sequence[Way]) -> None:
    """One row a way of answering."""
    table = Table(
        title=f"Guidance (GKT): {ways[0].side.accuracy.n} word problems that training never saw, greedy",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("", no_wrap=True)
    for column in ("exact", "95 %", "teacher\ntokens", "student\ntokens", "time", "cost of\n1,000", "of\nteacher"):
        table.add_column(column, justify="right", no_wrap=True)
    teacher_cost = next(way.cost for way in ways if way.kind == "teacher")
    for way in ways:
        accuracy = way.side.accuracy
        written = {role: sum(way.side.completion_tokens(role)) for role in ("teacher", "student")}
        by_teacher = written["student"] if way.kind == "teacher" else written["teacher"]
        by_student = 0 if way.kind == "teacher" else written["student"]
        table.add_row(
            way.label,
            f"{accuracy.value:.3f}",
            f"{accuracy.low:.2f}–{accuracy.high:.2f}",
            f"{by_teacher:,}",
            f"{by_student:,}",
            f"{way.side.seconds:.1f} s",
            f"${way.cost:.4f}",
            f"{way.cost / teacher_cost:.0%}",
            style={"teacher": "dark_orange3", "student": "dodger_blue2"}.get(way.kind, ""),
        )
    console.print(table)
    console.print(
        "g: tokens that the teacher writes. Prices of the demo's gkt.toml: the student costs a tenth of the teacher. "
        "These models are so small that the time is mostly Python's; python -m benchmarks.guidance times a teacher of "
        "117 M parameters.\n",
        style="dim",
    )


def show_problem(console: Console, question: str, answer: Answer, alone: str, result: int) -> None:
    """One problem: the teacher's part, the student's part, and what the student says alone."""
    text = Text(answer.guidance, style=TEACHER)
    text.append(answer.text[len(answer.guidance) :], style=STUDENT)
    body = Group(
        Text(question, style="bold"),
        Text(f"(right: {result})\n", style="dim"),
        Text.assemble(("teacher", TEACHER), " began, ", ("student", STUDENT), " finished:"),
        text,
        Text("\nstudent alone:", style="dim"),
        Text(alone, style="dim"),
    )
    console.print(Panel(body, title="One problem in full", title_align="left", width=min(console.width, 110)))


def show_speculation(console: Console, result: Comparison) -> None:
    """Times, counts, and the first answer with accepted draft tokens in colour, for each draft."""
    table = Table(
        title=f"Speculation: target of {result.parameters / 1e6:.0f} M parameters, one prompt at a time, greedy",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    for column in ("", "tokens", "seconds", "tokens / s", "tokens per\ntarget call", "speed-up"):
        table.add_column(column, justify="left" if not column else "right")
    table.add_row("plain", f"{result.tokens:,}", *_times(result.plain_seconds, result.tokens), "1.00", "1.00")
    for name, draft in result.drafts.items():
        table.add_row(
            _DRAFT_LABELS[name],
            f"{result.tokens:,}",
            *_times(draft.seconds, result.tokens),
            f"{draft.counts.block_efficiency or 0:.2f}",
            f"{result.plain_seconds / draft.seconds:.2f}",
        )
    console.print(table)
    answers = result.prompts * len(result.drafts)
    if result.differing:
        console.print(f"{result.differing} of {answers} answers with a draft differ from the plain ones.\n")
    else:
        console.print(f"All {answers} answers with a draft are the plain ones, token for token.\n")
    parts: list[Text] = []
    for name, draft in result.drafts.items():
        parts.append(Text(f"{_DRAFT_LABELS[name]}:", style="dim"))
        text = Text()
        for piece, drafted in draft.pieces:
            text.append(piece, style=DRAFT if drafted else TARGET)
        parts.append(text)
    legend = Text.assemble("accepted ", ("draft tokens", DRAFT), ", the ", ("target's own", TARGET), ":\n")
    console.print(
        Panel(
            Group(legend, *parts),
            title="One answer, token by token",
            title_align="left",
            width=min(console.width, 110),
        )
    )


def _times(seconds: float, tokens: int) -> tuple[str, str]:
    return f"{seconds:.1f}", f"{tokens / seconds:.0f}"
