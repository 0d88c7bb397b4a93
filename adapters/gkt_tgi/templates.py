"""Chats as the raw text that TGI continues."""

from __future__ import annotations

from collections.abc import Sequence

from gkt_plugins.contracts import Message
from gkt_plugins.errors import EngineError
from gkt_tgi.client import TGIClient

__all__ = ["ChatInputs"]


class ChatInputs:
    """Applies the server's chat template so that ``/generate`` reads what ``/v1/chat/completions`` would.

    ``/generate`` lets the tokenizer put its beginning-of-sequence token first, which most templates bring already: then
    the template's own is left out.
    """

    def __init__(self, client: TGIClient) -> None:
        self._client = client
        self._twice: str | None = None
        """What the template and the tokenizer would both begin with; None: not looked at yet."""

    async def of(self, messages: Sequence[Message], *, engine: str) -> str:
        """The templated chat, ready for the beginning of an answer.

        :raises EngineError: the server has no chat template, or no tokenizer to apply it with.
        """
        found = await self._client.templated(messages)
        if found is None:
            raise EngineError(
                f"the engine {engine!r} cannot continue an answer in a chat, because its server has no fast tokenizer; "
                "give it raw prompts",
                refused=True,
            )
        text, tokens = found
        if self._twice is None:
            read = await self._client.tokens(text)
            ids = [token.id for token in tokens]
            doubled = read is not None and bool(ids) and [token.id for token in read] == [ids[0], *ids]
            self._twice = text[tokens[0].start : tokens[0].stop] if doubled else ""
        return text.removeprefix(self._twice)
