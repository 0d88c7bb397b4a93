"""Text to ids and back, exact at the seam.

What a completion says is the difference between two decodings: context with the new tokens, less context alone.
Decoding the new tokens by themselves would lose the leading space of a word (Metaspace) or half a character.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os.path import commonprefix
from typing import Any

from gkt_plugins.contracts import Prompt
from gkt_plugins.errors import EngineError, require

__all__ = ["Detokenizer", "Encoded", "TextCodec"]

CONTEXT_TOKENS = 8
"""Prompt tokens that the first new token is decoded after; one would do for every decoder we know of."""

HELD_TOKENS = 64
"""A character that so many tokens did not complete is broken; waiting on would only cost time."""

REWRITTEN = "degraded: the chat template rewrote the answer prefix; it was put after the generation prompt instead"


@dataclass(frozen=True, slots=True)
class Encoded:
    """A prompt as the model sees it."""

    ids: list[int]
    notes: tuple[str, ...] = ()


class TextCodec:
    """One model's tokenizer and chat template."""

    def __init__(self, tokenizer: Any, *, model: str) -> None:
        self._tokenizer = tokenizer
        self._model = model
        self._special = frozenset(i for i, token in tokenizer.added_tokens_decoder.items() if token.special)
        self._eos = tokenizer.eos_token_id

    @property
    def tokenizer(self) -> Any:
        return self._tokenizer

    @property
    def has_chat_template(self) -> bool:
        return bool(self._tokenizer.chat_template)

    def count_tokens(self, text: str) -> int:
        """Tokens of ``text`` alone, without those that a prompt begins or ends with."""
        return len(self._ids(text, special=False))

    def encode(self, prompt: Prompt, prefix: str = "") -> Encoded:
        """A decoder-only model's prompt: everything up to the first token of the completion.

        :raises EngineError: the prompt is empty, or is a chat and the model has no template.
        """
        if prompt.text is None:
            rendered, notes = self._render(prompt, prefix)
            return Encoded(self._ids(rendered, special=False), notes)
        if not prompt.text:
            raise EngineError("the prompt is empty; give at least one character")
        return Encoded(self._without_eos(self._ids(prompt.text + prefix, special=True)))

    def encode_source(self, prompt: Prompt) -> Encoded:
        """An encoder's input: a whole text, ended as the model was trained.

        :raises EngineError: as :meth:`encode`.
        """
        if prompt.text is None:
            rendered, notes = self._render(prompt, "")
            return Encoded(self._ids(rendered, special=False), notes)
        if not prompt.text:
            raise EngineError("the prompt is empty; give at least one character")
        return Encoded(self._ids(prompt.text, special=True))

    def encode_target_prefix(self, prefix: str) -> list[int]:
        """The beginning of a decoder's answer, without the start token: empty for an empty prefix."""
        if not prefix:
            return []
        return self._without_eos([int(i) for i in self._tokenizer(text_target=prefix)["input_ids"]])

    def detokenizer(self, prompt_ids: Sequence[int]) -> Detokenizer:
        """Turns the tokens that follow ``prompt_ids`` into text."""
        return Detokenizer(self._tokenizer, self._special, prompt_ids[-CONTEXT_TOKENS:])

    def _render(self, prompt: Prompt, prefix: str) -> tuple[str, tuple[str, ...]]:
        if not self.has_chat_template:
            raise EngineError(f"model {self._model!r} has no chat template; send the prompt as text")
        turns = [{"role": m.role, "content": m.content} for m in prompt.messages]
        if prefix:
            continued = self._continue_final_message(turns, prefix)
            if continued is not None:
                return continued, ()
        opened = self._apply(turns, add_generation_prompt=True)
        return opened + prefix, (REWRITTEN,) if prefix else ()

    def _continue_final_message(self, turns: list[dict[str, str]], prefix: str) -> str | None:
        """None when the template does not leave the prefix as it is: trims it, hides parts of it, or refuses it."""
        try:
            rendered = self._apply([*turns, {"role": "assistant", "content": prefix}], continue_final_message=True)
        except (EngineError, ValueError):
            return None
        return rendered if rendered.endswith(prefix) else None

    def _apply(self, turns: list[dict[str, str]], **options: bool) -> str:
        jinja2 = require("jinja2", extra="transformers")
        try:
            return str(self._tokenizer.apply_chat_template(turns, tokenize=False, **options))
        except jinja2.TemplateError as exc:
            raise EngineError(f"the chat template of {self._model!r} refuses the messages: {exc}") from exc

    def _ids(self, text: str, *, special: bool) -> list[int]:
        return [int(i) for i in self._tokenizer(text, add_special_tokens=special)["input_ids"]]

    def _without_eos(self, ids: list[int]) -> list[int]:
        """Some tokenizers end every text, which would end the answer before it began."""
        return ids[:-1] if ids and ids[-1] == self._eos else ids


class Detokenizer:
    """Text of a growing sequence of tokens: every piece is final, and no piece ends inside a character.

    ``"".join`` of all pieces is the same however the tokens arrive.
    """

    def __init__(self, tokenizer: Any, special: frozenset[int], context: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._special = special
        self._window = list(context)
        self._known = len(self._window)  # tokens of the window whose text has been given out

    def push(self, ids: Sequence[int]) -> str:
        """The text that ``ids`` complete; special tokens have none."""
        return "".join(self._push_one(i) for i in ids if i not in self._special)

    def finish(self) -> str:
        """What is left when no more tokens come: a broken character, as U+FFFD."""
        return self._emit()

    def _push_one(self, token: int) -> str:
        self._window.append(token)
        unfinished = self._decode(self._window).endswith("\ufffd")
        if unfinished and len(self._window) - self._known < HELD_TOKENS:
            return ""
        return self._emit()

    def _emit(self) -> str:
        before, after = self._decode(self._window[: self._known]), self._decode(self._window)
        text = after[len(commonprefix([before, after])) :]  # noqa: RUF071 - characters are meant
        del self._window[: max(0, self._known - 1)]
        self._known = len(self._window)
        return text

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
