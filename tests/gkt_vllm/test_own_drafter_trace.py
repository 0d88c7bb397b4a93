"""What our drafter's requests in vLLM leave in a traffic file, and what plugins are told of them."""

from __future__ import annotations

import json
import logging
from types import SimpleNamespace

import pytest

from gkt_plugins.config import TraceSection
from gkt_plugins.distill.traffic import read_traffic
from gkt_plugins.testing.plugins import plugins_from
from gkt_vllm.answers import answer_length
from gkt_vllm.tracing import Tracer

TRACE = {"path": "traffic.jsonl"}


@pytest.fixture
def lines(closed, tmp_path):
    """What was recorded."""

    def lines():
        closed()
        path = tmp_path / "traffic.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    return lines


def answer(runner, name="a", prompt=(10,), **params):
    """One answer of five tokens: a block with a rejection, then the end in the middle of one that was accepted."""
    runner.add(name, prompt, **params)
    runner.step({name: [11]})
    runner.step({name: [12, 40]})  # 13 was drafted, and rejected
    runner.step({name: [41, 42, 43, 44, 45]})
    runner.step({}, finished=[name])


def test_a_finished_answer_is_a_line_that_distillation_reads(open_runner, lines, tmp_path):
    answer(open_runner(TRACE), max_tokens=5)
    [line] = lines()
    assert line == {
        "gkt_traffic": 1,
        "target": "models/target",
        "request": "a",
        "prompt": [10],
        "answer": [11, 12, 40, 41, 42],  # cut as vLLM's scheduler cuts it
        "rejected": [2],
    }
    [sample] = read_traffic(tmp_path / "traffic.jsonl", vocab_size=100)
    assert (sample.prompt, sample.answer) == ((10,), (11, 12, 40, 41, 42))


def test_each_engine_of_a_server_has_a_file_of_its_own_and_distillation_reads_them_together(
    open_runner, closed, tmp_path
):
    for engine in range(3):
        answer(open_runner(TRACE, engine=engine), prompt=(10 + engine,), max_tokens=5)
    closed()
    files = [tmp_path / name for name in ("traffic.jsonl", "traffic-engine1.jsonl", "traffic-engine2.jsonl")]
    for engine, file in enumerate(files):
        [line] = map(json.loads, file.read_text().splitlines())
        assert line["prompt"] == [10 + engine]
    assert [sample.prompt for sample in read_traffic(files[0])] == [(10,), (11,), (12,)]


def test_answers_without_drafts_are_recorded_too(open_runner, lines):
    answer(open_runner(TRACE), max_tokens=5, extra_args={"gkt_gamma": 0})
    [line] = lines()
    assert (line["answer"], line["rejected"]) == ([11, 12, 40, 41, 42], [])


def test_an_aborted_answer_is_not_recorded(open_runner, lines):
    answer(open_runner(TRACE), max_tokens=50)
    assert lines() == []


def test_a_rejection_beyond_the_answers_end_is_none(open_runner, lines):
    answer(open_runner(TRACE), max_tokens=2)
    assert [line["rejected"] for line in lines()] == [[]]


def test_an_answer_that_ends_while_vllm_drafts_nothing_is_recorded(open_runner, lines):
    runner = open_runner(TRACE)
    runner.add("a", [10], max_tokens=3)
    runner.step({"a": [11]})
    runner.step({"a": [12, 13]}, drafting=False)
    runner.step({}, finished=["a"])
    assert [(line["answer"], line["rejected"]) for line in lines()] == [([11, 12, 13], [])]


@pytest.mark.parametrize(
    "change", [{"lora_request": "adapter"}, {"mm_features": ["image"]}, {"prompt_embeds": [0.5]}], ids=str
)
def test_answers_that_a_draft_could_not_learn_from_are_not_recorded(open_runner, lines, change):
    runner = open_runner(TRACE)
    runner.add("a", [10], max_tokens=2)
    vars(runner.requests["a"]).update(change)
    runner.step({"a": [11]})
    runner.step({"a": [12]})
    runner.step({}, finished=["a"])
    assert lines() == []


def test_a_folder_that_cannot_be_written_is_said_once_and_stops_no_request(open_runner, closed, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    runner = open_runner({"path": "file/traffic.jsonl"})
    for name in "abc":
        answer(runner, name, max_tokens=5)
    closed()
    assert caplog.text.count("traffic is no longer recorded") == 1
    runner.add("d", [10])
    assert runner.step({"d": [11]}) == {"d": [12, 13, 14, 15]}


def test_without_a_section_nobody_is_told_and_nothing_is_written(open_runner, third_party, tmp_path):
    answer(open_runner(), max_tokens=5)
    assert third_party.told == []
    assert not (tmp_path / "traffic.jsonl").exists()


def test_plugins_are_told_of_every_block_and_of_the_end(open_runner, third_party, closed, monkeypatch):
    monkeypatch.setenv("GKT_TRACE", "on")
    answer(open_runner(), max_tokens=5)
    closed()
    first, last = third_party.told
    assert (first.token_ids, first.drafted, first.accepted, first.kept) == ((10, 11), (12, 13, 14, 15), 1, (12, 40))
    assert (last.token_ids, last.drafted, last.accepted) == ((10, 11, 12, 40), (41, 42, 43, 44), 4)
    assert last.kept == (41, 42)
    assert (first.finished, last.finished) == (False, True)
    assert first.row == last.row
    assert first.prompt_tokens == 1


def test_plugins_are_told_of_the_last_step_of_an_answer_that_ended_without_drafts(
    open_runner, third_party, closed, monkeypatch
):
    monkeypatch.setenv("GKT_TRACE", "on")
    answer(open_runner(), max_tokens=5, extra_args={"gkt_gamma": 0})
    closed()
    [event] = third_party.told
    assert event.finished
    assert (event.drafted, event.token_ids, event.kept) == ((), (10, 11, 12, 40, 41), (42,))


class Letters:
    """A tokenizer: token 1 is a, token 2 is b, …"""

    def decode(self, ids, *, skip_special_tokens):
        return "".join(chr(96 + i) for i in ids)


def test_an_answer_that_a_stop_string_ended_is_cut_where_the_string_is_complete(sampling_params):
    params = sampling_params(stop=["de", "zz"], eos_token_id=None)

    def text_of(ids, skip_special_tokens):
        return Letters().decode(ids, skip_special_tokens=skip_special_tokens)

    assert answer_length(params, [1, 2, 3, 4, 5, 6, 7], 64, text_of) == 5
    assert answer_length(params, [1, 2, 3, 4], 64, text_of) is None  # the client left before
    params.max_tokens = 6
    assert answer_length(params, [1, 2, 3, 4, 5, 6, 7], 64, text_of) == 5
    assert answer_length(params, [4, 5, 3, 4, 5, 6], 64, text_of) == 2
    params.min_tokens = 3  # what was complete by then does not count
    assert answer_length(params, [1, 4, 5, 4, 5, 6], 64, text_of) == 5
    assert answer_length(params, [1, 2, 4, 5, 6, 7], 64, text_of) == 4
    assert answer_length(params, [1, 4, 5, 7, 8, 9], 64, text_of) == 6


def test_without_a_tokenizer_stop_strings_are_not_looked_for_and_it_is_said_once(
    sampling_params, tmp_path, caplog, monkeypatch
):
    def none_here():
        raise OSError("no tokenizer")

    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    plugins = plugins_from()
    section = TraceSection(path="traffic.jsonl")
    tracer = Tracer.build(plugins, section, tmp_path, target="t", longest=64, load_tokenizer=none_here)
    for n in range(3):
        params = sampling_params(stop=["x"], max_tokens=3)
        request = SimpleNamespace(
            prompt_token_ids=[1], output_token_ids=[5, 6, 7], sampling_params=params,
            mm_features=[], prompt_embeds=None, lora_request=None,
        )  # fmt: skip
        tracer.left(f"r{n}", request)
    plugins.close()
    assert caplog.text.count("no tokenizer here") == 1
    assert len(read_traffic(tmp_path / "traffic.jsonl")) == 3  # their length ended them
