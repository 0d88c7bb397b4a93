"""Engines: text in, text out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, runtime_checkable

if TYPE_CHECKING:
    from gkt_plugins.errors import EngineError

__all__ = [
    "Call",
    "Capabilities",
    "Completion",
    "Delta",
    "Engine",
    "Examinable",
    "Finding",
    "FinishReason",
    "Forwarder",
    "Message",
    "Preparable",
    "Prompt",
    "Reachable",
    "Sampling",
    "Usage",
]

FinishReason: TypeAlias = Literal["stop", "length", "cancelled"]
"""``stop``: end-of-sequence or a stop string. ``length``: the token budget. ``cancelled``: the caller went away."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the user asked: raw ``text``, or ``messages`` for the model's chat template. Exactly one is set."""

    text: str | None = None
    messages: tuple[Message, ...] = ()

    def __post_init__(self) -> None:
        if (self.text is None) == (not self.messages):
            raise ValueError("a prompt is either text or messages, and not both")

    @classmethod
    def chat(cls, content: str) -> Prompt:
        """A single user turn."""
        return cls(messages=(Message("user", content),))


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen, for one call. The defaults are greedy."""

    max_tokens: int = 256
    """Upper bound on generated tokens, at least 1, counted by the engine's own tokenizer."""
    temperature: float = 0.0
    """0 is greedy; otherwise logits are divided by it."""
    top_k: int = 0
    """0 keeps all."""
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    """Text that ends the answer and is not part of it."""
    seed: int | None = None
    """Draws of this call alone; None takes a fresh one."""
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Options of the serving API that are passed on as they came (``frequency_penalty``, ``logit_bias``, …); an engine
    that cannot honour one of them fails the call and names it."""


@dataclass(frozen=True, slots=True)
class Call:
    """One answer asked of one engine. Several choices are several calls with different seeds."""

    prompt: Prompt
    prefix: str = ""
    """Assistant text that the engine continues; the completion does not repeat it."""
    sampling: Sampling = Sampling()
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens and seconds of one call; None is *unknown*, which is not zero."""

    prompt_tokens: int | None = None
    """Includes the prefix and the cached tokens."""
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    seconds: float | None = None
    """Share of the engine's wall time: a batch's seconds are split by generated tokens and add up to wall time."""
    estimated: bool = False
    """True when the engine did not report the counts itself."""


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished answer, without the prefix that the call carried."""

    text: str
    finish_reason: FinishReason
    usage: Usage = Usage()
    notes: tuple[str, ...] = ()
    """What the caller should know: ``degraded: …``, ``lenient: …``."""


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of a streamed answer. The last one carries ``finish_reason`` and ``usage``."""

    text: str
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine can do; drivers choose a path by it and refuse what it lacks."""

    prefix: Literal["completion", "continue_final_message", "provider_flag", "hint"] = "completion"
    """Best way to continue a given answer prefix; ``hint`` is a different method and is marked ``degraded``."""
    logprobs: bool = False
    stream_usage: bool = True
    batch: bool = False
    """True: concurrent calls are worth sending together."""
    tokenizer: bool = False
    """True: ``count_tokens(text) -> int`` exists and is exact."""
    speculates: bool = False


@runtime_checkable
class Engine(Protocol):
    """Text in, text out; asynchronous. In-process engines work on their own thread."""

    @property
    def name(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def capabilities(self) -> Capabilities: ...

    async def generate(self, calls: Sequence[Call]) -> list[Completion | EngineError]:
        """Answer a batch, in order. One bad row harms no other: it comes back as an error in its place."""
        ...

    def stream(self, call: Call) -> AsyncIterator[Delta]:
        """Answer one call in pieces. Closing the iterator cancels the call. Raises :class:`EngineError`."""
        ...

    async def aclose(self) -> None:
        """Release threads, connections and memory. Safe to call twice."""
        ...


@runtime_checkable
class Forwarder(Protocol):
    """What an engine may be besides: one that speaks the OpenAI API itself, so that a request which guidance cannot
    serve (tools, structured output, log-probabilities, echo, images) reaches it untouched."""

    def forward(
        self, route: Literal["chat", "completions"], body: Mapping[str, Any]
    ) -> AsyncIterator[Mapping[str, Any]]:
        """Send ``body`` with this engine's own model name; yield the chunks of a stream, or the one whole response.

        Closing the iterator cancels the call. Raises :class:`EngineError`.
        """
        ...


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that an engine found out about what is behind it."""

    name: str
    """A word or two for a table, such as ``prefix route``."""
    value: str
    """What was found, for a person."""
    good: bool | None = None
    """False: something will not work, or not well. None: neither good nor bad."""
    advice: str = ""
    """One sentence: what to do about it."""


@runtime_checkable
class Examinable(Protocol):
    """What an engine may be besides: one that asks what is behind it what it can do. ``gkt doctor`` prints it."""

    async def examine(self, *, refresh: bool = False) -> Sequence[Finding]:
        """Ask, or tell what is known from before; ``refresh``: ask in any case. A few tokens may be spent.

        Raises :class:`EngineError`: nothing could be asked.
        """
        ...


@runtime_checkable
class Preparable(Protocol):
    """What an engine may be besides: one that has something to find out before its first call. A server lets it, while
    nobody waits."""

    async def prepare(self) -> None:
        """Find it out, where it is not known yet. Raises :class:`EngineError`: that cannot be done now."""
        ...


@runtime_checkable
class Reachable(Protocol):
    """What an engine may be besides: one that can tell, at no cost, whether what is behind it answers. A server that
    starts looks whether its teachers are there."""

    async def reach(self) -> None:
        """Raises :class:`EngineError`: it does not answer, or not to us."""
        ...
