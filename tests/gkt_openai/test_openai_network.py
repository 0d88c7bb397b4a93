"""Bytes on their way: TLS, other event loops, requests and answers of many sizes."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from pathlib import Path

import httpcore2
import pytest
import uvloop

from gkt_openai.engine import OpenAIEngine
from gkt_openai.errors import EndpointError
from gkt_openai.network import LoopBackend
from gkt_openai.options import OpenAIOptions
from gkt_plugins.contracts import BuildContext, Call, Completion, Prompt, Sampling
from gkt_plugins.testing.openai_upstream import Fault, Reply, Upstream

CALL = Call(Prompt.chat("Hi."))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> Path:
    """A certificate for 127.0.0.1 that nobody has signed, with its key beside it."""
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "cert.pem"],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip
    return folder / "cert.pem"


def served_with(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, certificate.with_name("key.pem"))
    return context


async def test_an_endpoint_whose_authority_is_named_is_spoken_to_over_tls(engine_of, certificate):
    with Upstream("safe and sound", tls=served_with(certificate)) as upstream:
        engine = engine_of(upstream, ca_file=str(certificate))
        assert "".join([delta.text async for delta in engine.stream(CALL)]) == "safe and sound"
        [completion] = await engine.generate([CALL])
        assert getattr(completion, "text", "") == "safe and sound"
        assert len({received.peer for received in upstream.received}) == 1


async def test_an_endpoint_that_nobody_vouches_for_gets_no_request(engine_of, certificate):
    with Upstream("unseen", tls=served_with(certificate)) as upstream:
        [error] = await engine_of(upstream).generate([CALL])
    assert isinstance(error, EndpointError)
    assert error.code == "upstream_unreachable"
    assert upstream.received == []


@pytest.mark.parametrize("size", [1, 65_000, 66_000, 1_500_000])
async def test_requests_and_answers_of_any_size_go_through(engine_of, size):
    text = "x" * size
    with Upstream(lambda asked: Reply(asked.body["messages"][0]["content"], finish_reason="stop")) as upstream:
        engine = engine_of(upstream)
        call = Call(Prompt.chat(text))
        assert "".join([delta.text async for delta in engine.stream(call)]) == text
        [completion] = await engine.generate([call])
    assert getattr(completion, "text", "") == text


async def test_an_answer_that_nobody_reads_holds_the_endpoint_up_and_is_whole_afterwards(engine_of):
    text = " ".join(["many words"] * 20_000)
    with Upstream(text) as upstream:
        stream = engine_of(upstream).stream(Call(CALL.prompt, sampling=Sampling(max_tokens=50_000)))
        parts = [(await anext(stream)).text]
        await asyncio.sleep(0.3)
        parts += [delta.text async for delta in stream]
    assert "".join(parts) == text


def test_uvloop_is_as_good_as_asyncios_own_loop():
    replies = [
        Reply("fine"),
        Reply("a b", fault=Fault(drop_after=1)),
        Reply("fine"),
        Reply("", fault=Fault(silent=True)),
    ]

    async def ask(upstream: Upstream) -> list[object]:
        options = OpenAIOptions(base_url=upstream.url, model=upstream.model, read_timeout_s=0.2)
        engine = OpenAIEngine(options, BuildContext(name="cloud"))
        results = [(await engine.generate([CALL]))[0] for _ in replies]
        await engine.aclose()
        return [result.text if isinstance(result, Completion) else getattr(result, "code", "") for result in results]

    for run in (asyncio.run, uvloop.run):
        with Upstream(replies) as upstream:
            assert run(ask(upstream)) == ["fine", "upstream_broken", "fine", "upstream_timeout"]


async def test_a_connection_that_takes_too_long_is_given_up(monkeypatch):
    async def never(*arguments: object, **options: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", never)
    with pytest.raises(httpcore2.ConnectTimeout):
        await LoopBackend().connect_tcp("127.0.0.1", 1, timeout=0.01)
