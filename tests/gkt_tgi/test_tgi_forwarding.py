"""What goes to TGI untouched, and what the doctor finds out about the server."""

from __future__ import annotations

import pytest

from gkt_plugins.contracts import BuildContext, Examinable
from gkt_plugins.errors import EngineError
from gkt_plugins.testing.tgi_server import TGIReply
from gkt_tgi.engine import TGIEngine
from gkt_tgi.options import TGIOptions

TEXT = "The cat sat on the mat and slept."
TOOL = {"type": "function", "function": {"name": "look", "arguments": {}}}


def engine_at(url: str, **options: object) -> TGIEngine:
    made = TGIOptions.model_validate({"base_url": url, "model": "served", **options})
    return TGIEngine(made, BuildContext(name="edge"))


@pytest.mark.parametrize("stream", [True, False])
async def test_a_request_with_tools_is_forwarded_as_it_came_with_the_server_s_own_model_name(serve, stream):
    server = serve()
    engine = engine_at(server.url)
    body = {
        "model": "gkt/default",
        "messages": [{"role": "user", "content": "Look."}],
        "tools": [TOOL],
        "stop": "mat",
        "max_completion_tokens": 9,
        "stream": stream,
    }
    chunks = [chunk async for chunk in engine.forward("chat", body)]
    sent = server.received[-1].body
    assert sent == {
        "model": "served",
        "messages": body["messages"],
        "tools": [TOOL],
        "stop": ["mat"],
        "max_tokens": 9,
        "stream": stream,
    }
    assert (len(chunks) > 1) is stream
    assert chunks[0]["object"] == ("chat.completion.chunk" if stream else "chat.completion")
    await engine.aclose()


async def test_what_the_server_tells_of_itself_is_found_out_for_the_doctor(serve):
    engine = engine_at(serve().url, concurrency=200)
    assert isinstance(engine, Examinable)
    found = {finding.name: finding for finding in await engine.examine()}
    assert found["server"].value == "text-generation-inference 3.3.6, model models/scripted"
    assert found["prefix route"].good
    assert found["chats"].good
    assert found["calls at a time"].good is False
    assert "Set concurrency to 128 or less" in found["calls at a time"].advice
    await engine.aclose()
    engine = engine_at(serve(fast_tokenizer=False).url)
    found = {finding.name: finding for finding in await engine.examine()}
    assert (found["chats"].good, found["calls at a time"].good) == (False, True)
    await engine.aclose()
    with pytest.raises(EngineError, match="cannot be reached"):
        await engine_at("http://127.0.0.1:9").examine()


async def test_what_cannot_be_forwarded_says_why(serve):
    engine = engine_at(serve(TGIReply(TEXT, fails_after=2)).url)
    with pytest.raises(EngineError, match="gives no log-probabilities and no echo for raw prompts"):
        await anext(engine.forward("completions", {"prompt": "x", "echo": True}))
    with pytest.raises(EngineError, match="failed while it wrote: generation"):
        _ = [c async for c in engine.forward("chat", {"messages": [{"role": "user", "content": "x"}], "stream": True})]
    await engine.aclose()
