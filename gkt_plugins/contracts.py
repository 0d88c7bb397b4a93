"""What hooks exchange: plain data, and the protocols that factories build.

Two rules keep third-party plugins working across releases: later versions add to this file and never bend it, and
nothing here imports an engine. Tensor types are named for type checkers only.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeAlias, TypeVar, runtime_checkable

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from gkt_plugins.config import SpeculationSection
    from gkt_plugins.errors import EngineError

__all__ = [
    "AHEAD",
    "CONTRACT_VERSION",
    "GUIDANCE_CACHE",
    "BuildContext",
    "Call",
    "Capabilities",
    "Completion",
    "CuttingPolicy",
    "DecodeState",
    "Delta",
    "Drafter",
    "Engine",
    "Examinable",
    "ExportRequest",
    "Exported",
    "Exporter",
    "Factory",
    "Finding",
    "FinishReason",
    "Forwarder",
    "LengthPolicy",
    "LeniencyRule",
    "Message",
    "Noise",
    "Options",
    "Preparable",
    "Price",
    "PriceSource",
    "Prompt",
    "Proposal",
    "Role",
    "Sampling",
    "TargetScores",
    "TraceEvent",
    "Usage",
    "UsageRecord",
    "Verdict",
    "Verifier",
]

CONTRACT_VERSION = 1
"""Version of this file. A plugin states the one it was written for as ``GKT_CONTRACT = 1`` in its module."""

GUIDANCE_CACHE = "guidance cache"
"""``price_source`` of a teacher's record whose text came from the guidance cache: it has tokens, and costs nothing."""

AHEAD = " (ahead)"
"""Ends the ``pipeline`` of a record whose guidance was asked for ahead of time: money spent, and no answer yet."""

FinishReason: TypeAlias = Literal["stop", "length", "cancelled"]
"""``stop``: end-of-sequence or a stop string. ``length``: the token budget. ``cancelled``: the caller went away."""

Role: TypeAlias = Literal["teacher", "student", "target", "draft"]

Built = TypeVar("Built", covariant=True)


# ---------------------------------------------------------------------------------------------------- text in, text out


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


# ------------------------------------------------------------------------------------------------------------- guidance


class LengthPolicy(Protocol):
    """How much guidance does this prompt get?"""

    def guidance_tokens(self, prompt: Prompt) -> int:
        """Teacher tokens to ask for, at least 0; 0 means that the student answers alone."""
        ...


class CuttingPolicy(Protocol):
    """How much of the teacher's text is certain to be handed over?"""

    def releasable(self, text: str, *, finished: bool) -> int:
        """Length in characters of the prefix of ``text`` that no later text can take back.

        ``finished``: the teacher's part is complete. Never shrinks as ``text`` grows.
        """
        ...


# ---------------------------------------------------------------------------------------------------------- speculation


class DecodeState(Protocol):
    """The rows of the batch as a drafter sees them, at the start of a block."""

    @property
    def rows(self) -> Sequence[int]:
        """[B] identity of each row, stable for its life; rows come, go and change place between blocks."""
        ...

    @property
    def token_ids(self) -> Tensor:
        """[B, T] int64, prompt and answer so far, left-aligned; what lies beyond ``lengths`` is padding."""
        ...

    @property
    def lengths(self) -> Sequence[int]:
        """[B] tokens in use of each row, at least 1."""
        ...

    @property
    def greedy(self) -> bool:
        """Every row is at temperature 0 and its logits are used as they are: the draft is their argmax, one-hot."""
        ...

    def draft_probs(self, logits: Tensor, drafted: Tensor) -> Tensor:
        """[B, vocab] distribution to draft from, under each row's own sampling options.

        ``logits``: [B, vocab] of the draft model. ``drafted``: [B, i] tokens of this block so far.
        """
        ...

    def sample(self, probs: Tensor) -> Tensor:
        """[B] tokens drawn from ``probs`` [B, vocab], with each row's own generator."""
        ...


@dataclass(slots=True)
class Proposal:
    """One drafted block."""

    ids: Tensor
    """[B, gamma] int64 drafted tokens."""
    probs: Tensor | None
    """[B, gamma, vocab] distributions they were drawn from; None means that each was certain (one-hot)."""
    counts: Tensor | None = None
    """[B] how many of the gamma are real, on the model's device; None means all. The rest is never accepted."""


class TargetScores(Protocol):
    """What the target says about the gamma + 1 positions of a block. Each form is computed when it is asked for."""

    @property
    def greedy(self) -> Sequence[bool]:
        """[B] which rows are at temperature 0."""
        ...

    def argmax(self) -> Tensor:
        """[B, gamma + 1] int64, the target's most likely token: all that greedy rows need."""
        ...

    def probs(self) -> Tensor:
        """[B, gamma + 1, vocab] float32 after temperature and truncation; greedy rows are one-hot."""
        ...

    def log_ratio(self, ids: Tensor) -> Tensor:
        """[B, gamma] log(p(token) / max p) of the drafted ``ids`` on the model's own distribution: at temperature 1,
        untruncated, at most 0."""
        ...


@dataclass(slots=True)
class Noise:
    """Uniform draws of one block, passed in so that a run can be replayed."""

    accept: Tensor
    """[B, gamma] in [0, 1)."""
    sample: Tensor
    """[B] in [0, 1), for the recovered or the bonus token."""


@dataclass(slots=True)
class Verdict:
    """What became of a block."""

    accepted: Tensor
    """[B] int64, length of the accepted prefix, in [0, gamma]."""
    next_ids: Tensor
    """[B] int64, the recovered token, or the bonus token when all were accepted."""


class Drafter(Protocol):
    """Proposes; is told afterwards what was kept."""

    def propose(self, state: DecodeState, gamma: int) -> Proposal:
        """Draft up to ``gamma`` tokens for every row."""
        ...

    def commit(self, kept: Tensor) -> None:
        """[B] drafted tokens kept of each row of the last proposal, so that caches roll back instead of recomputing."""
        ...


class Verifier(Protocol):
    """Decides. Tensors stay on the model's device; only integers reach the host."""

    def verify(self, proposal: Proposal, target: TargetScores, noise: Noise) -> Verdict:
        """Decide one block. A verifier that knows nothing of temperature 0 is right with ``target.probs()`` alone."""
        ...


class LeniencyRule(Protocol):
    """Elementwise f(p, epsilon) of the drafted token's target probability, for any array type; f(p, 1) = p."""

    def __call__(self, p: Any, epsilon: float) -> Any: ...


# --------------------------------------------------------------------------------------------------------------- export


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """What shall be written for a serving stack."""

    target: Path
    """Folder of the target model, as ``save_pretrained`` wrote it."""
    output: Path
    """Folder to write; must not exist, or be empty."""
    speculation: SpeculationSection
    """How blocks are drafted and accepted; a draft that it names is copied along."""
    base_dir: Path
    """Where a relative draft path starts."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What an exporter wrote."""

    folder: Path
    load: str
    """The exact command, or lines of Python, that load it; it runs in the folder."""
    notes: tuple[str, ...] = ()
    """What the stack does differently from the configuration, one sentence each."""


class Exporter(Protocol):
    """Writes a target and its draft in the form that one serving stack takes."""

    def export(self, request: ExportRequest) -> Exported:
        """Write the folder; it appears whole or not at all.

        :raises ConfigError: a folder is missing or of the wrong kind, ``output`` has something in it, or the stack
            cannot do what ``speculation`` says.
        """
        ...


# ----------------------------------------------------------------------------------------------------------- accounting


@dataclass(frozen=True, slots=True)
class Price:
    """Price of one model, in integer nano-units of ``currency``. None is *unknown*, never zero.

    Per token: ``input_nano`` and ``output_nano`` are nano-units per *million* tokens (exact for decimal price lists);
    ``cached_input_nano`` defaults to the input price. Per hour of own hardware: ``hour_nano``.
    """

    currency: str = "USD"
    input_nano: int | None = None
    output_nano: int | None = None
    cached_input_nano: int | None = None
    hour_nano: int | None = None
    source: str = "config"
    max_prompt_tokens: int | None = None
    """Longest prompt that the price per token holds for; a longer one costs something unknown."""


class PriceSource(Protocol):
    """Where prices come from."""

    def price(self, model: str) -> Price | None:
        """The price of ``model``; None when this source does not know it."""
        ...


@dataclass(frozen=True, slots=True)
class UsageRecord:
    """One engine call and attempt. Never any text."""

    request_id: str
    call: int
    """Number of the call within the request and role, from 0."""
    role: Role
    attempt: int
    """From 0; a retry is a new attempt and a new record."""
    engine: str
    model: str
    status: Literal["open", "final", "failed", "cancelled", "interrupted"]
    usage: Usage = Usage()
    currency: str = "USD"
    cost_nano: int | None = None
    """None: the price is unknown."""
    price_source: str | None = None
    started_at: float = 0.0
    """Seconds since the epoch, UTC."""
    pipeline: str = ""


@dataclass(frozen=True, slots=True)
class TraceEvent:
    """One verified block of one row, or the last step of a row, for re-distilling from traffic. Off by default."""

    request_id: str
    token_ids: tuple[int, ...]
    """The row before the block: prompt and answer so far."""
    drafted: tuple[int, ...]
    """Empty in a step without speculation; only a row's last step is told then."""
    accepted: int
    """How many of ``drafted`` the verifier let pass."""
    kept: tuple[int, ...] = ()
    """What the row gained: the accepted tokens, then the target's own, cut where the answer ended."""
    prompt_tokens: int = 0
    """How many of ``token_ids`` are the prompt."""
    row: int = 0
    """Identity of the row within its decode loop."""
    finished: bool = False
    """The answer is complete. A row that is cancelled, or fails, is never said to be."""


# ------------------------------------------------------------------------------------------------------------ factories


class Options(BaseModel):
    """Base of a factory's own configuration keys: frozen, unknown keys are errors, docstrings describe the keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


@dataclass(frozen=True, slots=True)
class BuildContext:
    """What a factory may use besides its own options."""

    name: str = ""
    """The name that the configuration gives to what is built, e.g. ``edge`` of ``[engines.edge]``."""
    base_dir: Path | None = None
    """Folder of the configuration file; relative paths start here."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Where secrets are looked up by name."""
    resources: Mapping[str, Any] = field(default_factory=dict)
    """Objects that the host lends: ``config``, ``plugins``, a loaded model, a mock transport in tests."""


@dataclass(frozen=True)
class Factory(Generic[Built]):
    """A name's promise: its typed options, and how to build it. Making one imports nothing heavy."""

    build: Callable[[Any, BuildContext], Built]
    options: type[Options] = Options
    summary: str = ""
    """One line for listings."""
