"""A pipeline of the configuration, ready to answer: engines, policies and the ledger behind one object.

::

    async with Pipeline.from_config(load_config()) as pipeline:
        answer = await pipeline.answer("Why is the sky blue?")

    answers = answer_all(load_config(), ["Why is the sky blue?", "…"])  # scripts and notebooks
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from gkt_plugins.contracts import BuildContext, Engine, Message, Options, Prompt, Sampling
from gkt_plugins.errors import ConfigError
from gkt_plugins.guidance.answers import Answer
from gkt_plugins.guidance.attempts import Attempts
from gkt_plugins.guidance.batch import BatchOptions, run_batch
from gkt_plugins.guidance.cache import open_cache
from gkt_plugins.guidance.events import Request, Rules, StageSampling
from gkt_plugins.guidance.exchange import Exchange, Parts
from gkt_plugins.guidance.presets import PRESETS, Preset
from gkt_plugins.guidance.request import Piece, run_exchange, run_request

if TYPE_CHECKING:
    from types import TracebackType

    from gkt_plugins.config import Config, PipelineSection
    from gkt_plugins.plugins import Plugins

__all__ = ["Pipeline", "answer_all", "default_sampling", "open_pipelines"]

T = TypeVar("T")


class Pipeline:
    """Answers requests with one teacher and one student. Use it as an ``async with`` block."""

    def __init__(
        self,
        open_parts: Callable[[AsyncExitStack], Awaitable[Parts]],
        *,
        sampling: Sampling | None = None,
        batches: BatchOptions | None = None,
    ) -> None:
        """Prefer :meth:`from_config` or :meth:`of`. ``open_parts`` builds, and pushes what has to be closed again."""
        self._open_parts = open_parts
        self._parts: Parts | None = None
        self._stack = AsyncExitStack()
        self.sampling = sampling or Sampling()
        """What a request is answered with that does not say how."""
        self.batches = batches or BatchOptions()

    @classmethod
    def of(cls, parts: Parts, *, sampling: Sampling | None = None, batches: BatchOptions | None = None) -> Pipeline:
        """A pipeline of engines that the caller has built, and closes."""

        async def given(stack: AsyncExitStack) -> Parts:
            return parts

        return cls(given, sampling=sampling, batches=batches)

    @classmethod
    def from_config(
        cls,
        config: Config,
        *,
        name: str = "default",
        plugins: Plugins | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Pipeline:
        """The pipeline ``[pipelines.NAME]``; its engines and the ledger are opened by ``async with``.

        ``env`` stands in for ``os.environ``.

        :raises ConfigError: there is no such pipeline. Entering the block raises what the engines raise.
        """
        from gkt_plugins.plugins import load_plugins

        environment = os.environ if env is None else env
        installed = load_plugins(env=environment) if plugins is None else plugins
        if name not in config.pipelines:
            known = ", ".join(sorted(config.pipelines)) or "none"
            raise ConfigError(f"there is no pipeline {name!r}; [pipelines.NAME] sections that exist: {known}")
        preset = _preset(config.pipelines[name])

        async def open_parts(stack: AsyncExitStack) -> Parts:
            return (await open_pipelines([name], config, installed, environment, stack))[name]

        batches = None if preset is None else preset.batches
        return cls(open_parts, sampling=default_sampling(config.pipelines[name]), batches=batches)

    async def __aenter__(self) -> Pipeline:
        async with AsyncExitStack() as stack:
            self._parts = await self._open_parts(stack)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._parts = None
        await self._stack.aclose()

    @property
    def parts(self) -> Parts:
        """What the drivers take. :raises RuntimeError: outside the ``async with`` block."""
        if self._parts is None:
            raise RuntimeError("a pipeline answers inside 'async with pipeline:' only")
        return self._parts

    def request(
        self, prompt: str | Prompt | Iterable[Message] | Request, *, sampling: Sampling | None = None, n: int = 1
    ) -> Request:
        """``prompt`` as a request: a string is one user turn of a chat; a raw text is a ``Prompt(text=…)``."""
        if isinstance(prompt, Request):
            return prompt
        if isinstance(prompt, str):
            prompt = Prompt.chat(prompt)
        elif not isinstance(prompt, Prompt):
            prompt = Prompt(messages=tuple(prompt))
        return Request(prompt, sampling or self.sampling, n)

    async def answer(
        self, prompt: str | Prompt | Iterable[Message] | Request, *, sampling: Sampling | None = None, n: int = 1
    ) -> Answer:
        """One request, answered whole.

        :raises GktError: it cannot be answered. A choice that failed says so in :attr:`Choice.error`.
        """
        exchange = Exchange(self.request(prompt, sampling=sampling, n=n), self.parts)
        async with aclosing(run_exchange(exchange, self.parts, whole=True)) as pieces:
            async for _ in pieces:
                pass
        return exchange.answer

    def stream(
        self, prompt: str | Prompt | Iterable[Message] | Request, *, sampling: Sampling | None = None, n: int = 1
    ) -> AsyncGenerator[Piece, None]:
        """One request, in pieces while it is written; see :func:`~gkt_plugins.guidance.request.run_request`."""
        return run_request(self.request(prompt, sampling=sampling, n=n), self.parts)

    def batch(
        self, prompts: Iterable[str | Prompt | Request], *, sampling: Sampling | None = None, n: int = 1
    ) -> AsyncGenerator[Answer, None]:
        """Many requests, each answer as it finishes; see :func:`~gkt_plugins.guidance.batch.run_batch`."""
        requests = (self.request(prompt, sampling=sampling, n=n) for prompt in prompts)
        return run_batch(requests, self.parts, self.batches)


async def open_pipelines(
    names: Iterable[str],
    config: Config,
    plugins: Plugins,
    env: Mapping[str, str],
    stack: AsyncExitStack,
    *,
    resources: Mapping[str, Any] | None = None,
) -> dict[str, Parts]:
    """The parts of several pipelines. An engine that two of them name is built once; one ledger and one guidance cache
    serve all, and what is learnt of a failing engine.

    ``stack`` closes what was opened; it must be left also when this raises what an engine or the ledger raised.
    ``resources``: what the host lends to engines.
    """
    from gkt_plugins.accounting.accountant import open_accountant  # loads the database library

    lent = {**(resources or {}), "config": config, "plugins": plugins}
    context = BuildContext(base_dir=config.base_dir, env=env, resources=lent)
    sections = {name: config.pipelines[name] for name in names}
    engines: dict[str, Engine] = {}
    for engine in [engine for section in sections.values() for engine in (section.teacher, section.student)]:
        if engine is not None and engine not in engines:
            built = config.engines[engine]
            build = plugins.engines().build
            engines[engine] = await asyncio.to_thread(
                build, built.adapter, built.options, replace(context, name=engine)
            )
            stack.push_async_callback(engines[engine].aclose)
    accounts = await asyncio.to_thread(open_accountant, config, plugins, env)
    stack.push_async_callback(accounts.aclose)
    cache = None if config.cache is None else open_cache(config.cache, config.base_dir, env)
    if cache is not None:
        stack.push_async_callback(cache.aclose)
    attempts = Attempts.from_section(config.retries)
    opened: dict[str, Parts] = {}
    for name, section in sections.items():
        teacher = engines[section.teacher] if section.teacher else None
        student = engines[section.student]
        rules = _rules(section, _preset(section), plugins, context, teacher, student)
        opened[name] = Parts(rules, student, teacher, accounts, name, cache, attempts)
    return opened


def default_sampling(section: PipelineSection) -> Sampling:
    """What a request is answered with that does not say how: greedy, within the preset's tokens or 256."""
    preset = _preset(section)
    return Sampling() if preset is None else Sampling(max_tokens=preset.max_tokens)


def _preset(section: PipelineSection) -> Preset | None:
    return None if section.guidance.preset is None else PRESETS[section.guidance.preset]


def answer_all(
    config: Config,
    prompts: Iterable[str | Prompt],
    *,
    name: str = "default",
    sampling: Sampling | None = None,
    n: int = 1,
    plugins: Plugins | None = None,
) -> list[Answer]:
    """Answers to all ``prompts``, in their order, for code without an event loop and for notebooks, which have one."""

    async def run() -> list[Answer]:
        async with Pipeline.from_config(config, name=name, plugins=plugins) as pipeline:
            requests = [
                replace(pipeline.request(prompt, sampling=sampling, n=n), request_id=os.urandom(16).hex())
                for prompt in prompts
            ]
            async with aclosing(run_batch(requests, pipeline.parts, pipeline.batches)) as answers:
                by_id = {answer.request_id: answer async for answer in answers}
        return [by_id[request.request_id] for request in requests]

    return _in_own_loop(run)


def _in_own_loop(run: Callable[[], Awaitable[T]]) -> T:
    """Run on a thread of its own: the caller's may have a running loop."""
    results: list[T] = []
    failures: list[BaseException] = []

    async def awaited() -> T:
        return await run()

    def work() -> None:
        try:
            results.append(asyncio.run(awaited()))
        except BaseException as exc:  # noqa: BLE001 - raised again below, on the caller's thread
            failures.append(exc)

    thread = threading.Thread(target=work, name="gkt-answers", daemon=True)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return results[0]


def _rules(
    section: PipelineSection,
    preset: Preset | None,
    plugins: Plugins,
    context: BuildContext,
    teacher: Engine | None,
    student: Engine,
) -> Rules:
    guidance = section.guidance
    length_options: Options = guidance.length_options
    if preset is not None and guidance.length == "fixed" and "tokens" not in length_options.model_fields_set:
        length_options = length_options.model_copy(update={"tokens": preset.guidance_tokens})
    counts = teacher is not None and teacher.capabilities.tokenizer
    return Rules(
        length=plugins.length_policies().build(guidance.length, length_options, context) if teacher else None,
        cutting=plugins.cutting_policies().build(guidance.cut, guidance.cut_options, context),
        on_teacher_error=guidance.on_teacher_error,
        student_prefix=student.capabilities.prefix,
        count_teacher_tokens=getattr(teacher, "count_tokens", None) if counts else None,
        teacher_sampling=preset.teacher if preset else StageSampling(),
        student_sampling=preset.student if preset else StageSampling(),
        cutting_name=f"{guidance.cut} {guidance.cut_options.model_dump_json()}",
    )
