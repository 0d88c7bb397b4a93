"""The seam, driven through the machine itself: four unlike tokenizers, any text, any arrival chunking, any cut.

The checks below are written against the Unicode tables of another library and against naive references, never against
the functions that they check; the last tests run them on deliberately wrong seams and expect them to notice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import pytest
import regex
from hypothesis import HealthCheck, assume, find, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from gkt_plugins.contracts import CuttingPolicy, Prompt, Sampling, Usage
from gkt_plugins.guidance.events import (
    TEACHER,
    Action,
    CallEnd,
    CallKey,
    CallText,
    CancelCall,
    Emit,
    Finish,
    Request,
    Rules,
    StartCall,
)
from gkt_plugins.guidance.machine import GuidanceMachine
from gkt_plugins.guidance.policies import FixedLength, RawCut, SentenceCut, WordCut

SEGMENTS = (
    *("The", "cat", "sat", " ", " ", " ", "\n", "  ", "\r\n", "42", ".", "!", ",", "3.14", "don't", "\t", "naïve"),
    *("def f(x):\n    return x[0]\n", "a.b->c(d)", "x <- y", "if a <| b", "<", "</", "{'k': \"v\"}", "#include <map>"),
    *("👨‍👩‍👧‍👦", "👩🏽‍🚀", "👍🏿", "🇩🇪", "🇯🇵🇺🇸", "🇩", "❤️", "1️⃣", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "🏳️‍🌈", "🐱"),
    *("你好世界", "東京に行く。", "第一！", "「はい」", "สวัสดี", "ภาษาไทย", "안녕하세요", "\u1112\u1161\u11ab", "ｶﾞ"),
    *("שָׁלוֹם", "مَرْحَبًا", "سلام", "नमस्ते", "क्षत्रिय", "e\u0301", "a\u0308\u0323", "Z̷̛͓", "\u00a0", "\u200b", "ﬁ"),
    *('<tool_call>{"f": "add it"}</tool_call>', "<tool_call>", "</tool_call>", "<think>hm, so</think>", "<think>"),
    *("<|im_start|>", "<|im_end|>", "<|im_start|>user\n", "<start_of_turn>", "[INST]", "<｜User｜>", "[TOOL_CALLS]"),
)
TEXTS = st.lists(st.sampled_from(SEGMENTS), min_size=1, max_size=12).map("".join)

POLICIES: dict[str, CuttingPolicy] = {"word": WordCut(), "sentence": SentenceCut(), "raw": RawCut()}


# ----------------------------------------------------------------------------------------------------------- tokenizers


def _corpus() -> list[str]:
    return ["".join(SEGMENTS), *(" ".join((a, b)) for a in SEGMENTS for b in SEGMENTS[::7])]


def _byte_bpe() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(_corpus(), trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet))
    return tokenizer


def _characters() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("(?m)[\\s\\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.train_from_iterator(_corpus(), trainers.WordLevelTrainer(special_tokens=["[UNK]"]))
    return tokenizer


def _wordpiece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    tokenizer.train_from_iterator(_corpus(), trainers.WordPieceTrainer(vocab_size=700, special_tokens=["[UNK]"]))
    return tokenizer


def _unigram() -> Tokenizer:
    space = pre_tokenizers.Metaspace(prepend_scheme="never")
    trained = Tokenizer(models.Unigram())
    trained.pre_tokenizer = space
    trained.train_from_iterator([t[:40] for t in _corpus()], trainers.UnigramTrainer(vocab_size=200, unk_token="<unk>"))
    pieces = [(piece, -float(i)) for i, piece in enumerate(trained.get_vocab()) if piece != "<unk>"]
    rare = [(f"<0x{byte:02X}>", -1000.0) for byte in range(256)]  # what it has no piece for is spelled in bytes
    tokenizer = Tokenizer(models.Unigram([("<unk>", 0.0), *pieces, *rare], unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = space
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="never")])
    return tokenizer


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "byte BPE": cache(_byte_bpe),
    "characters": cache(_characters),
    "WordPiece": cache(_wordpiece),
    "unigram": cache(_unigram),
}
LOSSLESS = ("byte BPE", "characters", "unigram")


def streamed(tokenizer: Tokenizer, ids: Sequence[int], *, patient: bool) -> list[str]:
    """The text of ``ids`` token by token. ``patient``: an unfinished character waits, as most engines do it."""
    pieces: list[str] = []
    sent = ""
    for count in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:count], skip_special_tokens=False)
        last = count == len(ids)
        if text.endswith("\ufffd") and not last and (patient or not text.startswith(sent)):
            continue
        if not text.startswith(sent):  # an impatient engine has sent a broken character: it is part of the text
            continue
        pieces.append(text[len(sent) :])
        sent = text
    return [piece for piece in pieces if piece]


# --------------------------------------------------------------------------------------------------------- the machine


@dataclass
class Run:
    """What one request did."""

    text: str
    guidance: str
    prefix: str | None
    """What the student was given; None: it was not called."""
    released: list[int]
    """Characters that the client had after each piece of teacher text."""
    finish_reason: str


def drive(
    rules: Rules,
    guidance: Sequence[str],
    teacher_end: CallEnd,
    completion: Sequence[str],
    stop: tuple[str, ...] = (),
    machine: type[GuidanceMachine] = GuidanceMachine,
) -> Run:
    """One request with everything the teacher and the student do given beforehand."""
    run = machine(Request(Prompt(text="Q"), Sampling(max_tokens=100_000, stop=stop)), rules)
    out: list[Action] = run.start()
    released: list[int] = []

    def say(key: CallKey, pieces: Sequence[str], end: CallEnd) -> None:
        for piece in pieces:
            out.extend(run.receive(CallText(key, piece)))
            released.append(sum(len(action.text) for action in out if isinstance(action, Emit)))
            if any(isinstance(action, CancelCall) and action.key == key for action in out):
                end = CallEnd(key, "cancelled")
                break
        out.extend(run.receive(end))

    say(TEACHER, guidance, teacher_end)
    during_guidance = list(released)
    student = CallKey("student", 0)
    calls = {action.key: action.call for action in out if isinstance(action, StartCall)}
    if student in calls:
        say(student, completion, CallEnd(student, "stop", Usage(1, 0, 1)))
    assert run.done
    emits = [action for action in out if isinstance(action, Emit)]
    [finish] = [action for action in out if isinstance(action, Finish)]
    return Run(
        text="".join(emit.text for emit in emits),
        guidance="".join(emit.text for emit in emits if emit.role == "teacher"),
        prefix=calls[student].prefix if student in calls else None,
        released=during_guidance,
        finish_reason=finish.finish_reason,
    )


@dataclass(frozen=True)
class Case:
    """A teacher's answer, tokenized, cut at ``g`` tokens, and the way in which it arrives."""

    kind: str
    whole: str
    """The teacher's answer without a cut, as its tokenizer decodes it."""
    pieces: tuple[str, ...]
    early: bool
    """The teacher finished within ``g`` tokens."""

    @property
    def text(self) -> str:
        return "".join(self.pieces)


@st.composite
def cases(draw: st.DrawFn, kinds: Sequence[str] = tuple(KINDS)) -> Case:
    kind = draw(st.sampled_from(kinds))
    tokenizer = KINDS[kind]()
    ids = tokenizer.encode(draw(TEXTS)).ids
    g = draw(st.integers(1, max(1, len(ids) + 1)))
    pieces = streamed(tokenizer, ids[:g], patient=draw(st.booleans()))
    if draw(st.booleans()):
        text = "".join(pieces)
        cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=6)))
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True) if a < b]
    return Case(kind, tokenizer.decode(ids, skip_special_tokens=False), tuple(pieces), g > len(ids))


def end_of(case: Case) -> CallEnd:
    return CallEnd(TEACHER, "stop" if case.early else "length", Usage(1, 0, max(1, len(case.pieces))))


def rules_with(policy: str) -> Rules:
    return Rules(FixedLength(50_000), POLICIES[policy])


# ----------------------------------------------------------------------------------------------------------- the checks

_SPANS = regex.compile(r"<think>.*?(?:</think>|\Z)|<tool_call>.*?(?:</tool_call>|\Z)|\[TOOL_CALLS\].*", regex.S)
_MARKERS = regex.compile(r"<\|\w+\|>|<｜\w+｜>|</?(?:think|tool_call)>|\[INST\]|\[TOOL_CALLS\]|<start_of_turn>")
_UNSPACED = regex.compile(
    r"[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Thai}\p{Script=Lao}\u3000-\u303f\uff00-\uffef]"
)


def flaw(case: Case, kept: str, policy: str) -> str | None:
    """What is half about handing over ``kept`` of the teacher's text, or None."""
    whole, cut = case.whole, len(kept)
    if not case.text.startswith(kept):
        return "not the teacher's words"
    if kept.endswith("\ufffd"):
        return "a broken character"
    if not whole.startswith(kept):
        return None if "\ufffd" in case.text else "not a beginning of the teacher's answer"
    ends = {0, *(match.end() for match in regex.finditer(r"\X", whole))}
    if cut not in ends:
        return "half a character"
    if any(match.start() < cut < match.end() for match in _MARKERS.finditer(whole)):
        return "half a marker"
    if any(match.start() < cut < match.end() for match in _SPANS.finditer(whole)):
        return "half a span"
    if policy != "raw" and kept:
        if kept[-1].isspace():
            return "a trailing space"
        beside = _UNSPACED.search(kept[-2:]) or _UNSPACED.match(whole, cut)
        if cut < len(whole) and not whole[cut].isspace() and not beside:
            return "half a word"
    return None


def naive_answer(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """``text`` up to the stop string that is completed first, character by character."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end - max(map(len, ending))], True
    return text, False


SETTINGS = settings(
    max_examples=200,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)


@pytest.mark.parametrize("policy", POLICIES)
@SETTINGS
@given(case=cases(), completion=st.lists(TEXTS, max_size=3))
def test_the_joined_text_loses_and_repeats_nothing_and_hands_over_nothing_half(policy, case, completion):
    assume(case.text)
    run = drive(rules_with(policy), case.pieces, end_of(case), completion)
    if case.early:
        assert (run.text, run.prefix) == (case.text, None)
        return
    assert run.prefix is not None
    assert run.text == run.prefix + "".join(completion)
    assert run.guidance == run.prefix
    assert flaw(case, run.prefix, policy) is None, (flaw(case, run.prefix, policy), case, run.prefix)


@pytest.mark.parametrize("policy", POLICIES)
@SETTINGS
@given(case=cases())
def test_what_was_released_while_the_teacher_wrote_is_final_and_never_half(policy, case):
    assume(case.text)
    run = drive(rules_with(policy), case.pieces, end_of(case), [])
    for length in run.released:
        assert run.text.startswith(case.text[:length])
        assert flaw(case, case.text[:length], policy) is None, (case, case.text[:length])


@pytest.mark.parametrize("student", LOSSLESS)
@pytest.mark.parametrize("policy", POLICIES)
@SETTINGS
@given(case=cases())
def test_what_is_handed_over_decodes_to_itself_with_the_student_s_tokenizer(student, policy, case):
    tokenizer = KINDS[student]()
    run = drive(rules_with(policy), case.pieces, end_of(case), [])
    assume(run.prefix is not None and "\ufffd" not in run.prefix)
    assert run.prefix is not None
    decoded = tokenizer.decode(tokenizer.encode(run.prefix).ids, skip_special_tokens=False)
    assume("[UNK]" not in decoded)  # characters: a teacher's byte tokens may spell one that no segment holds
    assert decoded == run.prefix


@pytest.mark.parametrize("policy", ["word", "sentence"])
@SETTINGS
@given(case=cases(kinds=LOSSLESS))
def test_a_cut_between_words_makes_no_word_unknown_to_a_wordpiece_student(policy, case):
    tokenizer = KINDS["WordPiece"]()
    run = drive(rules_with(policy), case.pieces, end_of(case), [])
    assume(run.prefix is not None and case.whole.startswith(run.prefix))
    tokens, whole = tokenizer.encode(run.prefix).tokens, tokenizer.encode(case.whole).tokens
    if regex.search(r"[\u0e00-\u0eff]", case.whole) is None:  # one Thai phrase is one word to it, so any cut makes two
        assert tokens.count("[UNK]") <= whole.count("[UNK]")
    if "[UNK]" not in tokens:
        assert "".join(tokenizer.decode([*tokenizer.encode(run.prefix).ids]).split()) == "".join(run.prefix.split())


@SETTINGS
@given(case=cases(), completion=TEXTS, data=st.data())
def test_no_stop_string_is_ever_in_the_answer_whichever_side_it_begins_on(case, completion, data):
    plain = drive(rules_with("word"), case.pieces, end_of(case), [completion])
    stops = data.draw(st.lists(substrings(plain.text, plain.prefix or ""), min_size=1, max_size=3).map(tuple))
    assume(all(stops))
    chunks = [completion[:3], completion[3:]]
    run = drive(rules_with("word"), case.pieces, end_of(case), chunks, stops)
    by_teacher, stopped = naive_answer(case.text, stops)
    expected, stopped = (by_teacher, True) if stopped else naive_answer(plain.text, stops)
    assert run.text == expected
    assert not any(stop in run.text for stop in stops)
    assert not stopped or run.finish_reason == "stop"


@st.composite
def substrings(draw: st.DrawFn, text: str, guidance: str) -> str:
    """A piece of ``text``, often one that crosses the seam at the end of ``guidance``."""
    seam = len(guidance)
    start = draw(st.integers(max(0, seam - 4), seam) | st.integers(0, len(text)))
    return text[start : start + draw(st.integers(1, 8))]


@SETTINGS
@given(case=cases(), completion=TEXTS, data=st.data())
def test_how_the_text_was_chunked_makes_no_difference_to_the_answer(case, completion, data):
    stops = data.draw(st.lists(st.text("Thecats .\n", min_size=1, max_size=3), max_size=2).map(tuple))
    first = drive(rules_with("word"), case.pieces, end_of(case), [completion], stops)
    again = drive(rules_with("word"), list(case.text), end_of(case), list(completion), stops)
    assert (first.text, first.finish_reason) == (again.text, again.finish_reason)


# ----------------------------------------------------------------------------------- wrong seams, which must be noticed

WRONG_CUTS: dict[str, Callable[[str], str]] = {
    "a broken character": lambda text: text,
    "half a character": lambda text: text.rstrip("\ufffd"),
    "half a marker": lambda text: text.rstrip("\ufffd"),
    "half a span": lambda text: text[: text.rfind(" ")] if " " in text else "",
    "a trailing space": lambda text: text[: text.rfind(" ") + 1],
    "half a word": lambda text: text[:-1].rstrip(),
    "not the teacher's words": lambda text: text.strip() + " ",
}


@pytest.mark.parametrize("expected", WRONG_CUTS)
def test_a_cut_that_is_wrong_in_one_way_is_noticed(expected):
    cut = WRONG_CUTS[expected]
    noticed = find(
        cases(), lambda case: not case.early and flaw(case, cut(case.text), "word") == expected, settings=SETTINGS
    )
    assert noticed is not None


def test_looking_for_stop_strings_in_each_model_s_text_alone_is_noticed():
    class Forgetful(GuidanceMachine):
        def _hand_over(self, guidance: str = "") -> list[Action]:
            actions = super()._hand_over(guidance)
            held = [Emit(choice.number, choice.passing.flush(), "teacher") for choice in self._choices]
            return [*actions, *(emit for emit in held if emit.text)]

    def answer(machine: type[GuidanceMachine]) -> str:
        end = CallEnd(TEACHER, "length", Usage(1, 0, 3))
        return drive(rules_with("raw"), ["The cat ", "sa", "x"], end, ["t down"], ("sat",), machine).text

    assert answer(GuidanceMachine) == naive_answer("The cat sat down", ("sat",))[0] == "The cat "
    assert answer(Forgetful) == "The cat sat down"
