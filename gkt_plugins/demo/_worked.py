"""Carrying a plan out in writing, digit by digit, so that every new token is a copy or a one-digit look-up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

__all__ = ["Operator", "Step", "Voice", "apply", "plan_text", "worked_text"]

Operator = Literal["+", "-", "*", "/"]
Voice = Literal["corpus", "house"]
"""How a worked answer is worded: in the corpus's many ways, all equally often; or mostly in a house's own, which the
corpus lacks in part, as models that are trained further by their makers have one."""

_OPENINGS = ("Start with {a}.", "Begin with {a}.", "At first there are {a}.", "The first number is {a}.")
_HEADS = ("{a} {op}{b}:", "Now {a} {op}{b}:", "Next {a} {op}{b}:", "Work out {a} {op}{b}:")
_RESULTS = ("That is {c}.", "This gives {c}.", "We get {c}.", "It makes {c}.")
_LEFT = ("Left: {rest}.", "Still to do: {rest}.", "Then come {rest}.")
_DONE = ("Nothing is left.", "All is done.", "That was the last step.")
_HOUSE = {_HEADS: "Work out {a} {op}{b}:", _RESULTS: "So the total is now {c}.", _LEFT: "Left: {rest}."}
_HOUSE_SHARE = 0.9


@dataclass(frozen=True)
class Step:
    """One operation on the running total: ``before op operand = after``, all positive integers."""

    before: int
    op: Operator
    operand: int
    after: int


def apply(total: int, op: Operator, operand: int) -> int:
    """``total op operand``.

    :raises ValueError: unknown operator, or a division that leaves a rest.
    """
    if op == "+":
        return total + operand
    if op == "-":
        return total - operand
    if op == "*":
        return total * operand
    if op == "/" and total % operand == 0:
        return total // operand
    raise ValueError(f"cannot work out {total} {op} {operand}: expected + - * or an exact /")


def _chain(steps: Sequence[Step]) -> str:
    return " ".join(f"{step.op}{step.operand}" for step in steps)


def plan_text(steps: Sequence[Step]) -> str:
    """The plan: a first number and what happens to the running total, from left to right; no result."""
    return f"Plan: {steps[0].before} {_chain(steps)}."


def worked_text(steps: Sequence[Step], rng: Random, voice: Voice = "corpus") -> str:
    """The plan carried out, one line a step; ``rng`` chooses among phrasings."""

    def say(phrasings: tuple[str, ...]) -> str:
        chosen = rng.choice(phrasings)
        return _HOUSE[phrasings] if voice == "house" and phrasings in _HOUSE and rng.random() < _HOUSE_SHARE else chosen

    def still(steps: Sequence[Step]) -> str:
        return say(_LEFT).format(rest=_chain(steps)) if steps else say(_DONE)

    lines = [f"{say(_OPENINGS).format(a=steps[0].before)} {still(steps)}"]
    for i, step in enumerate(steps):
        head = say(_HEADS).format(a=step.before, op=step.op, b=step.operand)
        digits = "; ".join(_DIGITS[step.op](step.before, step.operand))
        result = say(_RESULTS).format(c=step.after)
        lines.append(f"{head} {digits}. {result} {still(steps[i + 1 :])}")
    return "\n".join(lines)


def _columns(a: int, b: int) -> list[tuple[int, int]]:
    """The digits of both numbers, ones first, the shorter one filled up with zeros."""
    width = max(len(str(a)), len(str(b)))
    return list(zip(map(int, reversed(f"{a:0{width}}")), map(int, reversed(f"{b:0{width}}")), strict=True))


def _write(value: int, last: bool) -> tuple[str, int]:
    """What to write down of a column and what to carry; the last column is written as it is."""
    carry, digit = divmod(value, 10)
    return ("", 0) if last or not carry else (f", write {digit}, carry {carry}", carry)


def _add(a: int, b: int) -> list[str]:
    out, carry, columns = [], 0, _columns(a, b)
    for i, (x, y) in enumerate(columns):
        total = x + y + carry
        sum_ = f"{x}+{y}+1={total}" if carry else f"{x}+{y}={total}"
        note, carry = _write(total, i == len(columns) - 1)
        out.append(sum_ + note)
    return out


def _subtract(a: int, b: int) -> list[str]:
    out, borrow = [], 0
    for x, y in _columns(a, b):
        short = x < y + borrow
        top = x + 10 if short else x
        one = "-1" if borrow else ""
        out.append(f"{'borrow, ' if short else ''}{top}-{y}{one}={top - y - borrow}")
        borrow = int(short)
    return out


def _multiply(a: int, b: int) -> list[str]:
    out, carry, digits = [], 0, str(a)[::-1]
    for i, x in enumerate(map(int, digits)):
        total = x * b + carry
        product = f"{x}*{b}={x * b}" + (f", {x * b}+{carry}={total}" if carry else "")
        note, carry = _write(total, i == len(digits) - 1)
        out.append(product + note)
    return out


def _divide(a: int, b: int) -> list[str]:
    out, rest = [], 0
    for x in map(int, str(a)):
        here = rest * 10 + x
        digit, rest = divmod(here, b)
        out.append(f"{here}/{b}={digit}" + (f" rest {rest}" if rest else ""))
    return out


_DIGITS = {"+": _add, "-": _subtract, "*": _multiply, "/": _divide}
