import sys

import orjson
import pytest

from benchmarks.gateway._client import _Connection
from benchmarks.gateway._load import Ask, Job, generate
from benchmarks.gateway._page import page
from benchmarks.gateway._processes import free_port, running
from benchmarks.gateway._quantiles import quantile_estimate, quantile_of
from benchmarks.gateway._setting import Setting, Side, configuration, new_key, upstream
from gkt_plugins.config import load_config


@pytest.fixture
def setting(tmp_path):
    return Setting(quick=True, work=tmp_path, litellm=tmp_path / "litellm")


@pytest.fixture
def direct(setting):
    with upstream(setting) as side:
        yield side


def test_the_generator_counts_every_token_of_every_stream(direct):
    seen = generate(Job("hold", streams=20, ramp_s=0.1, stream=direct.journey("paced-5", 12, stream=True)))
    assert (seen.num_errors, seen.streams_ok, seen.tokens) == (0, 20, 240)
    assert len(seen.first_ms) == 20
    assert len(seen.delays_ms) == 220
    assert min(seen.first_ms + seen.delays_ms) >= 0


def test_a_closed_loop_counts_answers_and_never_ends_one_before_the_upstream_does(direct):
    seen = generate(Job("closed", seconds=0.5, clients=4, journey=direct.journey("fixed-20", 8)))
    assert seen.num_errors == 0
    assert seen.rate == len(seen.answers_ms) / 0.5
    assert min(seen.answers_ms) > 19  # milliseconds; the event loop's clock counts in whole ones


def test_an_open_loop_begins_as_often_as_it_was_told(direct):
    seen = generate(Job("open", seconds=1.0, rate=40.0, journey=direct.journey("fixed-1", 16, guided=True), seed=3))
    assert seen.num_errors == 0
    assert len(seen.answers_ms) == len(seen.late_ms)
    assert abs(len(seen.late_ms) - 40) < 4 * 40**0.5  # beginnings are Poisson


def test_the_client_of_the_upstream_guides_by_two_calls_that_make_the_same_answer(direct):
    teacher, student = direct.journey("fixed-1", 16, guided=True)
    assert teacher.body["max_tokens"] + student.body["max_tokens"] == 16


@pytest.mark.parametrize(
    ("path", "said"), [("/v1/nothing", "status 404"), ("/v1/models", "no text")], ids=["refused", "empty"]
)
def test_what_is_no_answer_is_an_error_and_never_measured(direct, path, said):
    ask = Ask(direct.url.removesuffix("/v1") + path, {"model": "fixed-1"})
    job = Job("closed", seconds=0.2, clients=1, journey=[ask])
    seen = generate(job, count_errors=True)
    assert seen.answers_ms == []
    assert seen.num_errors > 0
    assert said in seen.errors[0]
    with pytest.raises(RuntimeError, match=said):
        generate(job)


def test_nobody_there_is_an_error():
    ask = Ask(f"http://127.0.0.1:{free_port()}/v1/chat/completions", {})
    seen = generate(Job("hold", streams=1, stream=[ask]), count_errors=True)
    assert (seen.num_errors, seen.streams_ok) == (1, 0)
    assert "no connection" in seen.errors[0]


def test_an_event_that_packets_split_is_read_once():
    for cut in range(1, 40):
        connection = _Connection()
        whole = b'data: {"text":"@1000001 "}\n\ndata: {"text":"@1000002 "}\n\n'
        connection.on_body(whole[:cut])
        connection.on_body(whole[cut:])
        assert connection._outcome.tokens == 2


def test_the_gateway_is_configured_with_a_plain_and_a_guided_pipeline_for_each_behaviour(setting):
    config = load_config(configuration(setting, "one", "http://127.0.0.1:1/v1", ["fixed-50"], new_key()), env={})
    assert set(config.pipelines) == {"fixed-50", "fixed-50-guided"}
    assert config.pipelines["fixed-50-guided"].teacher == config.pipelines["fixed-50"].student


def test_a_program_that_ends_at_once_says_why(tmp_path):
    command = [sys.executable, "-c", "raise SystemExit('no such thing')"]
    with (
        pytest.raises(RuntimeError, match=r"ended with 1.*\n.*no such thing"),
        running(command, f"http://127.0.0.1:{free_port()}/", tmp_path / "log"),
    ):
        pass


def test_a_program_is_weighed_with_what_it_started(tmp_path, direct):
    child = "import time; block = bytearray(50_000_000); time.sleep(60)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with running([sys.executable, "-c", parent], f"{direct.url}/models", tmp_path / "log") as program:
        for _ in range(100):
            with program.weighed(0.05) as weights:
                program.cpu_s()
            if program.rss_mb() > 60:
                break
        assert program.rss_mb() > 60
        assert all(weight > 0 for weight in weights)


def test_an_interval_holds_how_much_turns_differ():
    steady = quantile_estimate([[1.0, 2.0, 3.0]] * 4, 50)
    assert (steady.value, steady.low, steady.high) == (2.0, 2.0, 2.0)
    apart = quantile_estimate([[1.0] * 5, [9.0] * 5], 50)
    assert (apart.low, apart.high) == (1.0, 9.0)
    added = quantile_estimate([[5.0], [6.0]], 50, less=[[1.0], [2.0]])
    assert (added.value, added.low, added.high) == (4.0, 4.0, 4.0)
    assert quantile_of([[1.0, 2.0], [3.0]], 50) == 2.0


def test_the_page_shows_every_figure_with_its_interval_and_goal():
    payload = {
        "figures": {"streams_held": 2000, "streams_rss_mb": 212.3456},
        "intervals": {"streams_rss_mb": [200.0, 220.0]},
        "goals": {"streams_held": "reached (>= 2000)"},
        "setup": {
            "date": "2026-11-22", "machine": "a machine", "processors": 2, "seconds": 9, "disk_sync_ms": 0.03,
            "streams": {"streams": 2000, "tokens": 40, "ramp_s": 10.0, "figures": ["streams_held", "streams_rss_mb"]},
        },
    }  # fmt: skip
    text = page(orjson.loads(orjson.dumps(payload)))
    assert "| `streams_held` | 2,000 |  | reached (>= 2000) | open at the same time" in text
    assert "| `streams_rss_mb` | 212.3 | 200 – 220 |" in text


def test_sides_ask_the_same_question(direct):
    other = Side("gateway", direct.url, direct.program, {})
    [plain], [guided] = other.journey("fixed-50", 16), other.journey("fixed-50", 16, guided=True)
    [asked] = direct.journey("fixed-50", 16)
    assert plain.body | {"model": ""} == guided.body | {"model": ""} == dict(asked.body) | {"model": ""}
