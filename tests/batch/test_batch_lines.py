"""Reading a batch: what a line is, and how little a bad one does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gkt_plugins.batch.files import BatchFiles, errors_path, to_line
from gkt_plugins.batch.lines import read_line, read_lines
from gkt_plugins.contracts import Sampling
from gkt_plugins.errors import ConfigError

PIPELINES = {"default": Sampling(max_tokens=99)}


def request(custom_id: str = "a", content: str = "Why?") -> str:
    body = {"model": "gkt/default", "messages": [{"role": "user", "content": content}]}
    line = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}
    return json.dumps(line, ensure_ascii=False)


def answer(custom_id: str) -> bytes:
    return to_line({"id": "batch_req_1", "custom_id": custom_id, "response": {"status_code": 200}, "error": None})


def test_a_byte_order_mark_windows_line_ends_and_separators_inside_texts_are_no_trouble(tmp_path):
    path = tmp_path / "in.jsonl"
    text = "\ufeff" + request("a", "one\u2028two\u0085") + "\r\n\r\n" + request("b") + "\r\n"
    path.write_bytes(text.encode())
    first, second = read_lines(path, PIPELINES)
    assert (first.number, first.custom_id, second.number, second.custom_id) == (1, "a", 3, "b")
    assert first.asked is not None
    assert first.asked.requests[0].prompt.messages[0].content == "one\u2028two\u0085"


def test_what_a_body_does_not_say_is_the_pipeline_s_and_openai_s_default():
    line = read_line(1, request().encode(), PIPELINES)
    assert line.asked is not None
    sampling = line.asked.requests[0].sampling
    assert (sampling.max_tokens, sampling.temperature) == (99, 1.0)


def test_a_line_in_another_encoding_is_a_bad_line_and_not_a_bad_file(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_bytes(request("a", "Größe").encode("latin-1") + b"\n" + request("b").encode() + b"\n")
    bad, good = read_lines(path, PIPELINES)
    assert "line 1 must be UTF-8, and its byte " in str(bad.error)
    assert good.asked is not None


TEXTS = st.text(max_size=5) | st.sampled_from(["POST", "/v1/chat/completions", "/v1/completions", "gkt/default"])
BODIES = st.dictionaries(st.sampled_from(["model", "messages", "prompt", "n"]), TEXTS | st.lists(TEXTS))
TABLES = st.dictionaries(st.sampled_from(["custom_id", "method", "url", "body"]), TEXTS | BODIES)
VALUES = TABLES | st.recursive(st.none() | st.integers() | TEXTS, st.lists)


@given(st.binary(max_size=60) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_no_line_whatever_is_in_it_does_more_than_become_an_error(source):
    line = read_line(1, source, PIPELINES)
    assert (line.asked is None) != (line.error is None)


def test_a_folder_in_place_of_the_input_is_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        list(read_lines(tmp_path, PIPELINES))


def test_errors_stand_beside_the_answers_under_a_name_of_their_own():
    assert errors_path(Path("x/answers.jsonl")) == Path("x/answers.errors.jsonl")
    assert errors_path(Path("answers")) == Path("answers.errors.jsonl")


def test_a_text_that_is_no_text_in_utf_8_is_written_all_the_same():
    line = to_line({"text": "half a pair: \ud83d"})
    assert json.loads(line)["text"] == "half a pair: \ud83d"


@given(cut=st.integers(min_value=0))
def test_wherever_a_killed_run_cut_the_file_off_whole_answers_are_kept_and_the_rest_is_gone(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("cut") / "out.jsonl"
    lines = [answer(name) for name in ("a", "b\u2028ß", "c")]
    whole = b"".join(lines)
    kept = whole[: cut % (len(whole) + 1)]
    path.write_bytes(kept)
    count = kept.count(b"\n")
    with BatchFiles(path) as files:
        assert files.answered == set(["a", "b\u2028ß", "c"][:count])
        files.add(answer("d"))
    assert path.read_bytes() == b"".join(lines[:count]) + answer("d")


def test_an_answer_is_in_the_file_as_soon_as_it_is_added(tmp_path):
    path = tmp_path / "out.jsonl"
    with BatchFiles(path) as files:
        files.add(answer("a"))
        assert path.read_bytes() == answer("a")
        files.add_error(answer("b"))
        assert files.errors.read_bytes() == answer("b")


def test_a_file_that_holds_failures_is_no_file_of_answers(tmp_path):
    path = tmp_path / "out.jsonl"
    failed = to_line({"id": "batch_req_1", "custom_id": "a", "response": {"status_code": 502}, "error": None})
    path.write_bytes(answer("x") + failed)
    with pytest.raises(ConfigError, match="see its line 2; name another with --output"):
        BatchFiles(path)
    assert path.read_bytes() == answer("x") + failed
