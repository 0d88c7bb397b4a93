"""The word problems: honest plans, right answers, and test questions that no training ever sees."""

import re
import subprocess
import sys
from dataclasses import replace
from decimal import Decimal

import pytest

from gkt_plugins.demo.problems import (
    FAMILY_NAMES,
    NUMBER_WORDS,
    Problem,
    generate,
    is_reserved,
    parse_answer,
    problems,
    score,
    templates,
)

SAMPLE = [*problems(0, 500, split="train"), *problems(0, 60, split="test")]


def said_in(question: str) -> list[int]:
    """The numbers of a question, in digits or words."""
    return [int(n) if n.isdigit() else NUMBER_WORDS[n] for n in re.findall(r"\d+|" + "|".join(NUMBER_WORDS), question)]


def test_a_plan_holds_the_steps_quantities_and_operations_and_nothing_else() -> None:
    for problem in SAMPLE:
        parsed = re.fullmatch(r"Plan: (\d+(?: [-+*/]\d+)+)\.", problem.plan)
        assert parsed, problem.plan
        first, *chain = parsed[1].split(" ")
        assert int(first) == problem.steps[0].before
        assert [(op[0], int(op[1:])) for op in chain] == [(step.op, step.operand) for step in problem.steps]


def test_every_quantity_of_a_plan_is_said_in_the_question() -> None:
    for problem in SAMPLE:
        said = said_in(problem.question)
        for quantity in [problem.steps[0].before, *(step.operand for step in problem.steps)]:
            said.remove(quantity)  # each mention serves once


def test_neither_plan_nor_question_holds_a_result() -> None:
    for problem in SAMPLE:
        said = {*said_in(problem.question), *map(int, re.findall(r"\d+", problem.plan))}
        assert said.isdisjoint(step.after for step in problem.steps)


def test_steps_follow_from_each_other_and_lead_to_the_result() -> None:
    for problem in SAMPLE:
        assert 2 <= len(problem.steps) <= 6
        for step in problem.steps:
            right = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b, "/": lambda a, b: a / b}
            assert right[step.op](step.before, step.operand) == step.after
        for step, following in zip(problem.steps, problem.steps[1:], strict=False):
            assert step.after == following.before
        assert problem.steps[-1].after == problem.result


def test_every_equation_written_out_is_true() -> None:
    for problem in SAMPLE:
        for left, right in re.findall(r"(?<= )(\d+(?:[-+*/]\d+)+)=(\d+)", problem.answer):
            assert eval(left.replace("/", "//")) == int(right), problem.answer  # digits and operators only


def test_an_answer_starts_with_its_plan_and_ends_with_its_result() -> None:
    for problem in SAMPLE:
        assert problem.answer.startswith(problem.plan + "\n")
        assert problem.answer.endswith(f" The answer is {problem.result}.")
        assert score(problem, problem.answer) is True


def test_all_numbers_of_steps_and_operations_occur() -> None:
    assert {len(problem.steps) for problem in SAMPLE} == {2, 3, 4, 5, 6}
    assert {step.op for problem in SAMPLE for step in problem.steps} == set("+-*/")


def test_most_questions_hold_numbers_that_do_not_count() -> None:
    spare = [len(said_in(problem.question)) - len(problem.steps) - 1 for problem in SAMPLE]
    assert sum(n > 0 for n in spare) > 0.7 * len(spare)


def test_there_are_many_templates_in_named_families() -> None:
    assert len(templates()) >= 100
    assert len(FAMILY_NAMES) == 10
    assert {problem.family for problem in SAMPLE} == set(FAMILY_NAMES)


def test_families_can_be_chosen() -> None:
    assert {problem.family for problem in problems(0, 50, split="train", families=("shop", "farm"))} == {"shop", "farm"}


def test_roles_name_what_each_sentence_after_the_question_does() -> None:
    for problem in SAMPLE:
        assert problem.question.count(".") == len(problem.roles)
        assert "start" in problem.roles
        told = [role for role in problem.roles if role in ("+", "-", "*", "/")]
        assert len(problem.steps) - 2 <= len(told) <= len(problem.steps)  # a product at the start, an ending


def test_the_same_seed_gives_the_same_problem() -> None:
    assert [generate(seed) for seed in range(50)] == [generate(seed) for seed in range(50)]
    assert generate(7) == replace(generate(7), seed=7)
    assert generate(7) != generate(8)
    assert generate(7, split="test") != generate(7, split="train")


def test_the_space_of_problems_is_large() -> None:
    assert len({problem.question for problem in SAMPLE}) == len(SAMPLE)


def test_training_questions_are_never_of_the_reserved_class_and_test_questions_always() -> None:
    train = {generate(seed).question for seed in range(1000)}
    test = {generate(seed, split="test").question for seed in range(60)}
    assert not any(map(is_reserved, train))
    assert all(map(is_reserved, test))
    assert train.isdisjoint(test)


def test_unknown_family_and_step_count_are_errors() -> None:
    with pytest.raises(ValueError, match=r"unknown families \['moon'\]; known: shop, garden"):
        generate(0, families=("moon",))
    with pytest.raises(ValueError, match="max_steps must be from 2 to 6, got 7"):
        generate(0, max_steps=7)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("So much for that. The answer is 72.", Decimal(72)),
        ("The answer is -5.", Decimal(-5)),
        ("The answer is −5.", Decimal(-5)),  # a minus sign, not a hyphen
        ("The answer is 3.50.", Decimal("3.5")),
        ("The answer is 1,250.", Decimal(1250)),
        ("The answer is 4. The answer is 4.", Decimal(4)),
        ("The answer is 4. The answer is 5.", None),  # contradicts itself
        ("The answer is 7", None),  # perhaps cut inside 72
        ("The answer is 3.5", None),
        ("The answer is 18 dollars.", None),
        ("The answer is 1/2.", None),
        ("The answer is 1,25.", None),
        ("The answer is seven.", None),
        ("the answer is 7.", None),
        ("7.", None),
        ("", None),
    ],
)
def test_the_scorer_reads_exactly_what_is_said_and_guesses_nothing(text: str, number: Decimal | None) -> None:
    assert parse_answer(text) == number


def test_unparsable_is_neither_right_nor_wrong() -> None:
    problem: Problem = generate(0)
    assert score(problem, "I do not know.") is None
    assert score(problem, f"The answer is {problem.result + 1}.") is False


def test_problems_are_had_without_torch() -> None:
    code = "import sys, gkt_plugins.demo.problems, gkt_plugins.demo.models; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
