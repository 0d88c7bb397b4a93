"""The smallest engine: it greets, and then says what it was asked."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from gkt_plugins.contracts import Call, Capabilities, Completion, Delta
from gkt_plugins.errors import EngineError


class DummyEngine:
    """Text in, text out."""

    model = "dummy"
    capabilities = Capabilities()

    def __init__(self, name: str, greeting: str) -> None:
        self.name = name
        self._greeting = greeting

    async def generate(self, calls: Sequence[Call]) -> list[Completion | EngineError]:
        return [Completion(f"{self._greeting} {call.prompt.text}", "stop") for call in calls]

    async def stream(self, call: Call) -> AsyncIterator[Delta]:
        (answer,) = await self.generate([call])
        assert isinstance(answer, Completion)
        yield Delta(answer.text, answer.finish_reason, answer.usage)

    async def aclose(self) -> None:
        pass
