"""Whole answers, their usage, and the ``gkt`` object."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gkt_plugins.accounting.prices import ConfigPrices
from gkt_plugins.contracts import FinishReason, Role, Usage, UsageRecord
from gkt_plugins.errors import EngineError, GktError
from gkt_plugins.guidance.answers import Answer, Choice
from gkt_plugins.openai_wire.provenance import provenance, way_of
from gkt_plugins.openai_wire.replies import failure, model_list, reply, usage_of
from gkt_plugins.openai_wire.requests import Asked, parse
from gkt_plugins.openai_wire.usage import read_drafts, read_usage

PRICES = ConfigPrices(
    {
        "large": {"input_per_million": "2.00", "output_per_million": "10.00"},
        "small": {"input_per_million": "0.20", "output_per_million": "1.00"},
    }
)


def record(
    role: Role,
    prompt: int | None,
    completion: int | None,
    *,
    call: int = 0,
    attempt: int = 0,
    failed: bool = False,
    cost: int | None = 10,
    currency: str = "USD",
) -> UsageRecord:
    return UsageRecord(
        "it", call, role, attempt, "e", "large" if role == "teacher" else "small", "failed" if failed else "final",
        Usage(prompt, None, completion), currency=currency, cost_nano=cost,
    )  # fmt: skip


def choice(text: str = "So it is.", guidance: str = "", reason: FinishReason | None = "stop", **more) -> Choice:
    return Choice(text, guidance, reason, **more)


GUIDED = Answer(
    "it",
    (choice(guidance="So"),),
    records=(record("teacher", 5, 3), record("student", 7, 4)),
    guidance_tokens=2,
)
ALONE = Answer("it", (choice(),), records=(record("student", 6, 4),))
FINISHED = Answer("it", (choice(guidance="So it is."),), records=(record("teacher", 5, 3),), guidance_tokens=3)


def asked(route="chat", **more) -> Asked:
    given = {"prompt": "Why?"} if route == "completions" else {"messages": [{"role": "user", "content": "Why?"}]}
    return parse(route, {"model": "gkt/default", **given, **more}, request_id="it")


def told(*answers: Answer, **more):
    return provenance(answers, teacher="large", student="small", **more)


def test_a_chat_is_answered_in_openais_words():
    body = reply(asked(), [GUIDED], told(GUIDED), created=7)
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "So it is.", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert (body["id"], body["object"], body["created"], body["model"]) == ("it", "chat.completion", 7, "gkt/default")


def test_a_completion_numbers_the_choices_of_all_prompts():
    two = Answer("it", (choice("a"), choice("b", reason="length")), records=(record("student", 1, 1),))
    body = reply(asked("completions"), [two, two], told(two, two), created=7)
    assert body["object"] == "text_completion"
    assert [(c["index"], c["text"], c["finish_reason"]) for c in body["choices"]] == [
        (0, "a", "stop"), (1, "b", "length"), (2, "a", "stop"), (3, "b", "length")
    ]  # fmt: skip


def test_a_choice_that_failed_beside_others_keeps_its_text_and_says_why():
    broken = Answer("it", (choice("a"), choice("hal", reason=None, error=EngineError("it broke"))))
    body = reply(asked(), [broken], told(broken), created=7)
    assert [c["finish_reason"] for c in body["choices"]] == ["stop", None]
    assert body["choices"][1]["message"]["content"] == "hal"
    assert body["gkt"]["errors"] == [{"index": 1, "message": "it broke"}]
    assert failure([broken]) is None


def test_there_is_nothing_to_reply_with_when_every_choice_failed_or_a_request_could_not_be_answered():
    error = EngineError("it broke")
    assert failure([Answer("it", (choice(reason=None, error=error),))]) is error
    refusal = GktError("the prompt is empty")
    assert failure([GUIDED, Answer("it", error=refusal)]) is refusal
    assert failure([GUIDED]) is None


# ------------------------------------------------------------------------------------------------------------ usage


@pytest.mark.parametrize(("answer", "prompt", "completion"), [(GUIDED, 5, 6), (ALONE, 6, 4), (FINISHED, 5, 3)])
def test_usage_is_of_the_clients_prompt_and_the_whole_answer(answer, prompt, completion):
    usage = usage_of([answer])
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (prompt, completion)
    assert usage["total_tokens"] == prompt + completion


def test_usage_of_several_choices_counts_the_guidance_that_each_of_them_begins_with():
    records = (record("teacher", 5, 3), record("student", 7, 4), record("student", 7, 5, call=1))
    two = Answer("it", (choice(guidance="So"), choice(guidance="So")), records=records, guidance_tokens=2)
    assert usage_of([two])["completion_tokens"] == 2 + 4 + 2 + 5


def test_a_failed_attempt_is_no_part_of_the_answer_and_is_told_to_have_been_used():
    records = (record("student", 6, 1, failed=True), record("student", 6, 4, attempt=1))
    usage = usage_of([Answer("it", (choice(),), records=records)])
    assert usage["completion_tokens"] == 4
    assert usage["gkt"]["student"]["completion_tokens"] == 5


def test_where_the_teacher_failed_the_students_prompt_counts_without_the_guidance_in_it():
    records = (record("teacher", 5, 1, failed=True), record("student", 9, 4))
    answer = Answer("it", (choice(guidance="So"),), records=records, guidance_tokens=2)
    assert usage_of([answer])["prompt_tokens"] == 7


def test_an_unknown_count_is_null_and_so_is_a_total_with_it():
    usage = usage_of([GUIDED, Answer("it", (choice(),), records=(record("student", None, 4),))])
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (None, 10, None)


def test_what_each_model_read_and_wrote_is_told_beside():
    assert usage_of([GUIDED])["gkt"] == {
        "teacher": {"prompt_tokens": 5, "cached_tokens": None, "completion_tokens": 3, "estimated": False},
        "student": {"prompt_tokens": 7, "cached_tokens": None, "completion_tokens": 4, "estimated": False},
    }


@pytest.mark.parametrize(
    ("reported", "usage"),
    [
        (None, None),
        ("lots", None),
        ({}, Usage()),
        ({"prompt_tokens": 3, "completion_tokens": 4}, Usage(3, None, 4)),
        ({"prompt_tokens": 3, "prompt_tokens_details": {"cached_tokens": 2}}, Usage(3, 2, None)),
        ({"prompt_tokens": 3, "prompt_tokens_details": {"cached_tokens": 4}}, Usage(3, None, None)),
        ({"prompt_tokens": -3, "completion_tokens": True, "prompt_tokens_details": 7}, Usage()),
    ],
)
def test_usage_that_an_endpoint_reports_is_read_and_what_is_no_count_is_unknown(reported, usage):
    assert read_usage(reported) == usage


def test_drafts_are_told_of_a_model_that_had_some():
    drafted = record("student", 7, 4)
    drafted = replace(drafted, usage=replace(drafted.usage, drafted_tokens=8, accepted_tokens=3))
    usage = usage_of([Answer("it", (choice(),), records=(record("teacher", 5, 3), drafted))])["gkt"]
    assert (usage["student"]["drafted_tokens"], usage["student"]["accepted_tokens"]) == (8, 3)
    assert "drafted_tokens" not in usage["teacher"]


@pytest.mark.parametrize(
    ("metrics", "drafts"),
    [
        ({"speculative_decoding": {"num_draft_tokens": 8, "num_accepted_draft_tokens": 3}}, (8, 3)),
        ({"speculative_decoding": {"num_draft_tokens": 3, "num_accepted_draft_tokens": 8}}, (0, 0)),
        ({"speculative_decoding": {"num_draft_tokens": 8.5, "num_accepted_draft_tokens": 3}}, (0, 0)),
        ({"speculative_decoding": {"num_draft_tokens": 8}}, (0, 0)),
        ({"speculative_decoding": None}, (0, 0)),
        ({"time_to_first_token_ms": 3.0}, (0, 0)),
        ("many", (0, 0)),
        (None, (0, 0)),
    ],
)
def test_drafts_that_an_endpoint_tells_of_are_read_and_what_cannot_be_true_is_none(metrics, drafts):
    assert read_drafts({"usage": {}, "metrics": metrics}) == drafts


# ------------------------------------------------------------------------------------------------------- provenance


def test_an_answer_says_who_wrote_it():
    assert (way_of([GUIDED]), way_of([ALONE]), way_of([FINISHED])) == ("guided", "student", "teacher")
    assert told(GUIDED).guidance_tokens == 2


def test_cost_and_counterfactual_are_exact_decimal_strings():
    said = told(GUIDED, prices=PRICES, overhead_s=0.0012).as_json()
    # The teacher alone: 5 prompt tokens at 2 per million, and 3 + 4 of the answer at 10 per million.
    assert (said["cost"], said["counterfactual_cost"], said["currency"]) == ("0.00000002", "0.00008", "USD")
    assert said["overhead_ms"] == 1.2


def test_what_is_unknown_is_null_and_never_zero():
    said = told(Answer("it", (choice(),), records=(record("student", 6, 4, cost=None),))).as_json()
    assert (said["cost"], said["counterfactual_cost"], said["overhead_ms"]) == (None, None, None)
    mixed = Answer("it", (choice(),), records=(record("student", 1, 1), record("student", 1, 1, currency="EUR")))
    assert (told(mixed).cost_nano, told(mixed).currency) == (None, None)


def test_there_is_no_counterfactual_where_one_of_the_prompts_had_no_teacher():
    assert told(GUIDED, ALONE, prices=PRICES).counterfactual_nano is None
    assert told(GUIDED, GUIDED, prices=PRICES).counterfactual_nano == 2 * 80_000


def test_notes_are_said_once_and_one_that_says_so_makes_an_answer_degraded():
    noted = Answer("it", (choice(notes=("degraded: hint, it was told", "b")), choice(notes=("b",))))
    said = told(noted, notes=["first"])
    assert said.notes == ("first", "degraded: hint, it was told", "b")
    assert said.degraded
    assert not told(GUIDED).degraded
    assert told(GUIDED, degraded=True).degraded


def test_models_are_listed_in_openais_words():
    assert model_list(["gkt/a"], created=7) == {
        "object": "list",
        "data": [{"id": "gkt/a", "object": "model", "created": 7, "owned_by": "gkt"}],
    }
