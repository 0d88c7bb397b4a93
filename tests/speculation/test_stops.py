"""Stop strings in text that arrives token by token."""

from __future__ import annotations

from gkt_plugins.speculation.stops import StopMatcher


class Bytes:
    """A tokenizer: every token is a byte, and an incomplete character is the replacement character."""

    def __init__(self) -> None:
        self.longest = 0

    def decode(self, ids, **kwargs) -> str:
        self.longest = max(self.longest, len(ids))
        return bytes(ids).decode("utf-8", errors="replace")


def feed(text: str, *stops: str, prompt: str = "", tokenizer: Bytes | None = None) -> tuple[str | None, int]:
    """The stop string that was found, and the bytes fed until then."""
    matcher = StopMatcher(tokenizer or Bytes(), stops, prompt.encode())
    fed = 0
    for byte in text.encode():
        fed += 1
        found = matcher.feed(byte)
        if found is not None:
            return found, fed
    return None, fed


def test_a_stop_string_is_found_with_the_byte_that_completes_it():
    assert feed("one two three", "two") == ("two", 7)


def test_a_stop_string_of_many_bytes_per_character_is_found():
    assert feed("a🎉b終わり", "終わり") == ("終わり", len("a🎉b終わり".encode()))


def test_a_part_of_a_stop_string_is_not_one():
    assert feed("stostostop", "stop") == ("stop", 10)
    assert feed("sto", "stop") == (None, 3)


def test_the_prompt_is_not_searched_and_does_not_begin_a_match():
    assert feed("p!", "stop", prompt="sto")[0] is None


def test_of_two_stop_strings_the_one_that_begins_first_is_reported():
    assert feed("abcd", "bcd", "cd") == ("bcd", 4)


def test_broken_bytes_neither_hide_a_later_stop_string_nor_make_the_window_grow():
    tokenizer = Bytes()
    matcher = StopMatcher(tokenizer, ["stop"], b"")
    assert all(matcher.feed(0x80) is None for _ in range(500))
    assert [matcher.feed(byte) for byte in b"stop"] == [None, None, None, "stop"]
    assert tokenizer.longest < 30


def test_the_cost_of_a_token_does_not_grow_with_the_answer():
    tokenizer = Bytes()
    assert feed("x" * 2000, "stop", tokenizer=tokenizer) == (None, 2000)
    assert tokenizer.longest < 30
