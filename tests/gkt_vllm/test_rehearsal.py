"""What a server will open is opened once before a model is loaded, so that an operator does not wait for a refusal."""

from __future__ import annotations

import threading

import pytest

from gkt_plugins.errors import GktError
from gkt_plugins.testing.openai_upstream import Upstream
from gkt_vllm.frontend import Start, decide
from gkt_vllm.rehearsal import rehearse
from gkt_vllm.section import GktSection
from gkt_vllm.versions import TRIED

GUIDED = """
[engines.large]
adapter = "openai"
base_url = "{url}"
model = "large"
{key}
[engines.here]
adapter = "vllm"
model = "small"
[pipelines.default]
teacher = "large"
student = "here"
"""


@pytest.fixture
def start(tmp_path):
    def start(text: str) -> Start:
        (tmp_path / "gkt.toml").write_text(text)
        return decide(GktSection(config=str(tmp_path / "gkt.toml")), "model", None, f"{TRIED[-1]}.0")

    return start


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[ledger]\nurl = "sqlite:///missing/folder/ledger.db"', "could not be opened"),
        (GUIDED.format(url="http://127.0.0.1:1/v1", key='api_key_env = "NOBODYS_KEY"'), "NOBODYS_KEY"),
    ],
)
def test_what_cannot_be_opened_is_one_sentence(start, text, words):
    with pytest.raises(GktError, match=words) as refused:
        rehearse(start(text), "small")
    assert "\n" not in str(refused.value)


async def test_it_works_beside_an_event_loop_as_often_as_a_server_is_started_and_leaves_no_thread(start):
    """vLLM forks its engine from the process that rehearses."""
    before = set(threading.enumerate())
    for _ in range(2):
        rehearse(start(GUIDED.format(url="http://127.0.0.1:1/v1", key="")), "small")
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize("there", [True, False])
def test_no_teacher_is_asked_to_write_nor_waited_for(start, there):
    with Upstream("text") as upstream:
        url = upstream.url if there else "http://127.0.0.1:1/v1"
        rehearse(start(GUIDED.format(url=url, key="")), "small")
        assert not upstream.received
