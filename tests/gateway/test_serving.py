"""``gkt serve`` as a process: it starts, says what is wrong when it cannot, and ends without losing a request."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from gkt_plugins.accounting.records import read_records, read_requests
from gkt_plugins.cli import main
from gkt_plugins.testing.gateway_process import GatewayProcess
from gkt_plugins.testing.openai_upstream import Fault, Reply, Upstream

TOML = """
[engines.edge]
adapter = "openai"
base_url = "{student}"
model = "small"
[pipelines.default]
student = "edge"
{more}
"""
ANSWER = "The cat sat on the mat and slept."
ASKED = {"model": "gkt/default", "messages": [{"role": "user", "content": "Why?"}]}


def refusal(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: str, toml: str) -> str:
    (folder / "gkt.toml").write_text(toml)
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--config", str(folder / "gkt.toml"), *arguments])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_it_says_where_it_serves_and_answers_there(tmp_path):
    with (
        Upstream(ANSWER, model="small") as student,
        GatewayProcess(TOML.format(student=student.url, more=""), tmp_path) as it,
    ):
        assert it.get("/health").json() == {"status": "ok"}
        reply = it.post("/v1/chat/completions", ASKED)
        assert reply.json()["choices"][0]["message"]["content"] == ANSWER
        assert f"Serving gkt/default at {it.url}/v1\nDashboard: {it.url}/dashboard\n" == it.log
        assert it.stop() == 0


def test_a_port_that_is_taken_is_one_sentence(tmp_path, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        error = refusal(capsys, tmp_path, "--port", port, toml=TOML.format(student="http://127.0.0.1:9/v1", more=""))
    assert error.startswith(
        f"error: the gateway cannot listen on 127.0.0.1 port {port}: Address already in use; choose"
    )


def test_an_address_that_is_not_this_machines_is_one_sentence(tmp_path, capsys):
    toml = TOML.format(student="http://127.0.0.1:9/v1", more=f'[gateway.keys.a]\nsha256 = "{"a" * 64}"')
    error = refusal(capsys, tmp_path, "--host", "192.0.2.1", "--port", "0", toml=toml)
    assert "the gateway cannot listen on 192.0.2.1 port 0" in error


def test_beyond_loopback_it_needs_keys(tmp_path, capsys):
    error = refusal(capsys, tmp_path, "--host", "0.0.0.0", toml=TOML.format(student="http://127.0.0.1:9/v1", more=""))
    assert "gateway.host must be loopback, such as 127.0.0.1, while there are no keys, got '0.0.0.0'" in error


def test_without_a_pipeline_there_is_nothing_to_serve(tmp_path, capsys):
    error = refusal(capsys, tmp_path, toml="[gateway]\nport = 0\n")
    assert error == "error: a gateway serves pipelines, and the configuration has none; add [pipelines.default]\n"


def test_a_ledger_that_cannot_be_opened_is_one_sentence(tmp_path, capsys):
    (tmp_path / "here").write_text("no folder")
    more = '[ledger]\nurl = "sqlite:///here/gkt.db"'
    error = refusal(capsys, tmp_path, "--port", "0", toml=TOML.format(student="http://127.0.0.1:9/v1", more=more))
    assert "gkt.db" in error


class Asking(threading.Thread):
    """A client on a thread of its own that reads a stream to its end."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._address = url.removeprefix("http://")
        self.begun = threading.Event()
        self.lines: list[str] = []
        self.start()

    def run(self) -> None:
        connection = http.client.HTTPConnection(self._address, timeout=60)
        body = json.dumps(ASKED | {"stream": True})
        connection.request("POST", "/v1/chat/completions", body)
        response = connection.getresponse()
        while line := response.readline():
            self.lines.append(line.decode())
            self.begun.set()

    @property
    def text(self) -> str:
        chunks: list[Any] = [json.loads(line[6:]) for line in self.lines if line.startswith("data: {")]
        return "".join(choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_open_requests_are_finished_before_it_ends(tmp_path, number):
    slow = Reply(ANSWER, per_token_s=0.1)
    with (
        Upstream(slow, model="small") as student,
        GatewayProcess(TOML.format(student=student.url, more=""), tmp_path) as it,
    ):
        asking = Asking(it.url)
        asking.begun.wait(20)
        assert it.stop(number) == 0
        asking.join()
    assert asking.text == ANSWER
    assert asking.lines[-2] == "data: [DONE]\n"
    assert [record.status for record in read_requests(tmp_path / "gkt.db")] == ["ok"]
    assert [call.status for call in read_records(tmp_path / "gkt.db")] == ["final"]


def test_a_second_interrupt_ends_it_at_once_and_what_was_used_is_on_record(tmp_path):
    hanging = Reply(ANSWER, fault=Fault(hang_after=3))
    with (
        Upstream(hanging, model="small") as student,
        GatewayProcess(TOML.format(student=student.url, more=""), tmp_path) as it,
    ):
        asking = Asking(it.url)
        asking.begun.wait(20)
        it.process.send_signal(signal.SIGINT)
        student.wait_until(lambda _: False, timeout_s=0.3)
        assert it.stop(signal.SIGINT) == 0
        asking.join()
    assert [record.status for record in read_requests(tmp_path / "gkt.db")] == ["cancelled"]
    [call] = read_records(tmp_path / "gkt.db")
    assert (call.status, call.usage.estimated) == ("cancelled", True)
    assert call.usage.completion_tokens
