"""What an engine knows of its endpoint: from its configuration, from a probe, from what was refused."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from gkt_openai.calls import Asked, Dialect
from gkt_openai.endpoint import Endpoint
from gkt_openai.errors import EndpointError
from gkt_openai.findings import Findings, FindingsFile
from gkt_openai.options import ChatRoute, OpenAIOptions
from gkt_plugins.contracts import BuildContext, Capabilities, Finding
from gkt_plugins.errors import ConfigError

__all__ = ["Knowledge"]


_PROBE_S = 60.0
"""About a dozen answers of a few tokens take no longer, also from a slow server."""


class Knowledge:
    """Findings of one endpoint and model: kept from before, or asked for when they are first needed."""

    def __init__(self, options: OpenAIOptions, context: BuildContext, endpoint: Endpoint) -> None:
        """:raises ConfigError: ``prefix`` asks for raw prompts, and there is no chat template to make them."""
        if options.prefix == "completion" and options.chat_template is None:
            raise ConfigError(
                f"engines.{context.name}.prefix is 'completion', and a chat becomes a raw prompt by the model's own "
                f"template only; set engines.{context.name}.chat_template to the folder with its tokenizer"
            )
        self.dialect = Dialect()
        self._options = options
        self._endpoint = endpoint
        self._file = FindingsFile(options.base_url, options.model, context.env)
        self._findings: Findings | None = None
        self._asking: asyncio.Task[Findings] | None = None
        if (kept := self._file.read()) is not None:
            self._learn(kept)

    @property
    def capabilities(self) -> Capabilities:
        """As far as they are known; before a probe the best is hoped for."""
        found = self._findings
        route = self._route(found) if found or self._options.prefix != "auto" else "continue_final_message"
        if route == "hint" and found is not None and found.completions:
            route = "completion"  # of raw prompts; in a chat the engine says itself that it only hinted
        return Capabilities(
            prefix=route if route in ("completion", "continue_final_message", "hint") else "provider_flag",
            logprobs=found is not None and max(found.chat_logprobs, found.completion_logprobs) > 0,
            stream_usage=found is None or found.stream_usage != "none",
        )

    @property
    def raw_chats(self) -> bool:
        """The endpoint has no chats, and the chat template makes raw prompts of them."""
        return self._options.chat_template is not None and self._findings is not None and not self._findings.chat

    async def chat_route(self) -> ChatRoute:
        """How a chat is continued. :raises EndpointError: it has to be found out, and cannot be."""
        if self._options.prefix != "auto":
            return self._options.prefix
        return self._route(self._findings or await self.ask())

    async def ask(self, *, refresh: bool = False) -> Findings:
        """The findings, asked for where they are not known; all who wait get the same ones, or the same failure.

        :raises EndpointError: see :func:`~gkt_openai.probe.probe`; or it takes too long.
        """
        if self._findings is not None and not refresh:
            return self._findings
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._probed())
        return await asyncio.shield(self._asking)  # one who goes away does not spoil it for the others

    async def aclose(self) -> None:
        """Stop asking."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)

    async def _probed(self) -> Findings:
        from gkt_openai.probe import probe

        try:
            async with asyncio.timeout(_PROBE_S):
                found = await probe(self._endpoint, self._options.model, self._options.body)
        except TimeoutError as exc:
            raise EndpointError(
                f"the endpoint of engine {self._endpoint.name!r} must say what it can do within {_PROBE_S:g} s, and "
                f"did not; see that it is well, or set engines.{self._endpoint.name}.prefix",
                code="upstream_timeout",
                retryable=True,
            ) from exc
        self._learn(found)
        await asyncio.to_thread(self._file.write, found)
        return found

    def relearnt(self, asked: Asked, refused: EndpointError) -> Asked | None:
        """``asked`` in other words, where the refusal is about words; None: it would be refused again."""
        if refused.status not in (400, 422):
            return None
        body = dict(asked.body)
        said = f"{refused.param} {refused}"
        if "stream_options" in said and "stream_options" in body:
            self.dialect.stream_options = False
            del body["stream_options"]
        elif asked.route == "chat" and "max_tokens" in body and "max_tokens" in said:
            self.dialect.tokens_field = "max_completion_tokens"
            body["max_completion_tokens"] = body.pop("max_tokens")
        else:
            return None
        return replace(asked, body=body)

    def _learn(self, found: Findings) -> None:
        self._findings = found
        self.dialect.tokens_field = found.tokens_field
        self.dialect.stream_options = found.stream_usage == "asked"
        self.dialect.running_usage = found.running_usage

    def _route(self, found: Findings | None) -> ChatRoute:
        if self._options.prefix != "auto":
            return self._options.prefix
        if found is None or (self._options.chat_template is not None and found.completions):
            return "completion"
        return found.chat_route

    def findings(self, found: Findings) -> Sequence[Finding]:
        """For a person."""
        return _shown(found, self._route(found), self._options)


_ROUTES: Mapping[ChatRoute, str] = {
    "completion": "raw prompt, by the model's chat template",
    "continue_final_message": "chat with continue_final_message",
    "prefix": "chat with prefix = true in the last message",
    "partial": "chat with partial = true in the last message",
    "trailing": "chat that ends with the assistant's message",
    "hint": "a hint in the user's turn, which is another method and is marked degraded",
}


def _ago(seconds: float) -> str:
    for unit_s, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * unit_s:
            return f"{seconds / unit_s:.0f} {unit} ago"
    return "just now"


def _shown(found: Findings, route: ChatRoute, options: OpenAIOptions) -> list[Finding]:
    routes = [name for name, there in (("chat", found.chat), ("raw prompts", found.completions)) if there]
    forced = "" if options.prefix == "auto" else ", as configured"
    advice = ""
    if route == "hint":
        advice = (
            "set chat_template to the folder with the model's tokenizer, and chats are sent as raw prompts"
            if found.completions
            else "use this endpoint as a teacher, or serve the student with vLLM, SGLang or llama.cpp"
        )
    usage = {"asked": "yes", "unasked": "yes, without being asked", "none": "no: counts are estimated"}
    tops = [f"{top} in {name}" for name, top in (("chat", found.chat_logprobs), ("raw prompts",
            found.completion_logprobs)) if top]  # fmt: skip
    return [
        Finding("answers", ", ".join(routes) or "nothing", bool(routes)),
        Finding("model listed", "yes" if found.models else "no: /models does not name it", found.models or None),
        Finding("prefix route", _ROUTES[route] + forced, route != "hint", advice),
        Finding("usage on streams", usage[found.stream_usage] + (", in every chunk" if found.running_usage else ""),
                found.stream_usage != "none"),
        Finding("log-probabilities", f"of the top {' and '.join(tops)}" if tops else "no", None),
        Finding("prompt log-probabilities", "yes, by echo" if found.prompt_logprobs else "no", None),
        *(Finding("note", note, None) for note in found.notes),
        Finding("asked", f"{_ago(time.time() - found.at)}, for {found.tokens_spent} tokens", None),
    ]  # fmt: skip
