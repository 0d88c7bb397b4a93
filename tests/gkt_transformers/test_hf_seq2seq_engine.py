"""Encoder-decoder models as teacher and as student."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

from gkt_plugins.config import load_config
from gkt_plugins.contracts import BuildContext, Call, Completion, Prompt, Sampling
from gkt_plugins.errors import ConfigError, EngineError
from gkt_transformers.engine import TransformersEngine
from gkt_transformers.options import TransformersOptions

QUESTION = Prompt("A train travels 60 km in one hour")
FAMILIES = ["t5", "bart"]


@pytest.fixture
async def engine_of(tiny):
    engines = []

    def build(family, **options):
        folder = str(tiny.folder(family))
        engines.append(
            TransformersEngine.build(TransformersOptions(model=folder, **options), BuildContext(name=family))
        )
        return engines[-1]

    yield build
    for engine in engines:
        await engine.aclose()


@pytest.mark.parametrize("family", FAMILIES)
async def test_an_answer_is_what_plain_generate_writes(tiny, engine_of, family):
    model = AutoModelForSeq2SeqLM.from_pretrained(tiny.folder(family)).eval()
    tokenizer = tiny.load_tokenizer(family)
    inputs = tokenizer(QUESTION.text, return_tensors="pt", return_token_type_ids=False)
    ids = model.generate(**inputs, max_new_tokens=12, num_beams=1, do_sample=False, forced_eos_token_id=None)
    [answer] = await engine_of(family).generate([Call(QUESTION, sampling=Sampling(max_tokens=12))])
    assert answer.text == tokenizer.decode(ids[0], skip_special_tokens=True)
    assert answer.finish_reason == "length"
    assert answer.usage.prompt_tokens == inputs["input_ids"].shape[1]
    assert answer.usage.completion_tokens == 12


@pytest.mark.parametrize(("family", "opening"), [("t5", [0]), ("bart", [2, 1])])
async def test_a_student_continues_the_teacher_s_text_in_its_decoder(tiny, engine_of, family, opening):
    prefix = "Anna has 12"
    model = AutoModelForSeq2SeqLM.from_pretrained(tiny.folder(family)).eval()
    tokenizer = tiny.load_tokenizer(family)
    source = tokenizer(QUESTION.text, return_tensors="pt", return_token_type_ids=False)
    target = opening + tokenizer(prefix, add_special_tokens=False)["input_ids"]
    options = {"max_new_tokens": 12, "num_beams": 1, "do_sample": False, "forced_eos_token_id": None}
    ids = model.generate(**source, decoder_input_ids=torch.tensor([target]), **options)[0]
    [rest] = await engine_of(family).generate([Call(QUESTION, prefix, Sampling(max_tokens=12))])
    assert prefix + rest.text == tokenizer.decode(ids, skip_special_tokens=True)
    assert rest.usage.completion_tokens == 12


@pytest.mark.parametrize("family", FAMILIES)
async def test_rows_of_a_batch_answer_as_they_would_alone(engine_of, family):
    engine = engine_of(family)
    calls = [
        Call(QUESTION, sampling=Sampling(max_tokens=9)),
        Call(Prompt("Anna has 12 apples and buys 7 more"), "so she", Sampling(max_tokens=4)),
        Call(Prompt("Anna"), sampling=Sampling(max_tokens=12, temperature=0.9, top_k=20, top_p=0.9, seed=3)),
        Call(QUESTION, sampling=Sampling(max_tokens=12, temperature=1.2, min_p=0.01, repetition_penalty=1.2, seed=4)),
    ]
    together = await engine.generate(calls)
    alone = [(await engine.generate([call]))[0] for call in calls]
    assert [answer.text for answer in together] == [answer.text for answer in alone]
    assert [answer.usage.completion_tokens for answer in together] == [a.usage.completion_tokens for a in alone]


async def test_sampled_tokens_follow_the_model_s_own_distribution(tiny, engine_of):
    model = AutoModelForSeq2SeqLM.from_pretrained(tiny.folder("t5")).eval()
    tokenizer = tiny.load_tokenizer("t5")
    source = tokenizer(QUESTION.text, return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        logits = model(**source, decoder_input_ids=torch.tensor([[0]])).logits[0, -1]
    top = logits.topk(12)
    temperature = float(top.values[0] - top.values[-1]) / 2  # neither flat nor certain
    expected = Counter()
    for token, p in zip(top.indices.tolist(), torch.softmax(top.values / temperature, dim=-1).tolist(), strict=True):
        expected[tokenizer.decode([token], skip_special_tokens=True)] += p  # tokens may have the same text
    engine = engine_of("t5", max_batch=64, max_wait_ms=50)
    n = 512
    answers = await engine.generate(
        [Call(QUESTION, sampling=Sampling(1, temperature=temperature, top_k=12, seed=seed)) for seed in range(n)]
    )
    seen = [answer.text for answer in answers]
    assert len(expected) > 2
    for text, p in expected.items():
        share = seen.count(text) / n
        assert abs(share - p) <= 4 * (p * (1 - p) / n) ** 0.5  # four standard errors of a binomial share


async def test_a_stop_string_ends_one_row_and_is_not_part_of_it(engine_of):
    engine = engine_of("bart")
    [whole] = await engine.generate([Call(QUESTION, sampling=Sampling(max_tokens=16))])
    stop = whole.text[4:7]
    [stopped, other] = await engine.generate(
        [Call(QUESTION, sampling=Sampling(16, stop=(stop,))), Call(QUESTION, sampling=Sampling(16))]
    )
    assert stopped.text == whole.text[: whole.text.index(stop)]
    assert stopped.finish_reason == "stop"
    assert stopped.usage.completion_tokens < 16
    assert other.text == whole.text


async def test_a_stream_is_the_answer_in_pieces(engine_of):
    engine = engine_of("bart")
    call = Call(QUESTION, sampling=Sampling(max_tokens=16))
    [whole] = await engine.generate([call])
    pieces = [delta async for delta in engine.stream(call)]
    assert "".join(piece.text for piece in pieces) == whole.text
    assert len(pieces) > 2
    assert [piece.finish_reason for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert pieces[-1].finish_reason == "length"
    assert pieces[-1].usage.completion_tokens == 16


async def test_bad_rows_come_back_as_errors_and_the_others_are_answered(engine_of, tiny):
    engine = engine_of("bart")
    good = Call(QUESTION, sampling=Sampling(max_tokens=3))
    answers = await engine.generate(
        [good, Call(Prompt("")), Call(Prompt("apples " * tiny.context)), Call(Prompt.chat("hi")), good]
    )
    assert [type(answer) for answer in answers] == [Completion, EngineError, EngineError, EngineError, Completion]
    assert "the prompt is empty" in str(answers[1])
    assert f"the model takes {tiny.context}; shorten it" in str(answers[2])
    assert "has no chat template" in str(answers[3])
    assert answers[0].text == answers[4].text


async def test_the_seconds_of_a_batch_are_split_by_generated_tokens(engine_of):
    engine = engine_of("t5", max_wait_ms=100)
    short, long = await engine.generate(
        [Call(QUESTION, sampling=Sampling(max_tokens=4)), Call(QUESTION, sampling=Sampling(max_tokens=12))]
    )
    assert engine.stats.batches == 1
    assert long.usage.seconds == pytest.approx(3 * short.usage.seconds)


async def test_a_closed_stream_frees_the_engine(engine_of):
    engine = engine_of("t5")
    stream = engine.stream(Call(QUESTION, sampling=Sampling(max_tokens=100_000)))
    assert (await anext(stream)).finish_reason is None
    await stream.aclose()
    [answer] = await asyncio.wait_for(engine.generate([Call(QUESTION, sampling=Sampling(max_tokens=2))]), 60)
    assert answer.usage.completion_tokens == 2


async def test_speculation_is_refused_with_what_to_do(tiny):
    config = load_config(text='[speculation]\ndrafter = "prompt_lookup"\n')
    context = BuildContext(name="teacher", resources={"config": config})
    with pytest.raises(ConfigError, match=r"cannot speculate; set engines.teacher.speculation = false"):
        TransformersEngine.build(TransformersOptions(model=str(tiny.folder("t5"))), context)
