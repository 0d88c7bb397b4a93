"""Connections are used again, never shared at once, and let go of."""

from __future__ import annotations

import asyncio

import httpx2
import pytest
from pydantic import ValidationError

from gkt_openai.engine import OpenAIEngine
from gkt_openai.errors import EndpointError
from gkt_openai.options import OpenAIOptions
from gkt_plugins.contracts import BuildContext, Call, Prompt
from gkt_plugins.errors import ConfigError
from gkt_plugins.testing.openai_upstream import Fault, Reply, Upstream

CALL = Call(Prompt.chat("Hi."))


async def text_of(engine: OpenAIEngine) -> str:
    return "".join([delta.text async for delta in engine.stream(CALL)])


async def test_calls_one_after_the_other_share_a_connection(engine_of):
    with Upstream([Reply("fine"), Reply("", status=500), Reply("fine")]) as upstream:
        engine = engine_of(upstream)
        for _ in range(3):
            await text_of(engine)
            await engine.generate([CALL])
        ports = {received.peer for received in upstream.received}
    assert len(ports) == 1


async def test_a_connection_that_broke_is_not_used_again(engine_of):
    with Upstream([Reply("a b c", fault=Fault(drop_after=1)), "fine"]) as upstream:
        engine = engine_of(upstream)
        with pytest.raises(Exception, match="broke"):
            await text_of(engine)
        assert await text_of(engine) == "fine"
        assert len({received.peer for received in upstream.received}) == 2


async def test_a_connection_that_the_server_closed_meanwhile_is_not_used(engine_of):
    with Upstream("fine") as upstream:
        engine = engine_of(upstream)
        for _ in range(3):
            assert await text_of(engine) == "fine"
            upstream.close_connections()
            assert await asyncio.to_thread(upstream.wait_until, lambda up: not up.connections)


async def test_a_connection_that_the_server_closes_at_the_next_request_is_replaced_once(engine_of):
    with Upstream(["fine", Reply("lost", fault=Fault(hang_up=True)), "fine"]) as upstream:
        engine = engine_of(upstream)
        assert [await text_of(engine) for _ in range(2)] == ["fine", "fine"]
        assert len(upstream.received) == 3


async def test_a_new_connection_that_is_closed_without_an_answer_is_an_error(engine_of):
    with Upstream(Reply("lost", fault=Fault(hang_up=True))) as upstream:
        [error] = await engine_of(upstream).generate([CALL])
        assert len(upstream.received) == 1
    assert isinstance(error, EndpointError)
    assert (error.code, error.retryable) == ("upstream_broken", True)


async def test_many_streams_at_once_each_have_their_own_text(engine_of):
    def script(asked):
        return Reply(f"{asked.body['messages'][0]['content']} and on it goes", per_token_s=0.02)

    with Upstream(script) as upstream:
        engine = engine_of(upstream)

        async def one(number: int) -> str:
            return "".join([delta.text async for delta in engine.stream(Call(Prompt.chat(f"{number}")))])

        assert await asyncio.gather(*map(one, range(300))) == [f"{i} and on it goes" for i in range(300)]
        assert upstream.connections <= 300


async def test_closing_the_engine_closes_its_connections(engine_of):
    with Upstream("fine") as upstream:
        engine = engine_of(upstream)
        await engine.generate([CALL] * 5)
        await engine.aclose()
        assert await asyncio.to_thread(upstream.wait_until, lambda up: not up.connections)


async def test_a_host_may_lend_its_own_transport():
    def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, json={"choices": [{"message": {"content": "mocked"}, "finish_reason": "stop"}]})

    options = OpenAIOptions(base_url="https://models.example/v1", model="large")
    context = BuildContext(name="cloud", resources={"http_transport": httpx2.MockTransport(answer)})
    [completion] = await OpenAIEngine(options, context).generate([CALL])
    assert getattr(completion, "text", "") == "mocked"


async def test_a_redirect_is_not_followed():
    def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(302, headers={"location": "http://169.254.169.254/"})

    options = OpenAIOptions(base_url="https://models.example/v1", model="large")
    context = BuildContext(name="cloud", resources={"http_transport": httpx2.MockTransport(answer)})
    [error] = await OpenAIEngine(options, context).generate([CALL])
    assert "status 302" in str(error)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("models.example/v1", "must be an address such as"),
        ("ftp://models.example", "must be an address such as"),
        ("https://me:pass@models.example/v1", "must carry no user or password"),
        ("https://models.example/v1?key=x", "has a '?'"),
        ("https://models.example/v1/chat/completions", "must end before '/chat/completions'"),
    ],
)
def test_an_address_that_cannot_be_one_is_refused(url, says):
    with pytest.raises(ValidationError, match=says.replace("?", r"\?")):
        OpenAIOptions(base_url=url, model="large")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"body": {"stream": True}}, "must not hold 'stream'"),
        ({"headers": {"bad name": "x"}}, "must hold names and values of HTTP headers"),
        ({"headers": {"x-a": "b\r\nx-evil: 1"}}, "must hold names and values of HTTP headers"),
        ({"headers": {"Host": "other"}}, "must not hold 'Host'"),
    ],
)
def test_fields_and_headers_that_belong_to_the_call_are_refused(options, says):
    with pytest.raises(ValidationError, match=says):
        OpenAIOptions(base_url="https://models.example/v1", model="large", **options)


def test_a_file_of_authorities_that_is_none_is_named(tmp_path):
    (tmp_path / "ca.pem").write_text("no certificate")
    for name in ("ca.pem", "nowhere.pem"):
        options = OpenAIOptions(base_url="https://models.example/v1", model="large", ca_file=name)
        with pytest.raises(ConfigError, match=rf"engines.cloud.ca_file must name a PEM file of .*, got '{name}'"):
            OpenAIEngine(options, BuildContext(name="cloud", base_dir=tmp_path))
