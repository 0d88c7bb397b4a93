"""What our drafter's blocks and answers tell observers: ``[trace]`` of ``gkt.toml``, and plugins' ``gkt_trace``.

A step of vLLM waits for none of it. Blocks are noted as numbers; who is told, what is written, and where an answer with
stop strings ended, is for the observers' thread.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

from gkt_plugins.config import TraceSection
from gkt_plugins.contracts import TraceEvent
from gkt_plugins.distill.traffic import TrafficRecorder
from gkt_plugins.plugins import Plugins, load_plugins
from gkt_vllm.answers import answer_length
from gkt_vllm.ranks import is_first_rank
from gkt_vllm.section import DrafterSettings

__all__ = ["Tracer", "open_tracer"]

_log = logging.getLogger("vllm.gkt")


@dataclass(frozen=True, slots=True)
class _Block:
    """What became of the drafts of one request in one step."""

    before: int
    """Tokens of the answer before it."""
    drafted: tuple[int, ...]
    accepted: int
    gained: int
    """Tokens that the answer grew by."""

    @property
    def rejected(self) -> list[int]:
        """[0 or 1] the place in the answer at which the target replaced a drafted token."""
        return [self.before + self.accepted] if self.accepted < len(self.drafted) else []


@dataclass(slots=True)
class _Row:
    """A request under way."""

    identity: int
    rejected: list[int] = field(default_factory=list)
    last: _Block | None = None
    """Told one block later: only then is it known not to be the answer's last."""


@dataclass(frozen=True, slots=True)
class _Gone:
    """A request that has left. vLLM's own lists of its tokens are here, which nobody changes any more."""

    name: str
    row: _Row
    prompt: Sequence[int]
    answer: Sequence[int]
    params: Any


class Tracer:
    """One engine's traces. Its methods return at once; it remembers no more requests than the engine has."""

    def __init__(
        self,
        plugins: Plugins,
        recorder: TrafficRecorder | None,
        *,
        longest: int,
        load_tokenizer: Callable[[], Any],
    ) -> None:
        """
        :param longest: tokens of a prompt with its answer.
        :param load_tokenizer: the target's, for requests that have stop strings; called when the first one has ended.
        """
        self._plugins = plugins
        self._recorder = recorder
        self._longest = longest
        self._load_tokenizer = load_tokenizer
        self._tokenizer: Any = None
        self._rows: dict[str, _Row] = {}
        self._ended: set[str] = set()
        """Requests whose answers are complete, and which vLLM has still to take out."""
        self._identities = count()
        label = "gkt_trace" if recorder is None else f"[trace] {recorder.path}"
        self._tell_gone = plugins.observer(label, self._finish)

    @classmethod
    def build(
        cls,
        plugins: Plugins,
        section: TraceSection | None,
        base_dir: Path,
        *,
        target: str,
        engine: int = 0,
        longest: int,
        load_tokenizer: Callable[[], Any],
    ) -> Tracer | None:
        """What ``[trace]`` and the installed plugins ask for; None where nobody would see anything.

        :param target: whose answers these are.
        :param engine: which one of the server's, from 0.
        """
        if section is None and not plugins.tracing:
            return None
        recorder = None
        if section is not None:
            recorder = TrafficRecorder.from_section(section, base_dir, target=target, engine=engine)
        return cls(plugins, recorder, longest=longest, load_tokenizer=load_tokenizer)

    def step(
        self,
        requests: Mapping[str, Any],
        gained: Mapping[str, Sequence[int]],
        verified: Mapping[str, Sequence[int]],
        ended: Iterable[str],
    ) -> None:
        """vLLM has done a step.

        :param requests: vLLM's records of them, the new tokens included.
        :param gained: the new tokens of each request that has any.
        :param verified: drafted tokens that it verified, at least one, by request.
        :param ended: whose answers are complete.
        """
        for name, ids in verified.items():
            if name in gained:
                self._note_block(name, requests[name], ids, len(gained[name]))
        for name in ended:
            if name not in self._ended:
                self.left(name, requests[name])
                self._ended.add(name)

    def take_out(self, names: set[str], requests: Mapping[str, Any]) -> None:
        """vLLM takes these requests out."""
        for name in names - self._ended:
            if (request := requests.get(name)) is not None:
                self.left(name, request)
        self._ended -= names

    def _note_block(self, name: str, request: Any, drafted: Sequence[int], gained: int) -> None:
        """vLLM verified ``drafted`` of the request ``name``, which gained ``gained`` tokens by that, at least 1.

        :param request: vLLM's record of it, the new tokens included.
        """
        if not _is_traced(request):
            return
        row = self._rows.get(name)
        if row is None:
            row = self._rows[name] = _Row(next(self._identities))
        elif row.last is not None:
            row.rejected += row.last.rejected
            if self._plugins.tracing:
                self._plugins.trace(_event(name, row, request.prompt_token_ids, request.output_token_ids, row.last))
        row.last = _Block(len(request.output_token_ids) - gained, tuple(drafted), gained - 1, gained)

    def left(self, name: str, request: Any) -> None:
        """The request is finished, or gone; vLLM changes ``request``, its record of it, no more."""
        row = self._rows.pop(name, None) or _Row(next(self._identities))
        if _is_traced(request):
            params = request.sampling_params
            self._tell_gone(_Gone(name, row, request.prompt_token_ids, request.output_token_ids, params))

    def _finish(self, gone: _Gone) -> None:
        """On the observers' thread."""
        length = answer_length(gone.params, gone.answer, self._longest - len(gone.prompt), self._text)
        if length is None:
            return
        row, answer = gone.row, gone.answer[:length]
        blocks = [] if row.last is None else row.last.rejected
        if self._recorder is not None:
            rejected = [place for place in row.rejected + blocks if place < length]
            self._recorder.record(gone.name, gone.prompt, answer, rejected)
        if self._plugins.tracing:
            last = row.last
            if last is not None and last.before + last.gained < length:
                self._plugins.trace(_event(gone.name, row, gone.prompt, answer, last))
                last = None
            if last is None or last.before >= length:
                last = _Block(length - 1, (), 0, 1)
            self._plugins.trace(replace(_event(gone.name, row, gone.prompt, answer, last), finished=True))

    def _text(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        if self._tokenizer is None:
            try:
                self._tokenizer = self._load_tokenizer()
            except Exception as exc:  # noqa: BLE001 - anybody's tokenizer; serving goes on without the record
                self._tokenizer = _NoTokenizer()
                _log.warning("gkt: answers that stop strings ended are not traced: no tokenizer here (%r)", exc)
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))


def open_tracer(vllm_config: Any, settings: DrafterSettings) -> Tracer | None:
    """This worker's; None where another rank of its engine acts for it, or nobody would see anything."""
    parallel, model = vllm_config.parallel_config, vllm_config.model_config
    if parallel.tensor_parallel_size > 1 and not is_first_rank():
        return None

    def load_tokenizer() -> Any:
        from vllm.tokenizers import cached_tokenizer_from_config

        return cached_tokenizer_from_config(model)

    return Tracer.build(
        load_plugins(),
        None if settings.trace is None else TraceSection.model_validate(settings.trace),
        Path(settings.base_dir),
        target=str(model.model),
        engine=int(parallel.data_parallel_index),
        longest=int(model.max_model_len),
        load_tokenizer=load_tokenizer,
    )


class _NoTokenizer:
    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        return ""


def _is_traced(request: Any) -> bool:
    """Its prompt is tokens alone, and its answer the target's own, not an adapter's."""
    is_text = request.prompt_token_ids is not None and request.prompt_embeds is None and not request.mm_features
    return is_text and request.lora_request is None


def _event(name: str, row: _Row, prompt: Sequence[int], answer: Sequence[int], block: _Block) -> TraceEvent:
    """``block`` of the request; what it gained is cut where ``answer`` ends."""
    return TraceEvent(
        name,
        (*prompt, *answer[: block.before]),
        block.drafted,
        block.accepted,
        kept=tuple(answer[block.before : block.before + block.gained]),
        prompt_tokens=len(prompt),
        row=row.identity,
    )
