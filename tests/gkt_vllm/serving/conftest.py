"""A server that speaks as vLLM's does, with our layer on it, in this process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from gkt_plugins.accounting.records import read_records, read_requests
from gkt_plugins.testing.asgi import AsgiClient
from gkt_plugins.testing.openai_upstream import Upstream
from gkt_vllm.frozen import freeze
from gkt_vllm.info import ADDRESS, About, Keys, info
from gkt_vllm.middleware import GktMiddleware
from gkt_vllm.section import DrafterSettings, GktSection, LeniencySettings, WorkerSettings
from gkt_vllm.serving import Serving, open_serving

ANSWER = ["One", " and", " two", " are", " three."]
USAGE = {"prompt_tokens": 7, "completion_tokens": len(ANSWER), "total_tokens": 7 + len(ANSWER)}

PLAIN = """
[prices.small]
input_per_million = "1.00"
output_per_million = "2.00"
[ledger]
url = "sqlite:///ledger.db"
"""

GUIDED = """
[engines.large]
adapter = "openai"
base_url = "{url}"
model = "large"
prefix = "continue_final_message"
[engines.here]
adapter = "vllm"
model = "small"
[prices.large]
input_per_million = "2.00"
output_per_million = "10.00"
[prices.small]
input_per_million = "1.00"
output_per_million = "2.00"
[pipelines.default]
teacher = "large"
student = "here"
guidance.tokens = 4
[retries]
attempts = 1
[ledger]
url = "sqlite:///ledger.db"
"""


class FakeVllm:
    """vLLM's addresses, and what was asked of them."""

    def __init__(self) -> None:
        self.received: list[Request] = []
        self.bodies: list[Any] = []
        self.stalls = asyncio.Event()
        """Set: streams stop after their first text until the client leaves."""
        self.silent = False
        """Streams say nothing, but that the connection is alive, until the client leaves."""
        self.left = asyncio.Event()
        """A client left a stream."""
        self.status = 200
        self.events: list[dict[str, Any]] | None = None
        """What a stream says in place of the usual."""
        self.whole: Any = None
        """What an answer is in place of the usual."""

    def routes(self) -> list[Route]:
        return [Route(path, self.answer, methods=["POST"]) for path in PATHS]

    async def answer(self, request: Request) -> Response:
        self.received.append(request)
        try:
            body = dict(json.loads(await request.body()))
        except (ValueError, TypeError):
            return JSONResponse({"error": {"message": "no JSON object", "code": 400}}, 400)
        self.bodies.append(body)
        if self.status != 200:
            return JSONResponse({"error": {"message": "vLLM says no", "code": self.status}}, self.status)
        chat = "chat" in request.url.path
        own = request.headers.get("x-request-id", "vllms-own")
        about = {"id": f"{'chatcmpl' if chat else 'cmpl'}-{own}", "model": body.get("model", "small")}
        if body.get("stream"):
            return StreamingResponse(self._stream(body, about, chat=chat), media_type="text/event-stream")
        text = "".join(ANSWER)
        choice = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        whole = {**about, "choices": [{"index": 0, **choice, "finish_reason": "stop"}], "usage": USAGE}
        return JSONResponse(whole if self.whole is None else self.whole)

    async def _stream(self, body: dict[str, Any], about: dict[str, Any], *, chat: bool) -> AsyncIterator[str]:
        usual = self._events(body, about, chat=chat)
        try:
            if self.silent:
                yield ": keep-alive\n\n"
                await asyncio.Event().wait()
            for number, event in enumerate(usual if self.events is None else self.events):
                yield f"data: {json.dumps(event)}\n\n"
                if number == 1 and self.stalls.is_set():
                    await asyncio.Event().wait()
            if chat or "prompt" in body:
                yield "data: [DONE]\n\n"
        except asyncio.CancelledError:
            self.left.set()
            raise

    def _events(self, body: dict[str, Any], about: dict[str, Any], *, chat: bool) -> list[dict[str, Any]]:
        def chunk(text: str, reason: str | None) -> dict[str, Any]:
            said = {"delta": {"content": text}} if chat else {"text": text}
            return {**about, "choices": [{"index": 0, **said, "finish_reason": reason}]}

        *texts, last = ANSWER
        events = [*(chunk(text, None) for text in texts), chunk(last, "stop")]
        if (body.get("stream_options") or {}).get("include_usage"):
            return [*events, {**about, "choices": [], "usage": USAGE, "system_fingerprint": "fp"}]
        events[-1]["system_fingerprint"] = "fp"
        return events


PATHS = ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/inference/v1/generate"]


class Server:
    """One API server."""

    def __init__(
        self, app: Starlette, client: AsgiClient, vllm: FakeVllm, serving: Serving, registry: CollectorRegistry
    ) -> None:
        self.app = app
        self.client = client
        self.vllm = vllm
        self.serving = serving
        self.registry = registry
        self._folder = serving.watch.path.parent

    def records(self) -> list[Any]:
        return list(read_records(f"sqlite:///{self._folder / 'ledger.db'}"))

    def requests(self) -> list[Any]:
        return list(read_requests(f"sqlite:///{self._folder / 'ledger.db'}"))

    def metric(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)


@pytest.fixture
async def serve(tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    """``await serve(text, leniency=…, own_drafter=…, key=…)``: a server with ``text`` as its gkt.toml."""
    async with AsyncExitStack() as stack:

        async def serve(
            text: str = PLAIN,
            *,
            leniency: tuple[float, float] | None = None,
            own_drafter: bool = False,
            key: str = "",
            usage_unasked: bool = False,
            request_id_headers: bool = False,
        ) -> Server:
            file = tmp_path / "gkt.toml"
            file.write_text(text)
            lenient = leniency and LeniencySettings(rule="linear", epsilon=leniency[0], least=leniency[1])
            drafter = DrafterSettings(drafter="model", drafter_options={}, base_dir=".", auto=False)
            workers = WorkerSettings(leniency=lenient or None, drafter=drafter if own_drafter else None)
            section = GktSection(config=str(file), workers=workers)
            vllm, registry = FakeVllm(), CollectorRegistry()
            app = Starlette(routes=[*vllm.routes(), Route(ADDRESS, info)])
            app.add_middleware(GktMiddleware)
            app.state.gkt_keys = Keys([key])
            app.state.gkt_about = About("0.0", "V1", ("drafts",), ("a note",), {"vllm.function": "a reason"})
            app.state.gkt = await open_serving(
                section,
                freeze(file),
                ["small"],
                max_tokens=512,
                usage_unasked=usage_unasked,
                request_id_headers=request_id_headers,
                registry=registry,
            )
            headers = {"content-type": "application/json"}
            client = await stack.enter_async_context(AsgiClient(app, headers=headers))
            return Server(app, client, vllm, app.state.gkt, registry)

        yield serve


@pytest.fixture
def guided_config() -> str:
    """A gkt.toml with a teacher at ``{url}``."""
    return GUIDED


@pytest.fixture
async def guided(serve: Callable[..., Any]) -> AsyncIterator[Callable[..., Any]]:
    """``await guided(text, guidance=…, **options)``: a server with a teacher, and the teacher.

    ``text``: more of its gkt.toml. ``guidance``: more of its pipeline.
    """
    with Upstream("Ten and twenty are thirty, so the answer is 30.", model="large") as teacher:

        async def guided(text: str = "", *, guidance: str = "", **options: Any) -> tuple[Server, Upstream]:
            config = GUIDED.format(url=teacher.url).replace("[retries]", f"{guidance}\n[retries]")
            return await serve(config + text, **options), teacher

        yield guided
