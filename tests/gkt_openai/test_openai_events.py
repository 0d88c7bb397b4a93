"""Server-sent events come out the same, wherever the bytes were cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gkt_openai.events import MAX_EVENT_BYTES, EventReader, EventTooLongError

DATA = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=12)


def read(parts: list[bytes]) -> list[bytes]:
    reader = EventReader()
    events = [event for part in parts for event in reader.feed(part)]
    return [data for data, _ in events + reader.end()]


@given(
    st.lists(st.lists(DATA, min_size=1, max_size=3), max_size=5),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.sets(st.integers(0, 200)),
    st.booleans(),
)
def test_events_are_the_same_wherever_the_bytes_are_cut_and_whatever_ends_the_lines(events, end, cuts, comments):
    frames = []
    for lines in events:
        frames += [": a comment", "event: message", "retry: 5", "unknown"] if comments else []
        frames += [*(f"data: {line}" for line in lines), ""]
    stream = "".join(f"{line}{end}" for line in frames).encode()
    places = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    parts = [stream[a:b] for a, b in pairwise(places)]
    assert read(parts) == ["\n".join(lines).encode() for lines in events]


def test_an_event_comes_out_with_its_last_byte_and_no_sooner():
    reader = EventReader()
    for byte in b"data: [DON":
        assert reader.feed(bytes([byte])) == []
    assert reader.feed(b"E]\n\n") == [(b"[DONE]", None)]


def test_one_space_after_the_colon_is_not_data():
    assert read([b"data:a\n\ndata: b\n\ndata:  c\n\n"]) == [b"a", b"b", b" c"]


def test_a_byte_order_mark_is_no_text():
    stream = b"\xef\xbb\xbfdata: a\n\n"
    assert read([stream]) == read([stream[i : i + 1] for i in range(len(stream))]) == [b"a"]


def test_the_last_event_counts_without_the_empty_line_after_it():
    assert read([b"data: a\n\ndata: [DONE]"]) == [b"a", b"[DONE]"]


def test_an_event_carries_its_own_number_and_no_other_ones():
    reader = EventReader()
    assert reader.feed(b"id: 7\ndata: a\n\ndata: b\n\n") == [(b"a", b"7"), (b"b", None)]


@pytest.mark.parametrize("piece", [b"data: " + b"x" * 2**20, b"data: " + b"x" * 2**20 + b"\n"])
def test_an_event_without_end_is_an_error_and_fills_no_memory(piece):
    reader = EventReader()
    for _ in range(MAX_EVENT_BYTES // 2**20 - 1):
        assert reader.feed(piece) == []
    with pytest.raises(EventTooLongError):
        reader.feed(piece + piece)
