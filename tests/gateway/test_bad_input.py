"""What comes in wrong, over real sockets: an error in OpenAI's shape that helps, nothing called, nothing lost."""

from __future__ import annotations

import json
import socket
from urllib.parse import urlsplit

import pytest

from gkt_plugins.accounting.records import read_records
from gkt_plugins.testing.gateway_process import GatewayProcess
from gkt_plugins.testing.openai_upstream import Upstream

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MAX_BODY = 100_000
ASKED = [{"role": "user", "content": "Where?"}]
TOML = """
[engines.cloud]
adapter = "openai"
base_url = "{teacher}"
model = "large"
[engines.edge]
adapter = "openai"
base_url = "{student}"
model = "small"
[pipelines.default]
teacher = "cloud"
student = "edge"
[pipelines.default.guidance]
tokens = 4
[gateway]
max_body_bytes = {max_body}
"""


def chat(**changes: object) -> dict[str, object]:
    return {"model": "gkt/default", "messages": ASKED, **changes}


def completions(**changes: object) -> dict[str, object]:
    return {"model": "gkt/default", "prompt": "Where?", **changes}


def written(text: str) -> bytes:
    """A chat whose last value is written by hand."""
    return b'{"model":"gkt/default","messages":[{"role":"user","content":"x"}],' + text.encode() + b"}"


class Gateway:
    def __init__(self, process: GatewayProcess, upstreams: list[Upstream]) -> None:
        self.process = process
        self.upstreams = upstreams

    @property
    def calls(self) -> int:
        """What reached the engines, beside what the gateway itself asks to learn what they can do."""
        received = [received for upstream in self.upstreams for received in upstream.received]
        return sum("Where?" in json.dumps(one.body) for one in received)

    def refuses(self, reply, status: int, code: str) -> dict[str, str]:
        """The error of a reply, once its shape is right."""
        assert reply.status == status, reply.body
        assert reply.headers["content-type"] == "application/json"
        error = reply.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert (error["code"], error["type"]) == (code, "invalid_request_error")
        assert 10 < len(error["message"]) < 500
        assert "\n" not in error["message"]
        return error


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gateway")
    text = "The cat sat on the mat and slept."
    with Upstream(text, model="large") as teacher, Upstream(text, model="small") as student:
        toml = TOML.format(teacher=teacher.url, student=student.url, max_body=MAX_BODY)
        with GatewayProcess(toml, folder) as process:
            yield Gateway(process, [teacher, student])
        assert "Traceback" not in process.log


NOT_JSON = {
    "nothing": b"",
    "half": b'{"model":',
    "two": b'{"a":1}{}',
    "a form": b"model=gkt/default&messages=x",
    "UTF-16": json.dumps(chat()).encode("utf-16"),
    "invalid UTF-8": written('"user":"x"').replace(b'"x"', b'"\xff"'),
    "half a surrogate pair": written('"user":"\\ud800"'),
    "NaN": written('"temperature":NaN'),
    "Infinity": written('"temperature":Infinity'),
    "a number beyond all floats": written('"temperature":1e999'),
    "an integer of 400 digits": written('"max_tokens":' + "9" * 400),
    "40,000 lists in each other": written('"user":' + "[" * 40_000 + "]" * 40_000),
    "15,000 objects in each other": written('"user":' + '{"a":' * 15_000 + "1" + "}" * 15_000),
}


@pytest.mark.parametrize("body", NOT_JSON.values(), ids=NOT_JSON)
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_a_body_that_is_not_json_is_refused(gateway, path, body):
    before = gateway.calls
    error = gateway.refuses(gateway.process.post(path, body), 400, "invalid_json")
    assert "must be JSON in UTF-8" in error["message"]
    assert gateway.calls == before


@pytest.mark.parametrize("body", [b"null", b"[]", b"1", b'"gkt/default"', b"{}"])
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_a_body_without_a_model_is_refused(gateway, path, body):
    gateway.refuses(gateway.process.post(path, body), 400, "missing_key")


@pytest.mark.parametrize(
    "model",
    ["gpt-4o", "gkt/", "gkt/none", "GKT/DEFAULT", "../../etc/passwd", "gkt/\x00", "é" * 5000, "http://x.example/v1"],
)
def test_an_unknown_model_is_refused_with_those_that_there_are(gateway, model):
    error = gateway.refuses(gateway.process.post(CHAT, chat(model=model)), 404, "model_not_found")
    assert "gkt/default" in error["message"]


WRONG_CHATS = [
    ("model", chat(model=1)),
    ("model", chat(model="gkt/default@g=many")),
    ("messages", chat(messages="Where?")),
    ("messages", chat(messages=[])),
    ("messages[0]", chat(messages=[1])),
    ("messages[0].role", chat(messages=[{"content": "x"}])),
    ("messages[0].role", chat(messages=[{"role": "wizard", "content": "x"}])),
    ("messages[1].content", chat(messages=[*ASKED, {"role": "user", "content": 1}])),
    ("messages[0].content[0]", chat(messages=[{"role": "user", "content": [1]}])),
    ("temperature", chat(temperature="hot")),
    ("temperature", chat(temperature=-0.1)),
    ("temperature", chat(temperature=True)),
    ("top_p", chat(top_p=0)),
    ("max_tokens", chat(max_tokens=0)),
    ("max_tokens", chat(max_tokens=1.5)),
    ("max_tokens", chat(max_tokens=10**18)),
    ("max_completion_tokens", chat(max_completion_tokens="many")),
    ("n", chat(n=0)),
    ("n", chat(n=1_000_000)),
    ("stop", chat(stop=1)),
    ("stop", chat(stop=["", "x"])),
    ("stop", chat(stop=["x"] * 1000)),
    ("seed", chat(seed="x")),
    ("seed", chat(seed=2**70)),
    ("stream", chat(stream="yes")),
    ("logprobs", chat(logprobs=1)),
    ("frequency_penalty", chat(frequency_penalty=99)),
    ("gkt", chat(gkt="20")),
    ("guidance_tokens", chat(gkt={"guidance_tokens": -1})),
    ("gkt.base_url", chat(gkt={"base_url": "http://x.example"})),
    ("prompt", completions(prompt=1)),
    ("prompt", completions(prompt=["x"] * 1000)),
    ("prompt[1]", completions(prompt=["x", 1])),
]


@pytest.mark.parametrize(("param", "body"), WRONG_CHATS, ids=lambda value: str(value)[:60])
def test_a_value_that_cannot_be_is_refused_by_name(gateway, param, body):
    before = gateway.calls
    reply = gateway.process.post(CHAT if "messages" in body else COMPLETIONS, body)
    code = "unknown_key" if param == "gkt.base_url" else "invalid_value"
    error = gateway.refuses(reply, 400, code)
    assert error["param"] == param
    assert gateway.calls == before


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_an_empty_prompt_is_refused(gateway, path):
    empty = chat(messages=[{"role": "user", "content": " "}]) if path == CHAT else completions(prompt="")
    gateway.refuses(gateway.process.post(path, empty), 400, "invalid_request")


def test_no_request_chooses_where_it_is_answered(gateway):
    elsewhere = {
        "base_url": "http://127.0.0.1:9/v1",
        "api_base": "http://127.0.0.1:9",
        "upstream": "x",
        "endpoint": "x",
    }
    before = gateway.calls
    reply = gateway.process.post(CHAT, chat(**elsewhere), headers={"x-gkt-upstream": "http://127.0.0.1:9"})
    assert reply.status == 200
    assert gateway.calls == before + 2


@pytest.mark.parametrize("value", ["x", "-1", "1.5", "ÿ", "1" * 1000])
def test_a_header_that_cannot_be_is_refused_by_name(gateway, value):
    reply = gateway.process.post(CHAT, chat(), headers={"x-gkt-guidance-tokens": value})
    assert "x-gkt-guidance-tokens" in gateway.refuses(reply, 400, "invalid_value")["message"]


# ----------------------------------------------------------------------------------------------------------------- size


def test_ten_megabytes_are_refused_before_they_are_sent(gateway):
    with connected(gateway) as connection:
        connection.sendall(head(gateway, "content-length: 10000000"))
        assert read_reply(connection).startswith(b"HTTP/1.1 413 ")


def test_ten_megabytes_that_are_sent_anyway_are_answered_and_the_next_request_is_too(gateway):
    gateway.refuses(gateway.process.post(CHAT, b" " * 10_000_000), 413, "request_too_large")
    assert gateway.process.post(CHAT, chat()).status == 200


def test_a_body_that_hides_its_size_is_refused_when_it_shows(gateway):
    with connected(gateway) as connection:
        connection.sendall(head(gateway, "transfer-encoding: chunked"))
        for _ in range(MAX_BODY // 10_000 + 1):
            connection.sendall(b"%x\r\n%b\r\n" % (10_000, b" " * 10_000))
        assert read_reply(connection).startswith(b"HTTP/1.1 413 ")


def test_a_client_that_goes_away_in_the_middle_of_its_body_harms_nobody(gateway):
    before = gateway.calls
    with connected(gateway) as connection:
        connection.sendall(head(gateway, "content-length: 1000") + b'{"model":')
    assert gateway.process.get("/health").status == 200
    assert gateway.calls == before


@pytest.mark.parametrize("garbage", [b"\x16\x03\x01\x02\x00", b"GET\r\n\r\n", b"POST / HTTP/1.1\r\nhost\r\n\r\n"])
def test_what_is_not_http_is_answered_with_400_or_nothing(gateway, garbage):
    with connected(gateway) as connection:
        connection.sendall(garbage)
        connection.shutdown(socket.SHUT_WR)
        reply = read_reply(connection)
    assert not reply or reply.startswith(b"HTTP/1.1 400 ")
    assert gateway.process.get("/health").status == 200


# ------------------------------------------------------------------------------------------------------------ addresses


@pytest.mark.parametrize("path", ["/", "/nope", "/v1", "/v1/chat", "/%00", "/../../etc/passwd", "/v1/embeddings"])
def test_an_address_where_nothing_is_says_so(gateway, path):
    gateway.refuses(gateway.process.get(path), 404, "not_found")


@pytest.mark.parametrize(
    ("method", "path"), [("GET", CHAT), ("PUT", CHAT), ("POST", "/health"), ("DELETE", "/metrics")]
)
def test_a_method_that_is_not_there_says_so(gateway, method, path):
    reply = gateway.process.send(method, path)
    gateway.refuses(reply, 405, "method_not_allowed")
    assert reply.headers["allow"]


def test_a_name_that_is_not_this_machine_s_is_refused_everywhere_that_counts(gateway):
    guarded = [("POST", CHAT), ("POST", COMPLETIONS), ("GET", "/v1/models"), ("GET", "/metrics")]
    for method, path in [*guarded, ("GET", "/dashboard/figures")]:
        reply = gateway.process.send(method, path, chat() if method == "POST" else None, headers={"host": "x.example"})
        assert (reply.status, reply.json()["error"]["code"]) == (403, "host_not_allowed"), path


# ----------------------------------------------------------------------------------------------------------- afterwards


def test_after_all_of_it_every_call_is_on_record_and_closed(gateway):
    records = list(read_records(gateway.process.folder / "gkt.db"))
    assert len(records) == gateway.calls
    assert {record.status for record in records} == {"final"}


def connected(gateway: Gateway) -> socket.socket:
    address = urlsplit(gateway.process.url)
    return socket.create_connection((address.hostname, address.port), timeout=30)


def head(gateway: Gateway, length: str) -> bytes:
    host = urlsplit(gateway.process.url).netloc
    return f"POST {CHAT} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n{length}\r\n\r\n".encode()


def read_reply(connection: socket.socket) -> bytes:
    """The first bytes of an answer; empty where the connection is closed without one."""
    try:
        return connection.recv(65536)
    except ConnectionResetError:
        return b""
