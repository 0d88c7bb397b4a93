"""One way of answering the word problems, measured: right answers, tokens, money, seconds."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from time import perf_counter

from gkt_plugins.contracts import Role, Sampling
from gkt_plugins.demo.problems import Problem, score
from gkt_plugins.evaluation.statistics import Estimate, share_estimate
from gkt_plugins.guidance.answers import Answer
from gkt_plugins.guidance.pipeline import Pipeline

__all__ = ["Side", "answer_problems"]


@dataclass(frozen=True)
class Side:
    """Answers of one pipeline, in the order of the problems."""

    problems: Sequence[Problem]
    answers: Sequence[Answer]
    seconds: float
    """Wall time of the whole batch."""

    @property
    def hits(self) -> list[bool]:
        """Whether each answer ends in the right number; one that names none is wrong."""
        return [
            score(problem, answer.text) is True for problem, answer in zip(self.problems, self.answers, strict=True)
        ]

    @property
    def accuracy(self) -> Estimate:
        return share_estimate(sum(self.hits), len(self.hits))

    @property
    def costs(self) -> list[int]:
        """Nano-units of the answers, one by one.

        :raises ValueError: a call's price is unknown, so the cost is too.
        """
        costs = []
        for answer in self.answers:
            known = [record.cost_nano for record in answer.records if record.cost_nano is not None]
            if len(known) < len(answer.records):
                raise ValueError(f"{len(answer.records) - len(known)} calls of {answer.request_id} have no known cost")
            costs.append(sum(known))
        return costs

    def prompt_tokens(self, role: Role) -> list[int]:
        """Tokens that models of this role read, per problem; includes the guidance that a student was given."""
        return [sum(r.usage.prompt_tokens or 0 for r in a.records if r.role == role) for a in self.answers]

    def completion_tokens(self, role: Role) -> list[int]:
        """Tokens that models of this role wrote, per problem."""
        return [sum(r.usage.completion_tokens or 0 for r in a.records if r.role == role) for a in self.answers]


async def answer_problems(
    pipeline: Pipeline,
    problems: Sequence[Problem],
    sampling: Sampling,
    *,
    on_answer: Callable[[], object] = lambda: None,
) -> Side:
    """All problems through an open pipeline's batch driver, each with a seed of its own.

    :raises GktError: a problem could not be answered.
    """
    requests = [
        replace(pipeline.request(problem.question, sampling=replace(sampling, seed=index)), request_id=uuid.uuid4().hex)
        for index, problem in enumerate(problems)
    ]
    answers: dict[str, Answer] = {}
    begun = perf_counter()
    async for answer in pipeline.batch(requests):
        if answer.errors:
            raise answer.errors[0]
        answers[answer.request_id] = answer
        on_answer()
    seconds = perf_counter() - begun
    return Side(tuple(problems), tuple(answers[request.request_id] for request in requests), seconds)
