"""Recorded traffic comes back as it was, and nothing that happens to the file can hurt a request or pass unseen."""

from __future__ import annotations

import json
import logging
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from gkt_plugins.config import TraceSection, load_config
from gkt_plugins.contracts import Sampling, TraceEvent
from gkt_plugins.distill.samples import Sample, fixed_key
from gkt_plugins.distill.traffic import TrafficRecorder, engine_file, older_half, read_traffic
from gkt_plugins.errors import ConfigError
from gkt_plugins.speculation.loop import DecodeLoop
from gkt_plugins.speculation.requests import DecodeRequest
from gkt_plugins.testing.models import TableModel
from gkt_plugins.testing.plugins import plugins_from

# 0 → 1 → … → 9 → 0; the drafter knows all steps but the one from 4.
CYCLE = [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]
MISTAKEN = [1, 2, 3, 4, 9, 6, 7, 8, 9, 0]


def answer(recorder, row, *, prompt=(1, 2), tokens=(3, 4, 5), rejected=None):
    """Tell ``recorder`` of a finished answer in one block."""
    drafted = tokens if rejected is None else (*tokens[:rejected], 99)
    accepted = len(drafted) - (rejected is not None)
    event = TraceEvent(f"r{row}", prompt, drafted, accepted, tokens, len(prompt), row, finished=True)
    recorder(event)


def decode(on_block, prompts, *, drafter=MISTAKEN, tokens=8):
    loop = DecodeLoop(
        TableModel.greedy(CYCLE), drafter=drafter and TableModel.greedy(drafter), gamma=3, on_block=on_block
    )
    sampling = Sampling(max_tokens=tokens)
    requests = [DecodeRequest(ids, sampling, request_id=f"r{place}") for place, ids in enumerate(prompts)]
    return [result.token_ids for result in loop.run(requests)]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


# ---------------------------------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("drafter", [MISTAKEN, None], ids=["speculating", "plain"])
def test_whole_answers_come_back_as_they_were_decoded(tmp_path, drafter):
    path = tmp_path / "traffic.jsonl"
    prompts = [[2], [7, 8], [5]]
    answers = decode(TrafficRecorder(path), prompts, drafter=drafter)
    samples = read_traffic(path, vocab_size=10)
    assert {(sample.prompt, sample.answer) for sample in samples} == {
        (tuple(prompt), tuple(tokens)) for prompt, tokens in zip(prompts, answers, strict=True)
    }
    assert {sample.source for sample in samples} == {"traffic"}
    assert all(sample.key == fixed_key(sample.prompt, sample.answer) for sample in samples)


def test_rejections_are_the_places_at_which_the_target_replaced_the_draft(tmp_path):
    path = tmp_path / "traffic.jsonl"
    (tokens,) = decode(TrafficRecorder(path), [[2]])
    assert tokens == [3, 4, 5, 6, 7, 8, 9, 0]
    assert lines(path)[0]["rejected"] == [2]  # after 4 the draft says 9, and the target 5
    (sample,) = read_traffic(path, positions="rejections")
    assert (sample.prompt, sample.answer) == ((2, 3, 4), (5,))


def test_a_line_names_its_target_and_its_request(tmp_path):
    path = tmp_path / "traffic.jsonl"
    answer(TrafficRecorder(path, target="models/large"), 7)
    assert lines(path) == [
        {
            "gkt_traffic": 1, "target": "models/large", "request": "r7",
            "prompt": [1, 2], "answer": [3, 4, 5], "rejected": [],
        }
    ]  # fmt: skip


def test_with_a_redacted_prompt_only_windows_of_the_answer_are_kept(tmp_path):
    path = tmp_path / "traffic.jsonl"
    recorder = TrafficRecorder(path, redact="prompt", window=2)
    secret = (71, 72, 73)
    answer(recorder, 0, prompt=secret, tokens=(11, 12, 13, 14), rejected=3)
    answer(recorder, 1, prompt=secret, tokens=(21, 22), rejected=1)
    answer(recorder, 2, prompt=secret, tokens=(31, 32), rejected=0)  # has no context but the prompt
    answer(recorder, 3, prompt=secret, tokens=(41, 42))  # nothing rejected
    text = path.read_text()
    assert not any(str(token) in text for token in (*secret, 11, 31, 41, 42))
    assert "r0" not in text
    for positions in ("answers", "rejections"):
        samples = read_traffic(path, positions=positions)
        assert [(it.prompt, it.answer) for it in samples] == [((12, 13), (14,)), ((21,), (22,))]


def test_only_a_share_is_recorded(tmp_path):
    path = tmp_path / "traffic.jsonl"
    draws = iter([0.1, 0.9, 0.2, 0.5])
    recorder = TrafficRecorder(path, share=0.5, draw=lambda: next(draws))
    for row in range(4):
        answer(recorder, row)
    assert [line["request"] for line in lines(path)] == ["r0", "r2"]


def test_an_answer_that_is_never_finished_is_not_recorded(tmp_path):
    path = tmp_path / "traffic.jsonl"
    recorder = TrafficRecorder(path)
    for row in range(5000):  # more than are remembered
        recorder(TraceEvent("gone", (1,), (2, 3), 1, (2, 4), 1, row))
    answer(recorder, 5000)
    assert [line["request"] for line in lines(path)] == ["r5000"]


# ------------------------------------------------------------------------------------------------------------- the file


def test_what_is_kept_never_takes_more_than_its_bytes_and_the_end_is_said_once(tmp_path, caplog):
    path = tmp_path / "traffic.jsonl"
    recorder = TrafficRecorder(path, max_bytes=1000)
    with caplog.at_level(logging.WARNING):
        for row in range(50):
            answer(recorder, row)
    assert recorder.stopped
    assert 0 < recorder.written < 50
    assert path.stat().st_size <= 1000
    assert [line["request"] for line in lines(path)] == [f"r{row}" for row in range(recorder.written)]
    (message,) = caplog.messages
    assert "no longer recorded" in message
    assert "max_bytes = 1000" in message


def test_rotating_keeps_the_newest_within_the_same_bytes_and_both_halves_are_read(tmp_path):
    path = tmp_path / "traffic.jsonl"
    recorder = TrafficRecorder(path, max_bytes=1000, when_full="rotate")
    for row in range(50):
        answer(recorder, row, prompt=(row,))
    assert path.stat().st_size + older_half(path).stat().st_size <= 1000
    kept = [sample.prompt[0] for sample in read_traffic(path)]
    assert kept == list(range(50 - len(kept), 50))
    assert len(kept) > 5


def test_an_answer_larger_than_the_file_stops_rotation_instead_of_turning_for_ever(tmp_path):
    path = tmp_path / "traffic.jsonl"
    recorder = TrafficRecorder(path, max_bytes=400, when_full="rotate")
    answer(recorder, 0, tokens=tuple(range(500)))
    assert recorder.stopped
    assert path.stat().st_size == 0


def test_others_may_not_read_the_file(tmp_path):
    path = tmp_path / "new folder" / "traffic.jsonl"
    answer(TrafficRecorder(path), 0)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_file_that_cannot_be_written_ends_the_recording_and_is_said_once(tmp_path, caplog):
    recorder = TrafficRecorder(tmp_path)  # a folder
    with caplog.at_level(logging.WARNING):
        answer(recorder, 0)
        answer(recorder, 1)
    (message,) = caplog.messages
    assert "cannot be written" in message
    assert recorder.stopped


def test_a_full_disk_leaves_whole_lines(tmp_path, monkeypatch):
    path = tmp_path / "traffic.jsonl"
    recorder = TrafficRecorder(path)
    answer(recorder, 0)
    whole = path.read_bytes()
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, line: write(file, line[:10]))  # what a full disk does
    answer(recorder, 1)
    assert recorder.stopped
    assert path.read_bytes() == whole


def test_a_new_recorder_cuts_off_the_line_that_a_killed_one_left_half_written(tmp_path):
    path = tmp_path / "traffic.jsonl"
    answer(TrafficRecorder(path), 0)
    with path.open("ab") as file:
        file.write(b'{"gkt_traffic":1,"pro')
    answer(TrafficRecorder(path), 1)
    assert [line["request"] for line in lines(path)] == ["r0", "r1"]


def test_a_file_that_is_moved_away_is_begun_anew(tmp_path):
    path = tmp_path / "traffic.jsonl"
    recorder = TrafficRecorder(path)
    answer(recorder, 0)
    path.rename(tmp_path / "kept.jsonl")
    answer(recorder, 1)
    assert [line["request"] for line in lines(path)] == ["r1"]


WRITER = """
import sys
from pathlib import Path
from gkt_plugins.contracts import TraceEvent
from gkt_plugins.distill.traffic import TrafficRecorder
recorder = TrafficRecorder(Path(sys.argv[1]), max_bytes=int(sys.argv[3]), when_full="rotate")
for row in range(300):
    recorder(TraceEvent(sys.argv[2], (int(sys.argv[2]),), (), 0, tuple(range(row % 40)), 1, row, True))
"""


def test_several_processes_write_to_one_file_and_rotate_it(tmp_path):
    path = tmp_path / "traffic.jsonl"
    whole = 10**7
    for max_bytes in (whole, 8000):
        command = [sys.executable, "-c", WRITER, str(path)]
        writers = [subprocess.Popen([*command, str(n), str(max_bytes)]) for n in range(2)]
        assert [writer.wait(120) for writer in writers] == [0, 0]
        if max_bytes == whole:
            assert sorted(line["request"] for line in lines(path)) == ["0"] * 300 + ["1"] * 300
    assert path.stat().st_size + older_half(path).stat().st_size > 0
    for part in (path, older_half(path)):
        assert all(line["gkt_traffic"] == 1 for line in lines(part))  # every line is whole


# -------------------------------------------------------------------------------------------------------------- reading


def test_what_all_engines_of_a_server_recorded_is_read_by_the_first_ones_name(tmp_path):
    section = TraceSection(path="traffic[a].jsonl", max_bytes=1000, when_full="rotate")
    kept = 0
    for engine in (10, 2):
        recorder = TrafficRecorder.from_section(section, tmp_path, engine=engine)
        for n in range(30):
            answer(recorder, n, prompt=(engine, n))
        size = sum(part(recorder.path).stat().st_size for part in (older_half, Path))
        assert size <= 1000  # each has as much
        kept += len(read_traffic(recorder.path))
    (tmp_path / "traffic[a]-engine.jsonl").write_text("not a recorder's")
    path = tmp_path / section.path
    samples = read_traffic(path)  # the first engine has nothing to tell yet
    assert len(samples) == kept > 10
    answer(TrafficRecorder.from_section(section, tmp_path), 0, prompt=(0, 0))
    answers = [sample.prompt for sample in read_traffic(path)]
    assert answers == sorted(answers)
    assert {engine for engine, _ in answers} == {0, 2, 10}
    assert engine_file(path, 0) == path
    assert engine_file(path, 2) == tmp_path / "traffic[a]-engine2.jsonl"


@pytest.fixture
def recorded(tmp_path):
    path = tmp_path / "traffic.jsonl"
    recorder = TrafficRecorder(path)
    for row in range(3):
        answer(recorder, row, prompt=(row + 1,), rejected=1)
    return path


def test_a_half_written_last_line_is_left_out_with_one_warning(recorded, caplog):
    recorded.write_bytes(recorded.read_bytes()[:-9])
    with caplog.at_level(logging.WARNING):
        samples = read_traffic(recorded)
    assert [sample.prompt for sample in samples] == [(1,), (2,)]
    (message,) = caplog.messages
    assert "half written" in message


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (b"\x00\xff", r"line 2 is damaged \(.*; remove it, or record again$"),
        (b'{"prompt": "Anna has"}', "line 2 is no traffic of format 1; name a file that"),
        (b"[1, 2]", "line 2 is no traffic of format 1"),
        (b'{"gkt_traffic": 2}', "line 2 is no traffic of format 1"),
        (b'{"gkt_traffic":1,"prompt":[1]}', r"line 2 is damaged \(token ids are missing\)"),
        (b'{"gkt_traffic":1,"prompt":[1],"answer":["a"],"rejected":[]}', "line 2 is damaged"),
        (b'{"gkt_traffic":1,"prompt":[-1],"answer":[1],"rejected":[]}', "line 2 is damaged"),
        (b'{"gkt_traffic":1,"windows":[[1,true]]}', "line 2 is damaged"),
        (b'{"gkt_traffic":1,"windows":3}', "line 2 is damaged"),
    ],
)
def test_a_damaged_line_in_the_middle_is_refused_by_its_number(recorded, damage, message):
    first, _, last, _ = recorded.read_bytes().split(b"\n")
    recorded.write_bytes(b"\n".join([first, damage, last, b""]))
    with pytest.raises(ConfigError, match=message):
        read_traffic(recorded)


def test_a_file_of_another_vocabulary_is_refused(recorded):
    with pytest.raises(ConfigError, match=r"line 1 has token 5, and the vocabulary has 5; .* another model"):
        read_traffic(recorded, vocab_size=5)
    assert len(read_traffic(recorded, vocab_size=6)) == 3


def test_nothing_to_train_on_is_said(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_traffic(tmp_path / "none")
    path = tmp_path / "traffic.jsonl"
    path.touch()
    with pytest.raises(ConfigError, match="holds no recorded answer; record with"):
        read_traffic(path)
    answer(TrafficRecorder(path), 0)
    with pytest.raises(ConfigError, match="holds no rejected token"):
        read_traffic(path, positions="rejections")


# -------------------------------------------------------------------------------------------------------- configuration


def test_a_section_of_the_configuration_makes_a_recorder(tmp_path):
    text = '[trace]\npath = "kept/t.jsonl"\nredact = "prompt"\nwindow = 1\n'
    section = load_config(text=text, env={}).trace
    answer(TrafficRecorder.from_section(section, tmp_path, target="t"), 0, rejected=2)
    assert read_traffic(tmp_path / "kept" / "t.jsonl") == [Sample((4,), (5,), "traffic", fixed_key([4], [5]))]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[trace]", r"trace.path is missing \(line 1\)"),
        ("trace = 1", "trace must be a table, got 1"),
        ('[trace]\npath = "t"\nshare = 0', r"trace.share must be in \(0, 1\], got 0"),
        ('[trace]\npath = "t"\nwindow = 8', "trace has a window and redact = 'none'"),
        ('[trace]\npath = "t"\nmax_byte = 8', "trace.max_byte is not a known key .*; did you mean 'max_bytes'"),
    ],
)
def test_a_wrong_section_says_what_is_expected(text, message):
    with pytest.raises(ConfigError, match=message):
        load_config(text=text, env={})


def test_the_observers_thread_writes_what_a_loop_decodes(tmp_path):
    path = tmp_path / "traffic.jsonl"
    plugins = plugins_from()
    decode(plugins.tracer({"[trace]": TrafficRecorder(path)}), [[n] for n in range(5)])
    plugins.close()
    assert len(read_traffic(path)) == 5
    assert plugins_from().tracer({}) is None  # nobody would see an event: loops make none


def test_numbers_of_rows_may_be_used_again_after_their_answer(tmp_path):
    path = tmp_path / "traffic.jsonl"
    recorder = TrafficRecorder(path)
    for place in range(3):
        answer(recorder, 0, prompt=(place,), rejected=place)
    assert [line["rejected"] for line in lines(path)] == [[0], [1], [2]]
