"""A Hugging Face model as an engine: text in, text out, decoded on a thread of its own.

Calls that arrive within ``max_wait_ms`` are decoded together. Decoder-only models go through gkt's decode loop, which
speculates when ``[speculation]`` is configured; encoder-decoder models go through ``generate``.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gkt_plugins.contracts import BuildContext, Call, Capabilities, Completion, Delta, Usage
from gkt_plugins.errors import ConfigError, EngineError
from gkt_plugins.speculation.alarm import AcceptanceAlarm
from gkt_transformers._loading import LoadedModel, eos_ids, load_model, load_tokenizer
from gkt_transformers._rows import Job
from gkt_transformers._text import TextCodec
from gkt_transformers._worker import BatchStats, Runner, Worker
from gkt_transformers.options import TransformersOptions

if TYPE_CHECKING:
    from gkt_plugins.config import SpeculationSection

__all__ = ["TransformersEngine"]


class TransformersEngine:
    """An :class:`~gkt_plugins.contracts.Engine` over one loaded model."""

    def __init__(
        self,
        name: str,
        model: str,
        codec: TextCodec,
        make_runner: Callable[[], Runner],
        *,
        speculates: bool = False,
        alarm: AcceptanceAlarm | None = None,
        max_batch: int = 8,
        max_wait_ms: float = 5.0,
    ) -> None:
        self._name = name
        self._model = model
        self._codec = codec
        self._speculates = speculates
        self._alarm = alarm
        self._worker = Worker(make_runner, name=name, max_batch=max_batch, max_wait_s=max_wait_ms / 1000)

    @classmethod
    def build(cls, options: TransformersOptions, context: BuildContext) -> TransformersEngine:
        """Load what ``options`` name. ``context.resources["config"]`` carries the ``[speculation]`` section.

        :raises ConfigError: no such model, no tokenizer, or a model that ``[speculation]`` does not fit.
        :raises BackendError: the weights are corrupt or incomplete.
        :raises MissingDependencyError: the extra is not installed.
        """
        tokenizer = load_tokenizer(
            options.model, base_dir=context.base_dir, trust_remote_code=options.trust_remote_code
        )
        loaded = load_model(
            options.model,
            base_dir=context.base_dir,
            dtype=options.dtype,
            device=options.device,
            trust_remote_code=options.trust_remote_code,
        )
        codec = TextCodec(tokenizer, model=options.model)
        config = context.resources.get("config")
        speculation = config.speculation if config is not None and options.speculation else None
        alarm = AcceptanceAlarm.from_section(speculation)
        make_runner = _runner(loaded, codec, options, context, speculation, alarm)
        return cls(
            context.name or options.model,
            Path(loaded.source).name if Path(loaded.source).is_dir() else options.model,
            codec,
            make_runner,
            speculates=speculation is not None,
            alarm=alarm,
            max_batch=options.max_batch,
            max_wait_ms=options.max_wait_ms,
        )

    @property
    def name(self) -> str:
        return self._name

    @property
    def model(self) -> str:
        """What ``[prices.MODEL]`` calls it: a folder's last name, or the hub id."""
        return self._model

    @property
    def stats(self) -> BatchStats:
        """How calls were collected into batches."""
        return self._worker.stats

    @property
    def alarm(self) -> AcceptanceAlarm | None:
        """Watches live acceptance, where ``speculation.expected_acceptance`` is configured."""
        return self._alarm

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            prefix="continue_final_message" if self._codec.has_chat_template else "completion",
            batch=True,
            tokenizer=True,
            speculates=self._speculates,
        )

    def count_tokens(self, text: str) -> int:
        """Tokens of ``text`` alone, exactly."""
        return self._codec.count_tokens(text)

    async def generate(self, calls: Sequence[Call]) -> list[Completion | EngineError]:
        """Answer ``calls`` in order, together with whatever else arrives in time."""
        refusals = [self._refusal(call) for call in calls]
        inboxes = [_Inbox(call, streaming=False) for call, refusal in zip(calls, refusals, strict=True) if not refusal]
        try:
            self._worker.submit([inbox.job for inbox in inboxes])
        except EngineError as exc:
            return [exc for _ in calls]
        waiting = iter(inboxes)
        try:
            return [refusal or await next(waiting).completion() for refusal in refusals]
        finally:
            for inbox in inboxes:
                inbox.job.cancelled = True  # a caller that went away; finished jobs no longer look

    async def stream(self, call: Call) -> AsyncIterator[Delta]:
        """Answer ``call`` piece by piece; the pieces joined are what :meth:`generate` returns."""
        if refusal := self._refusal(call):
            raise refusal
        inbox = _Inbox(call, streaming=True)
        self._worker.submit([inbox.job])
        try:
            while True:
                piece = await inbox.get()
                if isinstance(piece, EngineError):
                    raise piece
                yield piece
                if piece.finish_reason is not None:
                    return
        finally:
            inbox.job.cancelled = True

    def _refusal(self, call: Call) -> EngineError | None:
        """Why ``call`` cannot be answered as it asks to be."""
        if not call.sampling.extra:
            return None
        names = ", ".join(sorted(call.sampling.extra))
        return EngineError(
            f"the engine {self._name!r} decodes in this process and cannot honour {names}; leave it out of the request",
            refused=True,
        )

    async def aclose(self) -> None:
        """End the thread; rows being decoded are finished first."""
        await asyncio.to_thread(self._worker.close)


class _Inbox:
    """Carries the pieces of one answer from the model's thread to the caller's event loop."""

    def __init__(self, call: Call, *, streaming: bool) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Delta | EngineError] = asyncio.Queue()
        self.job = Job(call, self._deliver, streaming=streaming)

    async def get(self) -> Delta | EngineError:
        return await self._queue.get()

    async def completion(self) -> Completion | EngineError:
        """All pieces as one answer."""
        texts: list[str] = []
        while True:
            piece = await self.get()
            if isinstance(piece, EngineError):
                return piece
            texts.append(piece.text)
            if piece.finish_reason is not None:
                return Completion("".join(texts), piece.finish_reason, piece.usage or Usage(), piece.notes)

    def _deliver(self, piece: Delta | EngineError) -> None:
        try:
            self._loop.call_soon_threadsafe(self._queue.put_nowait, piece)
        except RuntimeError:  # the caller's event loop is gone, and the caller with it
            self.job.cancelled = True


def _runner(
    loaded: LoadedModel,
    codec: TextCodec,
    options: TransformersOptions,
    context: BuildContext,
    speculation: SpeculationSection | None,
    alarm: AcceptanceAlarm | None,
) -> Callable[[], Runner]:
    shared: dict[str, Any] = {"max_context": options.max_context, "threads": options.threads}
    if loaded.is_encoder_decoder:
        if speculation is not None:
            raise ConfigError(
                f"engine {context.name!r}: {options.model!r} is an encoder-decoder model, which cannot speculate; "
                f"set engines.{context.name or 'NAME'}.speculation = false"
            )
        from gkt_transformers._seq2seq import Seq2SeqRunner

        return functools.partial(Seq2SeqRunner, loaded, codec, **shared)
    from gkt_transformers._causal import CausalRunner
    from gkt_transformers._speculator import build_loop, lenient_note

    max_batch = options.max_batch
    try:
        loop = build_loop(loaded.module, speculation, context, tokenizer=codec.tokenizer, max_batch=max_batch)
    except ConfigError as exc:
        if speculation is None:
            raise
        name = context.name or "NAME"
        raise ConfigError(f"engine {name!r}: {exc}; or set engines.{name}.speculation = false") from exc
    shared |= {"eos_ids": eos_ids(loaded.module), "max_batch": max_batch, "notes": lenient_note(speculation)}
    shared["alarm"] = alarm
    return functools.partial(CausalRunner, loop, codec, **shared)
