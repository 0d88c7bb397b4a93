"""Where an answer of vLLM's ended, as a worker can tell: its scheduler and its frontend cut what workers computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["answer_length", "ends_within"]

TextOf = Callable[[Sequence[int], bool], str]
"""Text of token ids, with or without special tokens."""


def ends_within(params: Any, new: Sequence[int], answered: int, room: int) -> bool:
    """Whether vLLM's scheduler ends a request that has gained the tokens ``new``.

    :param params: the request's sampling parameters.
    :param answered: tokens of its answer, the new ones included.
    :param room: tokens that the model's length leaves for the answer.
    """
    if answered >= _longest(params, room):
        return True
    return any(token == params.eos_token_id or token in (params.stop_token_ids or ()) for token in new)


def answer_length(params: Any, answer: Sequence[int], room: int, text_of: TextOf) -> int | None:
    """Tokens of ``answer`` that the client's answer consists of; None: it never ended, the client has left.

    A worker may have computed more than that: the rest of a block, and blocks until the frontend, which alone looks for
    stop strings, has said that it found one.
    """
    longest = _longest(params, room)
    ends = [longest] if len(answer) >= longest else []
    stops = {params.eos_token_id, *(params.stop_token_ids or ())}
    ends += [place + 1 for place, token in enumerate(answer) if token in stops][:1]
    strings = [params.stop] if isinstance(params.stop, str) else list(params.stop or ())
    if strings:
        ends += _stop_string(strings, params, answer[: min(ends, default=len(answer))], text_of)
    return min(ends, default=None)


def _stop_string(strings: Sequence[str], params: Any, answer: Sequence[int], text_of: TextOf) -> list[int]:
    """[1] how many tokens it takes for the first stop string to be there; [] where there is none."""

    def text(length: int) -> str:
        return text_of(answer[:length], bool(params.skip_special_tokens))

    unsearched = len(text(int(params.min_tokens))) if params.min_tokens else 0

    def has_one(length: int) -> bool:
        found = text(length)
        return any(found.find(string, max(unsearched + 1 - len(string), 0)) >= 0 for string in strings)

    if not has_one(len(answer)):
        return []
    without, there = 0, len(answer)
    while there - without > 1:
        middle = (without + there) // 2
        without, there = (without, middle) if has_one(middle) else (middle, there)
    return [there]


def _longest(params: Any, room: int) -> int:
    return room if params.max_tokens is None else min(int(params.max_tokens), room)
