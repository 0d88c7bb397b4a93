import asyncio
from pathlib import Path

import orjson
import pytest
from prometheus_client import CollectorRegistry, Counter

from benchmarks.vllm import speculation
from benchmarks.vllm.__main__ import PARTS, main
from benchmarks.vllm._clients import ask
from benchmarks.vllm._engines import Engine
from benchmarks.vllm._host import OURS, THEIRS, Job, Seen, counters
from benchmarks.vllm._page import page
from benchmarks.vllm._servers import GUIDANCE_TOKENS, PRICES, guided, plain
from benchmarks.vllm._setting import Models, Setting, native, section, side, take_turns
from gkt_plugins.config import load_config
from gkt_plugins.demo.problems import problems
from gkt_plugins.speculation.counts import Counts
from gkt_plugins.testing.openai_upstream import Reply, Upstream

MODELS = Models("a-target", "a-draft")
JOB = Job([[1, 2]], 1, 0.0, 8)


@pytest.fixture
def setting(tmp_path):
    return Setting(quick=True, work=tmp_path, models=MODELS)


def seen(tokens, seconds, **counted):
    return Seen(seconds, [list(range(tokens))], **counted)


def test_vllm_s_counters_and_ours_are_read_from_one_registry_and_compared_in_our_terms():
    registry = CollectorRegistry()
    blocks, drafted, accepted = 3, 12, 7  # blocks of 4 that kept 4, 2 and 1
    for name, value in (("drafts", blocks), ("draft_tokens", drafted), ("accepted_tokens", accepted)):
        Counter(f"vllm:spec_decode_num_{name}", "", ["engine"], registry=registry).labels("0").inc(value)
    by_place = Counter("vllm:spec_decode_num_accepted_tokens_per_pos", "", ["engine", "position"], registry=registry)
    for place, value in enumerate((3, 2, 1, 1)):
        by_place.labels("0", str(place)).inc(value)
    theirs = counters(registry, THEIRS)
    expected = Counts(drafted=drafted, tested=4 + 3 + 2, accepted=accepted, bonus=1, blocks=blocks)
    assert seen(1, 1.0, theirs=theirs).counts == expected
    for name in ("drafted", "tested", "accepted", "bonus"):
        Counter(f"gkt_speculation_{name}_tokens", "", registry=registry).inc(getattr(expected, name))
    Counter("gkt_speculation_blocks", "", registry=registry).inc(blocks)
    assert seen(1, 1.0, ours=counters(registry, OURS)).own_counts == expected


def test_a_side_that_counts_nothing_is_not_taken_for_one_that_counted_zero():
    assert seen(1, 1.0).own_counts is None
    assert seen(1, 1.0).counts == Counts()


def test_every_job_meets_all_engines_and_each_of_them_begins_in_its_turn():
    order = []

    class Noted:
        def __init__(self, name):
            self.name = name

        def answer(self, job):
            order.append(self.name)
            return seen(4, 2.0)

    found = take_turns({name: Noted(name) for name in "abc"}, [JOB] * 4)
    assert "".join(order) == "abc" + "bca" + "cab" + "abc"
    assert {name: len(every) for name, every in found.items()} == {"a": 4, "b": 4, "c": 4}
    assert found["a"][0].rate == 2.0


def test_both_sides_of_a_pair_have_the_same_target_draft_and_length(setting):
    by_hand, by_file = native("native", setting, "a-draft", 5), section("on", setting, "a-draft", 5)
    assert by_hand.environment["VLLM_PLUGINS"] == ""
    assert "VLLM_PLUGINS" not in by_file.environment
    own = by_hand.settings.arguments["speculative_config"]
    config = load_config(Path(by_file.settings.arguments["additional_config"]["gkt"]["config"]), env={})
    assert config.speculation.drafter_options.draft == own["model"]
    assert config.speculation.gamma == own["num_speculative_tokens"]
    shared = by_hand.settings.arguments.keys() & by_file.settings.arguments.keys()
    assert {key: by_hand.settings.arguments[key] for key in shared} == {
        key: by_file.settings.arguments[key] for key in shared
    }
    assert by_hand.settings.arguments["model"] == "a-target"
    assert by_hand.settings.with_mend


def test_arguments_for_every_engine_go_before_the_benchmark_s_own(tmp_path):
    setting = Setting(quick=True, work=tmp_path, models=MODELS, engine_arguments={"dtype": "bfloat16"})
    assert side("x", setting, setting.cheap).settings.arguments["dtype"] == "bfloat16"


def test_an_engine_that_cannot_start_says_why(setting, tmp_path):
    impossible = side("broken", setting, "a-target", no_such_argument=1)
    engine = Engine(impossible, tmp_path / "log")
    try:
        with pytest.raises(RuntimeError, match=r"the engine 'broken' ended; the end of its log:\n(.|\n)*Error"):
            engine.wait()
    finally:
        engine.close()


def test_the_guided_server_has_the_teacher_s_and_the_student_s_price(setting):
    server = guided("one", setting, "http://127.0.0.1:1/v1", "teacher")
    config = load_config(setting.work / "one.toml", env={})
    assert config.pipelines["default"].guidance.length_options.tokens == GUIDANCE_TOKENS
    assert {name: str(price.output_per_million) for name, price in config.prices.items()} == {
        name: price[1] for name, price in PRICES.items()
    }
    assert "--gkt" in server.command
    assert plain("teacher", "a-target").environment["VLLM_PLUGINS"] == ""


def test_clients_time_streams_and_take_the_cost_from_the_usage():
    asked = list(problems(0, 5, split="test"))
    with Upstream(lambda received: Reply("The answer is 7.", per_token_s=0.01), model="teacher") as upstream:
        seconds, chats = asyncio.run(ask(upstream.url, "teacher", asked, clients=2, max_tokens=32))
    assert len(chats) == 5
    assert all(0 < chat.first_s < chat.seconds <= seconds for chat in chats)
    assert [chat.text for chat in chats] == ["The answer is 7."] * 5
    assert [chat.is_right(problem) for chat, problem in zip(chats, asked, strict=True)] == [
        problem.result == 7 for problem in asked
    ]
    usages = [received.body["stream_options"] for received in upstream.received]
    assert usages == [{"include_usage": True}] * 5
    assert all(chat.cost > 0 and chat.route == "plain" for chat in chats)


def test_a_refused_stream_is_an_error_and_never_an_answer():
    with (
        Upstream(lambda received: Reply("", status=503), model="teacher") as upstream,
        pytest.raises(RuntimeError, match="status 503"),
    ):
        asyncio.run(ask(upstream.url, "teacher", list(problems(0, 1, split="test")), clients=1, max_tokens=8))


def test_ratios_are_of_pairs_at_the_same_temperature_and_batch_and_greedy_answers_are_compared():
    found = {
        (0.0, 1): {"native": [seen(4, 1.0), seen(5, 1.0)], "on": [seen(4, 2.0), seen(4, 1.0)]},
        (1.0, 8): {"native": [seen(8, 1.0)], "on": [seen(4, 1.0)]},
    }
    assert speculation.rates(found, "on") == ([2.0, 4.0, 4.0], [4.0, 5.0, 8.0])
    assert speculation.greedy_equal(found, "on") == 0.5


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--target", "x"], "--target and --draft go together"),
        (["--target", "x", "--draft", "y", "--only", "guided"], "guided is measured with the packaged models only"),
        (["--target", "x", "--draft", "y", "--only", "distilled"], "distilled needs --distilled"),
    ],
)
def test_models_that_a_part_cannot_use_are_refused_before_anything_starts(arguments, said):
    with pytest.raises(SystemExit, match=said):
        main(arguments)


def test_the_page_shows_every_figure_of_every_part_with_its_interval_and_goal():
    parts = {
        "off": {"turns": 7, "batches": [1, 8], "max_new_tokens": 96, "figures": ["off_ratio"]},
        "speculation": {
            "gamma": 4, "turns": 8, "batches": [1, 8], "max_new_tokens": 64, "figures": ["custom_vs_native_t0", "null"],
        },
        "distilled": {
            "alone": 16, "turns": 5, "at_once": 8, "max_new_tokens": 96, "gamma": 7, "short_gamma": 4, "figures": [],
        },
        "guided": {
            "guidance_tokens": 24, "clients": 16, "problems": 144, "turns": 3, "max_tokens": 384, "pairs": 60,
            "overhead_tokens": 8, "figures": [],
        },
    }  # fmt: skip
    assert set(parts) == set(PARTS)
    payload = {
        "figures": {"off_ratio": 0.9951, "custom_vs_native_t0": 1.0123, "null": None},
        "intervals": {"off_ratio": [0.985, 1.01]},
        "goals": {"off_ratio": "reached (>= 0.98)"},
        "setup": {
            "date": "2026-11-22", "machine": "a machine", "processors": 2, "seconds": 9,
            "versions": {"vllm": "0.32.0+cpu", "torch": "2.13.0"}, **parts,
        },
    }  # fmt: skip
    text = page(orjson.loads(orjson.dumps(payload)))
    assert "| `off_ratio` | 0.9951 | 0.985 – 1.01 | reached (>= 0.98) | tokens per second, installed" in text
    assert "| `custom_vs_native_t0` | 1.012 |  |  | the same tokens on both sides |" in text
    assert "| `null` | not measured |" in text
    assert "1 and 8 requests in flight" in text
