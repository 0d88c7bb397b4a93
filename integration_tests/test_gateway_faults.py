"""Endpoints that misbehave in every way, behind ``gkt serve``: no text is lost or repeated, no request hangs, and the
ledger has every call, with the tokens that it used.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx2
import pytest

from gkt_plugins.accounting.records import read_records, read_requests
from gkt_plugins.accounting.requests import RequestRecord
from gkt_plugins.contracts import UsageRecord
from gkt_plugins.testing.gateway_process import GatewayProcess
from gkt_plugins.testing.openai_upstream import Fault, Received, Reply, Upstream

ANSWER = "The cat sat on the mat, dreamt of mïce 🐭 and of cream, and slept until the sun had gone."
GUIDANCE = 6
READ_TIMEOUT_S = 0.5

TOML = f"""
[engines.cloud]
adapter = "openai"
base_url = "{{teacher}}"
model = "large"
read_timeout_s = {READ_TIMEOUT_S}
[engines.edge]
adapter = "openai"
base_url = "{{student}}"
model = "small"
read_timeout_s = {READ_TIMEOUT_S}
[prices.large]
input_per_million = "2.00"
output_per_million = "10.00"
[prices.small]
input_per_million = "0.20"
output_per_million = "1.00"
[pipelines.default]
teacher = "cloud"
student = "edge"
guidance.tokens = {GUIDANCE}
[retries]
attempts = 2
wait_s = 0.01
breaker_failures = 1000
"""


@dataclass
class Endpoint:
    """An upstream whose next replies can be set; afterwards it answers as it should."""

    replies: list[Reply] = field(default_factory=list)
    asked: int = 0

    def __call__(self, received: Received) -> Reply:
        if "Where?" not in json.dumps(received.body):  # a question of the probe
            return Reply("no")
        self.asked += 1
        return self.replies.pop(0) if self.replies else Reply(ANSWER)


@dataclass
class Rig:
    process: GatewayProcess
    cloud: Endpoint
    edge: Endpoint
    upstreams: dict[str, Upstream]

    def script(self, role: str, *replies: Reply) -> None:
        self.cloud.replies, self.edge.replies = [], []
        self.cloud.asked = self.edge.asked = 0
        (self.cloud if role == "teacher" else self.edge).replies = list(replies)

    def ask(self, *, stream: bool, **more: Any) -> "Got":
        body = {"model": "gkt/default", "messages": [{"role": "user", "content": "Where?"}], "stream": stream, **more}
        with httpx2.stream("POST", f"{self.process.url}/v1/chat/completions", json=body, timeout=20) as response:
            got = Got(response.status_code, response.headers["x-request-id"])
            got.read(response, stream and response.status_code == 200)
        return got

    def record(self, got: "Got") -> tuple[RequestRecord, list[UsageRecord]]:
        """What the ledger has of a request: its row is written after its last byte went out."""
        ledger = self.process.folder / "gkt.db"
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            rows = [row for row in read_requests(ledger) if row.request_id == got.request_id]
            if rows:
                calls = [call for call in read_records(ledger) if call.request_id == got.request_id]
                return rows[0], calls
            time.sleep(0.02)
        raise AssertionError(f"{got.request_id} is not on record")


@dataclass
class Got:
    """What a client saw."""

    status: int
    request_id: str
    text: str = ""
    finish_reason: str | None = None
    error: dict[str, Any] | None = None
    gkt: dict[str, Any] | None = None
    done: bool = False

    def read(self, response: httpx2.Response, stream: bool) -> None:
        if not stream:
            body = json.loads(response.read())
            self.error, self.gkt = body.get("error"), body.get("gkt")
            if "choices" in body:
                self.text = body["choices"][0]["message"]["content"]
                self.finish_reason = body["choices"][0]["finish_reason"]
            self.done = True
            return
        for line in response.iter_lines():
            if not line:
                continue
            data = line.removeprefix("data: ")
            assert data != line, f"not an event: {line!r}"
            assert not self.done, "something came after [DONE]"
            if data == "[DONE]":
                self.done = True
                continue
            chunk = json.loads(data)
            self.error = chunk.get("error", self.error)
            self.gkt = chunk.get("gkt", self.gkt)
            for choice in chunk.get("choices", ()):
                self.text += choice["delta"].get("content", "")
                self.finish_reason = choice["finish_reason"] or self.finish_reason


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    cloud, edge = Endpoint(), Endpoint()
    with Upstream(cloud, model="large") as teacher, Upstream(edge, model="small") as student:
        toml = TOML.format(teacher=teacher.url, student=student.url)
        with GatewayProcess(toml, tmp_path_factory.mktemp("gateway")) as process:
            yield Rig(process, cloud, edge, {"teacher": teacher, "student": student})


Role = Literal["teacher", "student"]
ROLES: list[Role] = ["teacher", "student"]

HARMLESS = {
    "split at every byte": Reply(ANSWER, fault=Fault(split=1)),
    "split at every third byte": Reply(ANSWER, fault=Fault(split=3)),
    "every frame twice": Reply(ANSWER, fault=Fault(duplicate=True)),
    "no [DONE]": Reply(ANSWER, fault=Fault(done=False)),
    "usage in every chunk": Reply(ANSWER, usage="every_chunk"),
    "no usage": Reply(ANSWER, usage="never"),
    "usage that cannot be": Reply(ANSWER, usage="wrong"),
    "carriage returns": Reply(ANSWER, line_end="\r\n"),
    "lone carriage returns": Reply(ANSWER, line_end="\r"),
    "comments": Reply(ANSWER, comments=True),
    "events over several lines": Reply(ANSWER, multi_line=True),
    "slow": Reply(ANSWER, first_token_s=0.1, per_token_s=0.002),
}

TRANSIENT = {
    "429 with retry-after": Reply("", status=429, retry_after_s=0.05),
    "500": Reply("", status=500),
    "503": Reply("", status=503),
    "silence": Reply(ANSWER, fault=Fault(silent=True)),
    "a cut before the first token": Reply(ANSWER, fault=Fault(drop_after=0)),
    "an error before the first token": Reply(ANSWER, fault=Fault(error_after=0)),
}

BROKEN = {
    "cut": Fault(drop_after=3),
    "half a frame": Fault(truncate_after=3),
    "hanging": Fault(hang_after=3),
    "not JSON": Fault(corrupt_after=3),
    "not UTF-8": Fault(invalid_utf8_after=3),
    "an error object": Fault(error_after=3),
    "no finish_reason": Fault(reason=False),
}


def outcomes(calls: list[UsageRecord]) -> list[tuple[str, int, str]]:
    return sorted((call.role, call.attempt, call.status) for call in calls)


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("fault", HARMLESS)
def test_what_is_odd_and_harmless_changes_no_answer(rig: Rig, fault: str, role: Role, stream: bool) -> None:
    rig.script(role, HARMLESS[fault])
    got = rig.ask(stream=stream)
    assert (got.status, got.text, got.finish_reason, got.done, got.error) == (200, ANSWER, "stop", True, None)
    record, calls = rig.record(got)
    assert outcomes(calls) == [("student", 0, "final"), ("teacher", 0, "final")]
    assert (record.status, record.route, record.retries) == ("ok", "guided", 0)
    for call in calls:
        assert call.usage.completion_tokens is not None
        assert 0 < call.usage.completion_tokens <= 2 * len(ANSWER.split())
        assert call.cost_nano is not None
    odd = next(call for call in calls if call.role == role)
    if "no usage" in fault or "cannot be" in fault:
        assert odd.usage.estimated


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("fault", TRANSIENT)
def test_what_passes_is_tried_again_and_each_attempt_is_on_record(
    rig: Rig, fault: str, role: Role, stream: bool
) -> None:
    rig.script(role, TRANSIENT[fault])
    got = rig.ask(stream=stream)
    assert (got.status, got.text, got.finish_reason, got.error) == (200, ANSWER, "stop", None)
    record, calls = rig.record(got)
    other = "student" if role == "teacher" else "teacher"
    assert outcomes(calls) == sorted([(role, 0, "failed"), (role, 1, "final"), (other, 0, "final")])
    assert (record.status, record.retries, record.degraded) == ("ok", 1, False)


@pytest.mark.parametrize("fault", BROKEN)
def test_a_teacher_that_breaks_mid_stream_is_followed_by_the_student_from_where_it_was(rig: Rig, fault: str) -> None:
    rig.script("teacher", Reply(ANSWER, fault=BROKEN[fault]))
    got = rig.ask(stream=True)
    assert (got.status, got.text, got.finish_reason, got.done) == (200, ANSWER, "stop", True)
    assert got.gkt is not None
    assert got.gkt["degraded"]
    record, calls = rig.record(got)
    assert outcomes(calls) == [("student", 0, "final"), ("teacher", 0, "failed")]
    assert record.degraded
    [teacher] = [call for call in calls if call.role == "teacher"]
    assert teacher.usage.estimated
    assert teacher.usage.completion_tokens


@pytest.mark.parametrize("fault", BROKEN)
def test_a_student_that_breaks_mid_stream_ends_the_answer_with_an_error(rig: Rig, fault: str) -> None:
    rig.script("student", Reply(ANSWER, fault=BROKEN[fault]))
    got = rig.ask(stream=True)
    assert (got.status, got.done, got.finish_reason) == (200, False, None)
    assert got.error is not None
    assert got.error["message"].startswith("the student failed after ")
    assert ANSWER.startswith(got.text)
    assert len(got.text) > len("The cat sat")
    record, calls = rig.record(got)
    assert (record.status, record.error) == ("error", got.error["code"])
    assert outcomes(calls) == [("student", 0, "failed"), ("teacher", 0, "final")]
    assert rig.edge.asked == 1, "a call whose text was shown must not be made again"


@pytest.mark.parametrize("fault", [fault for fault in BROKEN if fault != "no finish_reason"])
def test_a_whole_answer_that_breaks_is_asked_for_again(rig: Rig, fault: str) -> None:
    rig.script("student", Reply(ANSWER, fault=BROKEN[fault]))
    got = rig.ask(stream=False)
    assert (got.status, got.text) == (200, ANSWER)
    assert outcomes(rig.record(got)[1]) == [("student", 0, "failed"), ("student", 1, "final"), ("teacher", 0, "final")]


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize(
    ("reply", "status", "code"),
    [
        (Reply("", status=429, retry_after_s=0.05), 503, "upstream_rate_limited"),
        (Reply("", status=500), 503, "upstream_failed"),
        (Reply("", status=400, error={"message": "too many tokens"}), 400, "upstream_refused"),
        (Reply("", status=401), 502, "upstream_key_refused"),
        (Reply(ANSWER, fault=Fault(silent=True)), 504, "upstream_timeout"),
    ],
    ids=["429", "500", "400", "401", "silence"],
)
def test_a_student_that_never_answers_is_an_error_with_a_status(
    rig: Rig, reply: Reply, status: int, code: str, stream: bool
) -> None:
    rig.script("student", reply, reply)
    got = rig.ask(stream=stream, gkt={"guidance_tokens": 0})
    assert got.status == status
    assert got.error is not None
    assert got.error["code"] == code
    record, calls = rig.record(got)
    assert (record.status, record.error) == ("error", code)
    assert {call.status for call in calls} == {"failed"}


def test_a_teacher_that_is_down_costs_nothing_and_the_student_answers_alone(rig: Rig) -> None:
    down = Reply("", status=503)
    rig.script("teacher", down, down)
    got = rig.ask(stream=True)
    assert (got.status, got.text) == (200, ANSWER)
    assert got.gkt is not None
    assert (got.gkt["route"], got.gkt["degraded"]) == ("student", True)
    _, calls = rig.record(got)
    assert outcomes(calls) == [("student", 0, "final"), ("teacher", 0, "failed"), ("teacher", 1, "failed")]
    assert [call.cost_nano for call in calls if call.role == "teacher"] == [0, 0]


@dataclass
class Leaving:
    """What there was before a client came that will leave."""

    rig: Rig
    role: Role
    began: int = 0
    known: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        self.rig.script(self.role, Reply(ANSWER, per_token_s=0.2))
        self.began = len(self.upstream.received)
        self.known = frozenset(row.request_id for row in self.rows())

    @property
    def upstream(self) -> Upstream:
        return self.rig.upstreams[self.role]

    def rows(self) -> list[RequestRecord]:
        return list(read_requests(self.rig.process.folder / "gkt.db"))

    def is_cancelled_within_a_second(self, left: float) -> None:
        """The upstream lost its client right after ``left``, and the request is on record as cancelled."""
        assert self.upstream.wait_until(lambda it: any(one.disconnected for one in it.received[self.began :]))
        ended = [one.disconnected for one in self.upstream.received[self.began :] if one.disconnected is not None]
        assert len(ended) == 1
        assert ended[0] - left < 1.0  # what is promised, not how fast it is
        deadline = time.monotonic() + 10
        while not (fresh := [row for row in self.rows() if row.request_id not in self.known]):
            assert time.monotonic() < deadline, "the request is not on record"
            time.sleep(0.02)
        [row] = fresh
        assert row.status == "cancelled"
        calls = read_records(self.rig.process.folder / "gkt.db")
        cancelled = [call for call in calls if call.request_id == row.request_id and call.status == "cancelled"]
        assert [call.role for call in cancelled] == [self.role]
        assert cancelled[0].usage.completion_tokens is not None


@pytest.mark.parametrize("role", ROLES)
def test_a_client_that_leaves_a_stream_ends_the_endpoints_work_within_a_second(rig: Rig, role: Role) -> None:
    leaving = Leaving(rig, role)
    body = {"model": "gkt/default", "messages": [{"role": "user", "content": "Where?"}], "stream": True}
    with httpx2.stream("POST", f"{rig.process.url}/v1/chat/completions", json=body, timeout=20) as response:
        lines = response.iter_lines()
        while len(leaving.upstream.received) == leaving.began:
            next(lines)
        left = time.perf_counter()
    leaving.is_cancelled_within_a_second(left)


@pytest.mark.parametrize("role", ROLES)
def test_a_client_that_leaves_without_its_answer_ends_the_endpoints_work_within_a_second(rig: Rig, role: Role) -> None:
    leaving = Leaving(rig, role)
    body = {"model": "gkt/default", "messages": [{"role": "user", "content": "Where?"}]}
    with pytest.raises(httpx2.ReadTimeout):
        httpx2.post(f"{rig.process.url}/v1/chat/completions", json=body, timeout=0.4)
    leaving.is_cancelled_within_a_second(time.perf_counter())


def test_no_call_is_left_open_in_the_ledger(rig: Rig) -> None:
    deadline = time.monotonic() + 10
    ledger = rig.process.folder / "gkt.db"
    while time.monotonic() < deadline and any(call.status == "open" for call in read_records(ledger)):
        time.sleep(0.05)
    assert {call.status for call in read_records(ledger)} == {"final", "failed", "cancelled"}
