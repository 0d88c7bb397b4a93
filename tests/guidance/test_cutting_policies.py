"""Where each policy cuts, by example."""

from __future__ import annotations

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from gkt_plugins.contracts import CuttingPolicy
from gkt_plugins.guidance.graphemes import is_boundary, whole_characters
from gkt_plugins.guidance.markers import closed_markup
from gkt_plugins.guidance.policies import RawCut, SentenceCut, WordCut
from gkt_plugins.guidance.seam import handed_over, released
from gkt_plugins.guidance.stops import StopFilter, find_stop, held_from


def kept(text: str, policy: CuttingPolicy) -> str:
    return text[: handed_over(text, policy)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The cat sat", "The cat"),
        ("The cat sat ", "The cat sat"),
        ("The", ""),
        (" The cat", " The"),
        ("def f(x):\n    ret", "def f(x):"),
        ("It costs 10\u00a0000 eu", "It costs 10\u00a0000"),
        ("It costs 10\u00a0", "It costs"),
        ("你好世界", "你好世"),
        ("use the 你好", "use the 你"),
        ("今日は GPU", "今日は"),
        ("สวัสดีครับ", "สวัสดีครั"),
        ("see don't st", "see don't"),
        ("מַה שָׁל", "מַה"),
        ("👨‍👩‍👧 and 👨‍👩", "👨‍👩‍👧 and"),
        ("The answer \ufffd", "The answer"),
        ('First: <tool_call>{"name": 1}', "First:"),
        ('First: <tool_call>{"na me": 1}</tool_call>', "First:"),
        ('First: <tool_call>{"na me": 1}</tool_call> then', 'First: <tool_call>{"na me": 1}</tool_call>'),
        ("Hello <|im_en", "Hello"),
        ("a < b and c", "a < b and"),
        ("x <| f y", "x <| f"),
    ],
)
def test_word_cuts_after_the_last_whole_word(text, expected):
    assert kept(text, WordCut()) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It sat. On the mat. Th", "It sat. On the mat."),
        ('He said "go!" and we', 'He said "go!"'),
        ("Pi is 3.14 or so. I", "Pi is 3.14 or so."),
        ("Plan:\nAdd 3 and", "Plan:"),
        ("1. Add the", "1. Add"),
        ("Add them.\n2. Divide the", "Add them."),
        ("他来了。他", "他来了。"),
        ("「行くよ！」と", "「行くよ！」"),
        ("No end of it in sight", "No end of it in"),
    ],
)
def test_sentence_cuts_after_the_last_sentence_and_else_after_the_last_word(text, expected):
    assert kept(text, SentenceCut()) == expected


def test_sentence_releases_no_half_sentence_while_the_teacher_writes():
    assert released("No end of it in sight", SentenceCut()) == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The cat sat o", "The cat sat "),
        ("flags 🇩🇪🇯", "flags 🇩🇪"),
        ("e\u0301te\u0301", "e\u0301t"),
        ("row\r\n", "row"),
        ("half \ufffd", "half"),
        ("\ud83d\ude00\ud83d", "\ud83d\ude00"),
        ("क्षे", ""),
        ("\u1112\u1161\u11ab\u1100", "\u1112\u1161\u11ab"),
        ("tags 🏴\U000e0067\U000e0062", "tags "),
    ],
)
def test_raw_keeps_everything_up_to_the_last_certain_character(text, expected):
    assert kept(text, RawCut()) == expected


class Greedy:
    """A third party's policy that asks for more than there is."""

    def releasable(self, text: str, *, finished: bool) -> int:
        return len(text) + 5


def test_no_policy_can_hand_over_a_broken_character_or_open_markup():
    assert kept("ok 👨‍", Greedy()) == "ok "
    assert kept("ok <think>hm", Greedy()) == "ok "


@settings(max_examples=500, derandomize=True)
@given(st.text(st.characters() | st.sampled_from("\u200d\u0301\r\n🇩🇪👩👍🏽❤\ufe0fक्षがｶﾞ\u1100\u1161\u11a8"), max_size=8))
def test_every_boundary_is_one_of_unicode_s(text):
    ends = {0, *(match.end() for match in regex.finditer(r"\X", text))}
    assert {i for i in range(len(text) + 1) if is_boundary(text, i)} <= ends
    assert whole_characters(text, len(text)) in ends


@pytest.mark.parametrize("opened", ["<think>", "<tool_call>", "<function=f>", "[TOOL_CALLS]", "<｜tool▁calls▁begin｜>"])
def test_an_open_span_is_held_from_its_first_character_on(opened):
    text = f"So {opened}and so on"
    for end in range(4, len(text) + 1):
        assert closed_markup(text[:end]) == 3


def test_a_span_that_is_closed_goes_over_whole():
    text = "<think>a</think> b"
    assert closed_markup(text[:15]) == 0
    assert closed_markup(text) == len(text)


def test_the_stop_string_that_is_completed_first_ends_the_text():
    assert find_stop("abcd", ["bc", "abcd"]) == 1
    assert find_stop("abcd", ["d", "bcd"]) == 1
    assert find_stop("abcd", ["x"]) is None


def test_the_longest_possible_beginning_is_held_back():
    assert held_from("aab", ["abc", "b"]) == 1
    assert held_from("aaa", ["aab"]) == 1
    assert held_from("xyz", ["abc"]) == 3


def test_a_stop_filter_lets_nothing_pass_after_a_stop_string():
    passing = StopFilter(["##"])
    assert [passing.feed("a#"), passing.feed("b#"), passing.feed("#c"), passing.feed("d")] == ["a", "#b", "", ""]
    assert passing.stopped
    assert passing.flush() == ""
