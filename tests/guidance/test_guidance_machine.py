"""The machine, event by event."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gkt_plugins.contracts import Prompt, Sampling, Usage
from gkt_plugins.errors import EngineError, GktError
from gkt_plugins.guidance.events import (
    TEACHER,
    Action,
    CallEnd,
    CallFailed,
    CallKey,
    CallText,
    CancelCall,
    Cancelled,
    Emit,
    FailChoice,
    FailRequest,
    Finish,
    RecordUsage,
    Request,
    Rules,
    StageSampling,
    StartCall,
)
from gkt_plugins.guidance.machine import GuidanceMachine
from gkt_plugins.guidance.policies import FixedLength, WordCut

STUDENT = CallKey("student", 0)
RULES = Rules(FixedLength(4), WordCut())
ASKED = Request(Prompt(text="Where did the cat sit?"), Sampling(max_tokens=20))


def started(request: Request = ASKED, rules: Rules = RULES) -> tuple[GuidanceMachine, list[Action]]:
    machine = GuidanceMachine(request, rules)
    return machine, machine.start()


def length(tokens: int | None = 4) -> CallEnd:
    return CallEnd(TEACHER, "length", Usage(5, 0, tokens))


def emitted(actions: list[Action], choice: int = 0) -> str:
    return "".join(action.text for action in actions if isinstance(action, Emit) and action.choice == choice)


def student_call(actions: list[Action], choice: int = 0) -> StartCall:
    [start] = [a for a in actions if isinstance(a, StartCall) and a.key == CallKey("student", choice)]
    return start


def finish(actions: list[Action]) -> Finish:
    [end] = [action for action in actions if isinstance(action, Finish)]
    return end


def test_the_teacher_is_asked_for_g_tokens_of_the_same_prompt():
    _, [start] = started()
    assert isinstance(start, StartCall)
    assert (start.key, start.call.prompt, start.call.prefix) == (TEACHER, ASKED.prompt, "")
    assert start.call.sampling.max_tokens == 4


def test_the_student_continues_the_whole_words_and_its_leading_space_is_kept():
    machine, _ = started()
    actions = machine.receive(CallText(TEACHER, "The cat sat o"))
    actions += machine.receive(length())
    assert student_call(actions).call.prefix == "The cat sat"
    actions += machine.receive(CallText(STUDENT, " on the mat."))
    actions += machine.receive(CallEnd(STUDENT, "stop"))
    assert emitted(actions) == "The cat sat on the mat."
    assert finish(actions) == Finish(0, "stop")
    assert machine.done


def test_text_is_emitted_as_soon_as_no_cut_can_take_it_back():
    machine, _ = started()
    shown = [emitted(machine.receive(CallText(TEACHER, piece))) for piece in ("The", " ca", "t", " s")]
    assert shown == ["", "The", "", " cat"]


def test_a_teacher_that_finishes_within_g_tokens_gives_the_answer_and_the_student_is_not_called():
    machine, _ = started()
    actions = machine.receive(CallText(TEACHER, "On the mat. "))
    actions += machine.receive(CallEnd(TEACHER, "stop", Usage(5, 0, 3)))
    assert emitted(actions) == "On the mat. "
    assert not [action for action in actions if isinstance(action, StartCall)]
    assert finish(actions).finish_reason == "stop"
    assert (machine.done, machine.guidance_tokens) == (True, 3)


def test_max_tokens_bounds_guidance_and_completion_together():
    machine, _ = started()
    actions = machine.receive(CallText(TEACHER, "The cat sat on"))  # 4 tokens; 11 of 14 characters are kept
    actions += machine.receive(length())
    assert machine.guidance_tokens == 4
    assert student_call(actions).call.sampling.max_tokens == 16


def test_the_teacher_s_own_tokenizer_counts_the_kept_guidance_where_there_is_one():
    machine, _ = started(rules=replace(RULES, count_teacher_tokens=lambda text: len(text.split())))
    machine.receive(CallText(TEACHER, "The cat sat on"))
    assert student_call(machine.receive(length())).call.sampling.max_tokens == 17


def test_guidance_that_spends_max_tokens_is_the_answer_and_ends_for_length():
    machine, [start] = started(replace(ASKED, sampling=Sampling(max_tokens=3)))
    assert isinstance(start, StartCall)
    assert start.call.sampling.max_tokens == 3
    actions = machine.receive(CallText(TEACHER, "The cat sa"))
    actions += machine.receive(length(3))
    assert emitted(actions) == "The cat sa"
    assert finish(actions).finish_reason == "length"
    assert machine.done


def test_without_guidance_tokens_or_teacher_the_student_answers_alone():
    for rules in (replace(RULES, length=FixedLength(0)), replace(RULES, length=None)):
        _, actions = started(rules=rules)
        assert student_call(actions).call.sampling.max_tokens == 20
        assert student_call(actions).call.prefix == ""


def test_a_request_may_say_how_much_guidance_it_wants():
    _, [start] = started(replace(ASKED, guidance_tokens=7))
    assert isinstance(start, StartCall)
    assert (start.key, start.call.sampling.max_tokens) == (TEACHER, 7)
    _, actions = started(replace(ASKED, guidance_tokens=0))
    assert student_call(actions).call.prefix == ""


def test_guidance_asked_of_a_pipeline_without_a_teacher_is_said_to_be_off():
    machine, actions = started(replace(ASKED, guidance_tokens=7), Rules(None, WordCut()))
    assert student_call(actions).call.prefix == ""
    assert finish(machine.receive(CallEnd(STUDENT, "stop"))).notes == ("guidance off: the pipeline has no teacher",)


@pytest.mark.parametrize("feature", ["logprobs", "tools", "structured_output", "echo", "content_parts", "token_ids"])
def test_what_two_models_cannot_give_turns_guidance_off_and_the_answer_says_so(feature):
    machine, actions = started(replace(ASKED, features=frozenset({feature})))
    assert student_call(actions).call.prefix == ""
    [note] = finish(machine.receive(CallEnd(STUDENT, "stop"))).notes
    assert note.startswith(f"guidance off: the request asks for {feature}")


def test_several_choices_share_one_guidance_and_differ_in_their_seeds():
    machine, actions = started(replace(ASKED, n=3, sampling=Sampling(max_tokens=20, seed=7)))
    assert len(actions) == 1
    actions += machine.receive(CallText(TEACHER, "The cat sat"))
    actions += machine.receive(length())
    assert [student_call(actions, i).call.sampling.seed for i in range(3)] == [7, 8, 9]
    assert {student_call(actions, i).call.prefix for i in range(3)} == {"The cat"}
    for i in (2, 0, 1):
        actions += machine.receive(CallText(CallKey("student", i), f" ate {i}."))
        actions += machine.receive(CallEnd(CallKey("student", i), "stop"))
    assert [emitted(actions, i) for i in range(3)] == ["The cat ate 0.", "The cat ate 1.", "The cat ate 2."]
    billed = [action.key for action in actions if isinstance(action, RecordUsage)]
    assert billed.count(TEACHER) == 1
    assert machine.done


def test_seeds_stay_unset_where_the_request_has_none():
    _, actions = started(replace(ASKED, n=2), replace(RULES, length=None))
    assert [student_call(actions, i).call.sampling.seed for i in range(2)] == [None, None]


def test_a_teacher_that_dies_after_text_was_released_is_continued_from_exactly_that_text():
    machine, _ = started()
    actions = machine.receive(CallText(TEACHER, "The cat sa"))
    assert emitted(actions) == "The cat"
    actions += machine.receive(CallFailed(TEACHER, EngineError("connection lost")))
    assert student_call(actions).call.prefix == "The cat"
    actions += machine.receive(CallText(STUDENT, " slept."))
    end = machine.receive(CallEnd(STUDENT, "stop"))
    assert emitted(actions + end) == "The cat slept."
    [note] = finish(end).notes
    assert note == (
        "degraded: the student continued after 7 characters of guidance, because the teacher failed: connection lost"
    )


def test_a_teacher_that_dies_before_leaves_the_answer_to_the_student_or_fails_the_request_as_configured():
    machine, _ = started()
    machine.receive(CallText(TEACHER, "Th"))
    assert student_call(machine.receive(CallFailed(TEACHER, EngineError("down")))).call.prefix == ""
    [note] = finish(machine.receive(CallEnd(STUDENT, "stop"))).notes
    assert note == "degraded: the student answered alone, because the teacher failed: down"

    machine, _ = started(rules=replace(RULES, on_teacher_error="fail"))
    [record, failure] = machine.receive(CallFailed(TEACHER, EngineError("down")))
    assert isinstance(record, RecordUsage)
    assert record.status == "failed"
    assert isinstance(failure, FailRequest)
    assert str(failure.error) == "down"
    assert machine.done


def test_a_student_that_fails_fails_its_choice_only_and_says_what_was_released():
    machine, _ = started(replace(ASKED, n=2), replace(RULES, length=None))
    actions = machine.receive(CallText(STUDENT, "On the mat"))
    actions += machine.receive(CallFailed(STUDENT, EngineError("out of memory", retryable=True)))
    [failure] = [action for action in actions if isinstance(action, FailChoice)]
    assert str(failure.error) == "the student failed after 10 characters of the answer were released: out of memory"
    assert failure.error.retryable
    assert not machine.done
    other = CallKey("student", 1)
    assert emitted(machine.receive(CallText(other, "There.")), 1) == "There."
    assert finish(machine.receive(CallEnd(other, "stop"))).choice == 1
    assert machine.done


def test_cancelling_stops_every_call_and_bills_what_was_used_as_an_estimate():
    machine, _ = started(replace(ASKED, n=2))
    machine.receive(CallText(TEACHER, "The cat sat"))
    machine.receive(length())
    machine.receive(CallText(STUDENT, " on the"))
    keys = {action.key for action in machine.receive(Cancelled()) if isinstance(action, CancelCall)}
    assert keys == {STUDENT, CallKey("student", 1)}
    assert machine.receive(CallText(STUDENT, " mat")) == []
    [record, end] = machine.receive(CallEnd(STUDENT, "cancelled"))
    assert isinstance(record, RecordUsage)
    assert (record.status, record.usage.estimated, record.usage.completion_tokens) == ("cancelled", True, 3)
    assert end == Finish(0, "cancelled")
    assert not machine.done
    machine.receive(CallEnd(CallKey("student", 1), "cancelled"))
    assert machine.done


def test_cancelling_during_the_guidance_ends_all_choices_with_the_teacher_s_call():
    machine, _ = started(replace(ASKED, n=2))
    assert machine.receive(Cancelled()) == [CancelCall(TEACHER)]
    ends = machine.receive(CallEnd(TEACHER, "cancelled"))[1:]
    assert ends == [Finish(0, "cancelled"), Finish(1, "cancelled")]
    assert machine.done


def test_usage_is_on_record_before_the_last_text_goes_out():
    machine, _ = started(replace(ASKED, sampling=Sampling(stop=("mat",))), replace(RULES, length=None))
    machine.receive(CallText(STUDENT, "On the m"))
    kinds = [type(action) for action in machine.receive(CallEnd(STUDENT, "length", Usage(5, 0, 3)))]
    assert kinds == [RecordUsage, Emit, Finish]


# ------------------------------------------------------------------------------------------------------- stop strings


def stopping(*stops: str) -> Request:
    return replace(ASKED, sampling=Sampling(max_tokens=20, stop=stops))


def test_a_stop_string_that_begins_in_the_guidance_and_ends_in_the_student_s_text_ends_the_answer_before_it():
    machine, _ = started(stopping("\nQ: next"))
    actions = machine.receive(CallText(TEACHER, "On the mat.\nQ: then"))
    assert emitted(actions) == "On the mat."
    actions += machine.receive(length())
    assert student_call(actions).call.prefix == "On the mat.\nQ:"
    actions += machine.receive(CallText(STUDENT, " ne"))
    assert emitted(actions) == "On the mat."
    end = machine.receive(CallText(STUDENT, "xt question"))
    assert end == [CancelCall(STUDENT)]
    assert finish(machine.receive(CallEnd(STUDENT, "cancelled"))).finish_reason == "stop"
    assert machine.done


def test_text_held_back_for_a_stop_string_that_does_not_come_is_emitted_by_its_author():
    machine, _ = started(stopping("\nQ: next"))
    machine.receive(CallText(TEACHER, "On the mat.\nQ: then"))
    machine.receive(length())
    actions = machine.receive(CallText(STUDENT, " no"))
    assert actions == [Emit(0, "\nQ:", "teacher"), Emit(0, " no", "student")]


def test_a_stop_string_in_the_guidance_ends_the_answer_and_the_student_is_not_called():
    machine, _ = started(stopping("###"))
    actions = machine.receive(CallText(TEACHER, "On the mat. ##"))
    actions += machine.receive(CallText(TEACHER, "# More"))
    assert actions[-1] == CancelCall(TEACHER)
    assert emitted(actions) == "On the mat. "
    assert finish(machine.receive(CallEnd(TEACHER, "cancelled"))).finish_reason == "stop"
    assert machine.done


def test_what_the_cut_drops_can_bring_a_ruled_out_stop_string_back_so_its_beginning_is_not_released():
    machine, _ = started(stopping("b c d"))
    actions = machine.receive(CallText(TEACHER, "a b c x"))
    actions += machine.receive(length())
    assert student_call(actions).call.prefix == "a b c"  # and it may well go on with " d"
    assert emitted(actions) == "a "
    actions += machine.receive(CallText(STUDENT, " d e"))
    actions += machine.receive(CallEnd(STUDENT, "cancelled"))
    assert emitted(actions) == "a "
    assert finish(actions).finish_reason == "stop"


# -------------------------------------------------------------------------------------------------- notes and refusals


def test_a_student_that_can_only_be_told_the_guidance_is_marked_degraded():
    machine, _ = started(rules=replace(RULES, student_prefix="hint"))
    machine.receive(CallText(TEACHER, "The cat sat"))
    machine.receive(length())
    [note] = finish(machine.receive(CallEnd(STUDENT, "stop"))).notes
    assert note.startswith("degraded: hint")


def test_guidance_that_cannot_be_handed_over_is_named_empty():
    machine, _ = started()
    machine.receive(CallText(TEACHER, "<think>The user wants to kn"))
    actions = machine.receive(length())
    assert student_call(actions).call.prefix == ""
    [note] = finish(machine.receive(CallEnd(STUDENT, "stop"))).notes
    assert note == "guidance empty: nothing in the teacher's first 4 tokens could be handed over whole"


def test_engines_notes_are_passed_on_once():
    machine, _ = started()
    machine.receive(CallText(TEACHER, "The cat sat"))
    machine.receive(replace(length(), notes=("lenient: epsilon 0.5",)))
    end = machine.receive(CallEnd(STUDENT, "stop", None, ("lenient: epsilon 0.5", "retried")))
    assert finish(end).notes == ("lenient: epsilon 0.5", "retried")


def test_each_stage_may_have_sampling_settings_of_its_own():
    rules = replace(RULES, teacher_sampling=StageSampling(0.8, 0.9), student_sampling=StageSampling(top_p=0.95))
    machine, [start] = started(rules=rules)
    assert isinstance(start, StartCall)
    assert (start.call.sampling.temperature, start.call.sampling.top_p) == (0.8, 0.9)
    student = student_call(machine.receive(length())).call.sampling
    assert (student.temperature, student.top_p) == (0.0, 0.95)


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        (replace(ASKED, prompt=Prompt(text=" \n")), "the prompt is empty; give it at least one word"),
        (replace(ASKED, prompt=Prompt.chat("")), "the prompt is empty; give it at least one word"),
        (replace(ASKED, n=0), "n, the number of answers, must be at least 1, got 0"),
        (replace(ASKED, sampling=Sampling(max_tokens=0)), "max_tokens must be at least 1, got 0"),
        (
            replace(ASKED, guidance_tokens=-1),
            "guidance_tokens must be at least 0, got -1; 0 leaves the answer to the student",
        ),
        (stopping("a", ""), "a stop string must not be empty; leave it out to have none"),
    ],
)
def test_a_request_that_cannot_be_answered_is_refused_in_one_sentence(request_, sentence):
    machine, [failure] = started(request_)
    assert isinstance(failure, FailRequest)
    assert isinstance(failure.error, GktError)
    assert str(failure.error) == sentence
    assert machine.done


def test_a_length_policy_that_answers_a_negative_number_is_named():
    _, [failure] = started(rules=replace(RULES, length=FixedLength(-3)))
    assert isinstance(failure, FailRequest)
    assert str(failure.error) == "the length policy FixedLength must answer at least 0 guidance tokens, got -3"


def test_an_engine_that_gives_up_unasked_has_failed():
    machine, _ = started()
    actions = machine.receive(CallEnd(TEACHER, "cancelled"))
    assert student_call(actions).call.prefix == ""


def test_an_event_about_a_call_that_is_not_running_is_the_driver_s_mistake():
    machine, _ = started()
    with pytest.raises(ValueError, match="is not running"):
        machine.receive(CallText(STUDENT, "Hello"))
    with pytest.raises(ValueError, match="answers one request"):
        machine.start()
