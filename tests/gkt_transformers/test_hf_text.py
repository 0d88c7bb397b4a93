"""Text to ids and back: the seam between an answer prefix and its continuation."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from gkt_plugins.contracts import Message, Prompt
from gkt_plugins.errors import EngineError
from gkt_transformers._text import TextCodec


def _word_piece(corpus: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=200, special_tokens=["<pad>", "<s>", "</s>", "<unk>"], show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


@pytest.fixture(scope="module")
def codecs(tiny):
    tokenizers = {
        "byte_level": tiny.byte_level_tokenizer(),
        "metaspace": tiny.metaspace_tokenizer(),
        "word_piece": _word_piece(tiny.corpus),
    }
    return {name: TextCodec(tokenizer, model=name) for name, tokenizer in tokenizers.items()}


@pytest.mark.parametrize("kind", ["byte_level", "metaspace"])
def test_the_text_of_any_split_of_a_token_sequence_is_the_whole_text(codecs, kind, tiny):
    codec = codecs[kind]
    for text in tiny.corpus[:6]:
        if kind == "metaspace" and "\n" in text:
            continue  # this tokenizer has no newline of its own
        ids = codec.encode(Prompt(text)).ids
        whole = codec.tokenizer.decode(ids, skip_special_tokens=True)
        for cut in range(2, len(ids)):
            before = codec.tokenizer.decode(ids[:cut], skip_special_tokens=True)
            if before.endswith("\ufffd"):
                continue  # no prompt ends inside a character
            detokenizer = codec.detokenizer(ids[:cut])
            assert before + detokenizer.push(ids[cut:]) + detokenizer.finish() == whole


@pytest.mark.parametrize("kind", ["byte_level", "metaspace", "word_piece"])
def test_pieces_are_final_and_whole_characters_however_tokens_arrive(codecs, kind, tiny):
    codec = codecs[kind]
    ids = codec.encode(Prompt(" ".join(tiny.corpus[:6]))).ids
    at_once = codec.detokenizer(ids[:3])
    text = at_once.push(ids[3:]) + at_once.finish()
    one_by_one = codec.detokenizer(ids[:3])
    pieces = [one_by_one.push([token]) for token in ids[3:]]
    assert all("\ufffd" not in piece for piece in pieces)
    assert "".join(pieces) + one_by_one.finish() == text


def test_a_word_keeps_its_leading_space_although_decoding_it_alone_would_strip_it(codecs):
    codec = codecs["metaspace"]
    ids = codec.encode(Prompt("Anna has 12 apples")).ids
    before = codec.encode(Prompt("Anna has 12")).ids
    assert codec.tokenizer.decode(ids[len(before) :]) == "apples"
    assert codec.detokenizer(before).push(ids[len(before) :]) == " apples"


def test_a_broken_character_comes_out_at_the_end_and_not_before(codecs):
    codec = codecs["byte_level"]
    emoji = codec.encode(Prompt("🚀")).ids  # the rarest emoji of the corpus is more than one token
    assert len(emoji) > 1
    detokenizer = codec.detokenizer(codec.encode(Prompt("go")).ids)
    assert detokenizer.push(emoji[:-1]) == ""
    assert "\ufffd" in detokenizer.finish()


def test_special_tokens_have_no_text(codecs):
    codec = codecs["byte_level"]
    end = codec.tokenizer.convert_tokens_to_ids("<|end|>")
    hello = codec.encode(Prompt("apples")).ids
    assert codec.detokenizer([1]).push([end, *hello, end]) == "apples"


def test_a_raw_prompt_is_tokenised_together_with_its_prefix(codecs):
    codec = codecs["byte_level"]
    assert codec.encode(Prompt("Anna has "), "12 apples").ids == codec.encode(Prompt("Anna has 12 apples")).ids


def test_a_prompt_never_ends_with_the_end_of_sequence_that_some_tokenizers_add(tiny):
    tokenizer = tiny.load_tokenizer("bart")
    assert tokenizer("Anna")["input_ids"][-1] == tokenizer.eos_token_id
    assert TextCodec(tokenizer, model="m").encode(Prompt("Anna")).ids[-1] != tokenizer.eos_token_id


def test_a_chat_opens_the_assistant_s_turn(codecs):
    codec = codecs["byte_level"]
    encoded = codec.encode(Prompt.chat("How far?"))
    assert codec.tokenizer.decode(encoded.ids) == "<|user|>\nHow far?<|end|>\n<|assistant|>\n"
    assert encoded.notes == ()


def test_a_chat_prefix_ends_the_rendered_prompt_exactly(codecs):
    codec = codecs["byte_level"]
    encoded = codec.encode(Prompt.chat("How far?"), " The train travels")
    assert codec.tokenizer.decode(encoded.ids).endswith("<|assistant|>\n The train travels")
    assert encoded.notes == ()


@pytest.mark.parametrize(
    ("template", "prefix"),
    [
        pytest.param("{{ m.content | trim }}", " 60 km ", id="trims"),
        pytest.param("{{ m.content.split('</think>')[-1] }}", "<think>so</think> 60", id="hides the reasoning"),
        pytest.param("{% if m.role == 'assistant' %}{{ raise_exception('no') }}{% endif %}{{ m.content }}", "60",
                     id="refuses a last assistant turn"),
    ],
)  # fmt: skip
def test_a_template_that_rewrites_the_prefix_is_told_and_the_seam_stays_exact(tiny, template, prefix):
    generation = "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    tokenizer = tiny.byte_level_tokenizer(
        "{% for m in messages %}<|{{ m.role }}|>\n" + template + "<|end|>\n{% endfor %}" + generation
    )
    encoded = TextCodec(tokenizer, model="m").encode(Prompt.chat("How far?"), prefix)
    assert tokenizer.decode(encoded.ids).endswith("<|assistant|>\n" + prefix)
    assert encoded.notes
    assert encoded.notes[0].startswith("degraded: the chat template rewrote the answer prefix")


def test_a_chat_without_a_template_says_to_send_text(tiny):
    codec = TextCodec(tiny.byte_level_tokenizer(None), model="base")
    with pytest.raises(EngineError, match="model 'base' has no chat template; send the prompt as text"):
        codec.encode(Prompt.chat("How far?"))


def test_messages_that_the_template_refuses_are_an_error_of_that_call(tiny):
    codec = TextCodec(tiny.byte_level_tokenizer("{{ raise_exception('roles must alternate') }}"), model="m")
    with pytest.raises(EngineError, match="refuses the messages: roles must alternate"):
        codec.encode(Prompt(messages=(Message("user", "a"), Message("user", "b"))))


def test_an_empty_prompt_is_refused(codecs):
    with pytest.raises(EngineError, match="the prompt is empty"):
        codecs["byte_level"].encode(Prompt(""))


def test_tokens_are_counted_without_those_that_a_prompt_begins_with(codecs):
    codec = codecs["metaspace"]
    assert codec.count_tokens("Anna has") == len(codec.encode(Prompt("Anna has")).ids) - 1
