"""``adapter = "vllm"``: inside a vLLM server that server itself, elsewhere an engine of vLLM in this process."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

from gkt_openai.engine import OpenAIEngine
from gkt_openai.options import OpenAIOptions
from gkt_openai.usage import BusyTime
from gkt_plugins.contracts import BuildContext, Call, Capabilities, Completion, Delta, Engine, FinishReason, Usage
from gkt_plugins.errors import ConfigError, EngineError
from gkt_vllm.counters import count_each_request, drafts_of
from gkt_vllm.inner import under_way
from gkt_vllm.options import VllmOptions
from gkt_vllm.serving import SERVER, ThisServer
from gkt_vllm.versions import installed_version

__all__ = ["OfflineEngine", "build_engine"]

_HONOURED = frozenset({"frequency_penalty", "presence_penalty"})


def build_engine(options: VllmOptions, context: BuildContext) -> Engine:
    """``context.resources["vllm_server"]``: the server around this process, which is the engine then.

    :raises ConfigError: vLLM refuses the model or an argument.
    :raises MissingDependencyError: vLLM is not installed.
    """
    server: ThisServer | None = context.resources.get(SERVER)
    if server is None:
        return OfflineEngine(options, context)
    # The server's own front door, without the network; it continues answers by that flag in every version.
    own = OpenAIOptions(base_url="http://vllm/v1", model=server.model, prefix="continue_final_message")
    resources = {**context.resources, "http_transport": server.transport}
    return _Here(own, BuildContext(context.name, context.base_dir, context.env, resources), options.model)


class _Here(OpenAIEngine):
    """The server, under the name that prices and records know: for a request to one of its adapters, that one's."""

    def __init__(self, options: OpenAIOptions, context: BuildContext, model: str) -> None:
        super().__init__(options, context)
        self._known_as = model

    @property
    def model(self) -> str:
        now = under_way.get(None)
        return (now and now.adapter) or self._known_as


class OfflineEngine:
    """An :class:`~gkt_plugins.contracts.Engine` over vLLM's asynchronous engine; it batches by itself."""

    def __init__(self, options: VllmOptions, context: BuildContext) -> None:
        """Start it, which takes its time. :raises ConfigError: vLLM refuses the model or an argument."""
        # Its log goes to standard output otherwise, which is the program's own: 'gkt run --json' answers there.
        os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
        installed_version()
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.exceptions import VLLMError
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.async_llm import AsyncLLM

        folder = (context.base_dir or Path()) / options.model
        source = str(folder.resolve()) if folder.is_dir() else options.model
        self._name = context.name or options.model
        self._model = Path(source).name if folder.is_dir() else options.model
        try:
            arguments = AsyncEngineArgs(model=source, **options.engine_args)
        except TypeError as exc:
            raise ConfigError(f"engines.{self._name}.engine_args must hold arguments of vLLM: {exc}") from exc
        try:
            vllm_config = arguments.create_engine_config(UsageContext.ENGINE_CONTEXT)
            if vllm_config.speculative_config is not None:
                count_each_request(vllm_config)
            self._engine: Any = AsyncLLM.from_vllm_config(
                vllm_config,
                enable_log_requests=arguments.enable_log_requests,
                disable_log_stats=arguments.disable_log_stats,
            )
        except (ValueError, OSError, RuntimeError, VLLMError) as exc:
            said = " ".join(str(exc).split())
            raise ConfigError(
                f"vLLM does not start with the model and arguments of engines.{self._name}: {said}"
            ) from exc
        self._busy = BusyTime()
        self._tokenizer: Any = self._engine.get_tokenizer()

    @property
    def name(self) -> str:
        return self._name

    @property
    def model(self) -> str:
        """What ``[prices.MODEL]`` calls it: a folder's last name, or the name on the Hub."""
        return self._model

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(prefix="completion", batch=True, tokenizer=True)

    def count_tokens(self, text: str) -> int:
        """Tokens of ``text`` alone, exactly."""
        return len(self._tokenizer.encode(text, add_special_tokens=False))

    async def generate(self, calls: Sequence[Call]) -> list[Completion | EngineError]:
        """Answer ``calls`` in order, all at once."""
        return list(await asyncio.gather(*map(self._complete, calls)))

    async def _complete(self, call: Call) -> Completion | EngineError:
        texts: list[str] = []
        try:
            async for delta in self.stream(call):
                texts.append(delta.text)
        except EngineError as exc:
            return exc
        assert delta.finish_reason is not None
        assert delta.usage is not None
        return Completion("".join(texts), delta.finish_reason, delta.usage)

    async def stream(self, call: Call) -> AsyncGenerator[Delta, None]:
        """Answer ``call`` in pieces. Closing the iterator aborts it."""
        from vllm.exceptions import VLLMClientError, VLLMServerError

        begun = self._busy.begin()
        seconds = 0.0
        sent = 0
        last: Any = None
        try:
            params = _params(call)
            prompt = {"prompt_token_ids": self._prompt(call)}
            identity = f"{call.request_id}-{uuid.uuid4().hex}"
            async with aclosing(self._engine.generate(prompt, params, identity)) as outputs:
                async for last in outputs:
                    text = last.outputs[0].text
                    if len(text) > sent and not last.finished:
                        yield Delta(text[sent:])
                        sent = len(text)
        except (ValueError, VLLMClientError) as exc:
            raise EngineError(f"vLLM refused the call to engine {self._name!r}: {exc}") from exc
        except VLLMServerError as exc:
            raise EngineError(f"vLLM failed in the call to engine {self._name!r}; see what it logged") from exc
        finally:
            seconds = self._busy.end(begun)
        if last is None or not last.finished:
            raise EngineError(f"vLLM ended the call to engine {self._name!r} without an answer", retryable=True)
        [answer] = last.outputs
        reason: FinishReason = "length" if answer.finish_reason == "length" else "stop"
        drafted, accepted = drafts_of(answer)
        usage = Usage(
            prompt_tokens=len(last.prompt_token_ids),
            cached_tokens=last.num_cached_tokens,
            completion_tokens=len(answer.token_ids),
            drafted_tokens=drafted,
            accepted_tokens=accepted,
            seconds=seconds,
        )
        yield Delta(answer.text[sent:], reason, usage)

    async def aclose(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            await asyncio.to_thread(engine.shutdown)

    def _prompt(self, call: Call) -> list[int]:
        """Token ids of the prompt with the prefix behind it."""
        tokenizer = self._tokenizer
        if call.prompt.text is not None:
            return list(tokenizer.encode(call.prompt.text + call.prefix))
        turns = [{"role": message.role, "content": message.content} for message in call.prompt.messages]
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return list(tokenizer.encode(text + call.prefix, add_special_tokens=False))


def _params(call: Call) -> Any:
    """:raises EngineError: an option that vLLM's engine does not have."""
    from vllm import SamplingParams

    sampling = call.sampling
    extra = dict(sampling.extra)
    wishes = extra.pop("vllm_xargs", None)
    if unknown := sorted(extra.keys() - _HONOURED):
        raise EngineError(f"vLLM has no option {unknown[0]!r}; leave it out")
    return SamplingParams(
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_k=sampling.top_k or -1,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
        stop=list(sampling.stop),
        seed=sampling.seed,
        extra_args=wishes,
        **extra,
    )
