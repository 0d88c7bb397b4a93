"""Whole answers in OpenAI's words: ``chat.completion`` and ``text_completion``, and their ``usage``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gkt_plugins.contracts import Usage, UsageRecord
from gkt_plugins.errors import GktError
from gkt_plugins.guidance.answers import Answer, Choice, total_usage
from gkt_plugins.openai_wire.provenance import Provenance
from gkt_plugins.openai_wire.requests import Asked

__all__ = ["failure", "model_list", "reply", "usage_of", "whole_characters"]


def failure(answers: Sequence[Answer]) -> GktError | None:
    """Why there is nothing to reply with: a request that cannot be answered, or choices that all failed."""
    for answer in answers:
        if answer.error is not None:
            return answer.error
    choices = [choice for answer in answers for choice in answer.choices]
    errors = [choice.error for choice in choices if choice.error is not None]
    return errors[0] if errors and len(errors) == len(choices) else None


def reply(asked: Asked, answers: Sequence[Answer], told: Provenance, *, created: int) -> dict[str, Any]:
    """The whole response. A choice that failed beside others that did not has no ``finish_reason``, and ``gkt.errors``
    says why.

    :param answers: of ``asked.requests``, in their order.
    :param created: seconds since the epoch.
    """
    choices = [choice for answer in answers for choice in answer.choices]
    shown = [_chat_choice(i, c) if asked.route == "chat" else _text_choice(i, c) for i, c in enumerate(choices)]
    gkt = told.as_json()
    errors = [{"index": i, "message": str(c.error)} for i, c in enumerate(choices) if c.error is not None]
    if errors:
        gkt["errors"] = errors
    return {
        "id": asked.request_id,
        "object": "chat.completion" if asked.route == "chat" else "text_completion",
        "created": created,
        "model": asked.model,
        "choices": shown,
        "usage": usage_of(answers),
        "gkt": gkt,
    }


def _chat_choice(index: int, choice: Choice) -> dict[str, Any]:
    message = {"role": "assistant", "content": whole_characters(choice.text), "refusal": None}
    return {"index": index, "message": message, "logprobs": None, "finish_reason": choice.finish_reason}


def _text_choice(index: int, choice: Choice) -> dict[str, Any]:
    return {
        "index": index,
        "text": whole_characters(choice.text),
        "logprobs": None,
        "finish_reason": choice.finish_reason,
    }


def whole_characters(text: str) -> str:
    """``text``, with U+FFFD for what is half a surrogate pair and so is no character."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def usage_of(answers: Sequence[Answer]) -> dict[str, Any]:
    """Tokens as the client sees them: its own prompt, and the whole answers. A count that is unknown is null.

    What each model read and wrote, guidance and its second reading included, is ``usage.gkt``.
    """
    prompt = _total([_prompt_tokens(answer) for answer in answers])
    completion = _total([_completion_tokens(answer) for answer in answers])
    usage: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": None if prompt is None or completion is None else prompt + completion,
    }
    records = [record for answer in answers for record in answer.records]
    roles = dict.fromkeys(record.role for record in records)
    usage["gkt"] = {role: _counts(total_usage(r.usage for r in records if r.role == role)) for role in roles}
    return usage


def _counts(usage: Usage) -> dict[str, Any]:
    counts: dict[str, Any] = {
        "prompt_tokens": usage.prompt_tokens,
        "cached_tokens": usage.cached_tokens,
        "completion_tokens": usage.completion_tokens,
        "estimated": usage.estimated,
    }
    if usage.drafted_tokens:
        counts |= {"drafted_tokens": usage.drafted_tokens, "accepted_tokens": usage.accepted_tokens}
    return counts


def _prompt_tokens(answer: Answer) -> int | None:
    """As the teacher counted it, else the student, whose prompt has the guidance at its end."""
    teachers = [record for record in answer.records if record.role == "teacher" and record.status != "failed"]
    if teachers:
        return teachers[-1].usage.prompt_tokens
    students = _last_attempts(answer)
    if not students or students[0].usage.prompt_tokens is None:
        return None
    return max(0, students[0].usage.prompt_tokens - answer.guidance_tokens)


def _completion_tokens(answer: Answer) -> int | None:
    """Guidance is the beginning of every choice, and each of them has it."""
    written = _total([record.usage.completion_tokens for record in _last_attempts(answer)])
    return None if written is None else written + answer.guidance_tokens * len(answer.choices)


def _last_attempts(answer: Answer) -> list[UsageRecord]:
    """The students' records that the answer was made of, one per choice."""
    last: dict[int, UsageRecord] = {}
    for record in answer.records:
        if record.role == "student" and (record.call not in last or last[record.call].attempt < record.attempt):
            last[record.call] = record
    return [last[call] for call in sorted(last)]


def _total(counts: Sequence[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def model_list(names: Sequence[str], *, created: int) -> dict[str, Any]:
    """The response of ``GET /v1/models``: models that requests may name."""
    models = [{"id": name, "object": "model", "created": created, "owned_by": "gkt"} for name in names]
    return {"object": "list", "data": models}
