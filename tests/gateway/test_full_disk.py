"""No room under the ledger: requests are refused, nothing that was answered is lost, and room is enough to go on."""

from __future__ import annotations

import resource

from gkt_plugins.accounting.records import read_records
from gkt_plugins.testing.gateway_process import GatewayProcess
from gkt_plugins.testing.openai_upstream import Upstream

TOML = """
[engines.edge]
adapter = "openai"
base_url = "{student}"
model = "small"
[pipelines.default]
student = "edge"
"""
ASKED = {"model": "gkt/default", "messages": [{"role": "user", "content": "Where?"}]}
STREAMED = ASKED | {"stream": True}


def room(gateway: GatewayProcess, file_bytes: int) -> None:
    """No file of the gateway's may grow beyond that: writing more fails, as on a full disk."""
    hard = resource.prlimit(gateway.process.pid, resource.RLIMIT_FSIZE)[1]
    resource.prlimit(gateway.process.pid, resource.RLIMIT_FSIZE, (file_bytes, hard))


def largest(gateway: GatewayProcess) -> int:
    return max(path.stat().st_size for path in gateway.folder.glob("gkt.db*") if path.is_file())


def test_a_full_disk_is_a_503_that_says_so_and_room_again_is_enough(tmp_path):
    with Upstream("The cat sat on the mat.", model="small") as upstream:
        with GatewayProcess(TOML.format(student=upstream.url), tmp_path) as gateway:
            answered = [gateway.post("/v1/chat/completions", ASKED).json()["id"] for _ in range(3)]
            room(gateway, largest(gateway) + 16384)
            for _ in range(200):
                reply = gateway.post("/v1/chat/completions", ASKED)
                if reply.status != 200:
                    break
                answered.append(reply.json()["id"])
            assert reply.status == 503
            error = reply.json()["error"]
            assert (error["code"], error["type"]) == ("backend_unavailable", "api_error")
            assert "could not be written" in error["message"]

            called = len(upstream.received)
            streamed = gateway.post("/v1/chat/completions", STREAMED)
            assert (streamed.status, streamed.headers["content-type"]) == (503, "application/json")
            assert len(upstream.received) == called  # nothing is asked of an engine that could not be put on record
            ready = gateway.get("/ready")
            assert (ready.status, ready.json()) == (503, {"status": "not ready", "failed": ["ledger"]})
            assert gateway.get("/health").status == 200

            room(gateway, resource.RLIM_INFINITY)
            again = gateway.post("/v1/chat/completions", STREAMED)
            assert (again.status, again.body.endswith(b"data: [DONE]\n\n")) == (200, True)
            answered.append(again.headers["x-request-id"])
        records = {record.request_id: record for record in read_records(tmp_path / "gkt.db")}
    assert set(answered) <= set(records)
    assert {records[request_id].status for request_id in answered} == {"final"}
