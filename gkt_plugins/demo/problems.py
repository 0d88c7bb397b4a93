"""Seeded grade-school word problems with worked answers that state a plan and then carry it out.

The plan holds the operations and quantities of the question, no result of any of them; finding it takes reading
(whose things count, in which order, what is only told). Carrying it out takes copying and one-digit arithmetic.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from hashlib import sha256
from random import Random
from typing import Literal

from gkt_plugins.demo._families import BYSTANDERS, FAMILIES, NAMES, NUMBER_WORDS, RELATIONS, TRANSFERS, Family, Wording
from gkt_plugins.demo._worked import Operator, Step, Voice, apply, plan_text, worked_text

__all__ = [
    "FAMILY_NAMES", "NUMBER_WORDS", "RESERVED_CLASSES", "Problem", "Role", "Split", "Step", "Voice", "generate",
    "is_reserved", "parse_answer", "problems", "score", "templates",
]  # fmt: skip

Split = Literal["train", "test"]
Role = Literal["", "start", "+", "-", "*", "/", "ending"]

FAMILY_NAMES: tuple[str, ...] = tuple(family.name for family in FAMILIES)
RESERVED_CLASSES = 8
"""One question in so many, by hash, is kept for testing and never trained on."""

_MAX_TOTAL = 150
_STEP_COUNTS, _STEP_WEIGHTS = (2, 3, 4, 5, 6), (30, 38, 21, 8, 3)
_ANSWER = re.compile(r"The answer is ([-−]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?)\.(?!\d)")


@dataclass(frozen=True)
class Problem:
    """A word problem with its worked answer."""

    seed: int
    family: str
    question: str
    plan: str
    """The first line of ``answer``: operations and quantities of the question, no results."""
    answer: str
    """Plan, worked steps, and a last sentence "The answer is 72."."""
    result: int
    steps: tuple[Step, ...]
    """2 to 6 operations on a running total."""
    roles: tuple[Role, ...]
    """What each sentence after the question does: it starts, it is an operation, it is one only if the question asks
    for it ("ending"), or it does not count ("")."""


def generate(
    seed: int,
    *,
    split: Split = "train",
    families: Sequence[str] = FAMILY_NAMES,
    max_steps: int = 6,
    voice: Voice = "corpus",
) -> Problem:
    """The problem of this seed: the same arguments give the same problem.

    :param split: "test" gives only questions of the reserved class, "train" none of them.
    :param families: names to choose from, see :data:`FAMILY_NAMES`.
    :param max_steps: the most operations, 2 to 6.
    :param voice: how the answer is worded; the question is the same.
    :raises ValueError: an unknown family, or ``max_steps`` out of range.
    """
    if not 2 <= max_steps <= 6:
        raise ValueError(f"max_steps must be from 2 to 6, got {max_steps}")
    if unknown := set(families) - set(FAMILY_NAMES):
        raise ValueError(f"unknown families {sorted(unknown)}; known: {', '.join(FAMILY_NAMES)}")
    chosen = [family for family in FAMILIES if family.name in families]
    rng = Random(f"{split}:{seed}")
    weights = [w if n <= max_steps else 0 for n, w in zip(_STEP_COUNTS, _STEP_WEIGHTS, strict=True)]
    while True:
        num_steps = rng.choices(_STEP_COUNTS, weights)[0]
        try:
            story = _Story(rng.choice(chosen), num_steps, rng)
        except _DeadEndError:
            continue
        question = story.tell()
        if story.keeps_results(question) and is_reserved(question) == (split == "test"):
            break
    plan = plan_text(story.steps)
    conclusion = story.say(story.conclusion, r=story.total)
    conclusion = conclusion[0].upper() + conclusion[1:]
    answer = f"{plan}\n{worked_text(story.steps, rng, voice)}\n{conclusion} The answer is {story.total}."
    return Problem(seed, story.family.name, question, plan, answer, story.total, tuple(story.steps), story.roles)


def problems(
    first_seed: int,
    count: int,
    *,
    split: Split,
    families: Sequence[str] = FAMILY_NAMES,
    voice: Voice = "corpus",
) -> Iterator[Problem]:
    """The problems of ``count`` consecutive seeds."""
    seeds = range(first_seed, first_seed + count)
    return (generate(seed, split=split, families=families, voice=voice) for seed in seeds)


def is_reserved(question: str) -> bool:
    """Whether this question is kept for testing: its hash falls into the reserved class."""
    return sha256(question.encode()).digest()[0] % RESERVED_CLASSES == 0


def parse_answer(text: str) -> Decimal | None:
    """The number of the sentence "The answer is N.", sign and decimals kept.

    None when there is no such complete sentence, or when several name different numbers: nothing is guessed.
    """
    found = {Decimal(number.replace(",", "").replace("−", "-")) for number in _ANSWER.findall(text)}
    return found.pop() if len(found) == 1 else None


def score(problem: Problem, text: str) -> bool | None:
    """Whether ``text`` ends in the right number; None when it names none (see :func:`parse_answer`)."""
    answer = parse_answer(text)
    return None if answer is None else answer == problem.result


def templates() -> tuple[str, ...]:
    """Every sentence template in use."""
    shared = [wording.text for wordings in RELATIONS.values() for wording in wordings]
    shared += [wording.text for wordings in TRANSFERS.values() for wording in wordings]
    return tuple(dict.fromkeys([text for family in FAMILIES for text in family.templates] + shared + [*BYSTANDERS]))


class _Story:
    """One story: a chain of operations on a running total, and the sentences that tell it."""

    def __init__(self, family: Family, num_steps: int, rng: Random) -> None:
        self.family, self.rng = family, rng
        self.person, self.friend, self.partner = rng.sample(NAMES, 3)
        self.things, self.other_things = rng.sample(family.things, 2)
        self.question, self.conclusion = family.question, family.conclusion
        self.steps: list[Step] = []
        self._roles: dict[str, Role] = {}
        ending = rng.choice(family.endings) if rng.random() < 0.3 else None
        start, facts = self._start()
        events = [self._event() for _ in range(num_steps - len(self.steps) - (ending is not None))]
        if len(events) > 1 and rng.random() < 0.25:
            i = rng.randrange(len(events) - 1)
            events[i : i + 2] = [f"{events[i + 1]} before that, {events[i]}"]
        facts += [self._distractor() for _ in range(rng.choices((0, 1, 2), (25, 50, 25))[0])]
        if ending is None:
            if rng.random() < 0.25:
                facts.append(self._noted("ending", self.say(rng.choice(family.endings).fact, n=rng.randint(2, 5))))
        else:
            self.question, self.conclusion = ending.question, ending.conclusion
            facts.append(self._noted("ending", self._step({ending.op: (Wording(ending.fact),)})))
        for fact in facts:  # told anywhere: they say themselves when or whether they count
            events.insert(rng.randint(0, len(events)), fact)
        self.sentences = [*start, *events]

    @property
    def roles(self) -> tuple[Role, ...]:
        """The role of each sentence after the question, in the order told."""
        told = " ".join(self.sentences).removesuffix(".").split(". ")
        return tuple(self._roles.get(sentence.removeprefix("before that, "), "") for sentence in told)

    @property
    def total(self) -> int:
        """The running total."""
        return self.steps[-1].after if self.steps else self.first

    def say(self, template: str, **words: int | str) -> str:
        """A sentence about the person and the things asked for, unless ``words`` name others."""
        return template.format(**{"p": self.person, "q": self.friend, "x": self.things, **words})

    def tell(self) -> str:
        """The question's text."""
        text = " ".join([self.say(self.question), *self.sentences])  # first: a reader then knows whose things count
        return re.sub(r"(^|[.?] )([a-z])", lambda m: m[1] + m[2].upper(), text)

    def keeps_results(self, question: str) -> bool:
        """Whether no result, intermediate or final, happens to be a number of the question."""
        said = {int(number) for number in re.findall(r"\d+", question)} | set(NUMBER_WORDS.values())
        return said.isdisjoint(step.after for step in self.steps)

    def _start(self) -> tuple[list[str], list[str]]:
        """What is told first, and what may be told anywhere."""
        rng, kind = self.rng, self.rng.random()
        if kind < 0.15:
            self.first, size = rng.randint(2, 9), rng.randint(2, 6)
            self._advance("*", size)
            return [self._noted("start", self.say(self.family.groups, n=self.first, m=size))], []
        self.first = rng.randint(4, 40)
        if kind < 0.3:
            return [], [self._noted("start", self.say("at first {p} had {n} {x}.", n=self.first))]
        template = rng.choice(self.family.starts)
        if kind < 0.5:
            first = self._noted("start", self.say(template, p=self.friend, n=self.first))
            told = [first, self._step(RELATIONS)]
            return told if rng.random() < 0.6 else told[::-1], []
        return [self._noted("start", self.say(template, n=self.first))], []

    def _event(self) -> str:
        return self._step(TRANSFERS if self.rng.random() < 0.2 else self.family.events, q=self.partner)

    def _step(self, wordings: Mapping[Operator, Sequence[Wording]], **words: str) -> str:
        """Advance by an operation that the numbers allow, and tell it.

        :raises _DeadEndError: none is possible.
        """
        options = [(op, w, n) for op, ws in wordings.items() for w in ws if (n := self._operands(op, w))]
        if not options:
            raise _DeadEndError
        op, wording, operands = self.rng.choice(options)
        operand = self.rng.choice(operands)
        self._advance(op, operand)
        return self._noted(op, self.say(wording.text, n=operand, **words))

    def _noted(self, role: Role, sentence: str) -> str:
        self._roles[sentence.removesuffix(".")] = role
        return sentence

    def _advance(self, op: Operator, operand: int) -> None:
        self.steps.append(Step(self.total, op, operand, apply(self.total, op, operand)))

    def _operands(self, op: Operator, wording: Wording) -> list[int]:
        """The operands that keep the total a whole number from 2 to ``_MAX_TOTAL``."""
        total, most = self.total, {"+": 30, "-": 30, "*": 5, "/": 5}[op]
        wanted = range(2, most + 1) if wording.operand is None else (wording.operand,)
        exact = (n for n in wanted if op != "/" or total % n == 0)
        return [n for n in exact if 2 <= apply(total, op, n) <= _MAX_TOTAL]

    def _distractor(self) -> str:
        """A sentence with a number that does not count."""
        return self.say(self.rng.choice([*self.family.asides, *BYSTANDERS]), n=self.rng.randint(2, 30))


class _DeadEndError(Exception):
    """The numbers so far allow no operation of the kind wanted."""
