"""Decoder-only models as an engine: batches, streams, seams, and rows that cannot be answered."""

from __future__ import annotations

import asyncio
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from gkt_plugins.config import load_config
from gkt_plugins.contracts import BuildContext, Call, Completion, Engine, Prompt, Sampling
from gkt_plugins.errors import BackendError, ConfigError, EngineError, MissingDependencyError
from gkt_plugins.plugins import load_plugins
from gkt_transformers.engine import TransformersEngine
from gkt_transformers.options import TransformersOptions

QUESTION = Prompt("Anna has 12 apples and buys")


@pytest.fixture
async def engine_of(tiny):
    engines = []

    def build(family="llama", *, speculation="", **options):
        config = load_config(text=speculation and "[speculation]\n" + speculation)
        context = BuildContext(name="edge", resources={"config": config})
        made = TransformersEngine.build(TransformersOptions(model=str(tiny.folder(family)), **options), context)
        engines.append(made)
        return made

    yield build
    for engine in engines:
        await engine.aclose()


@pytest.fixture
def draft(tiny):
    return f'drafter = "model"\ndraft = "{tiny.folder("draft")}"\ngamma = 3\n'


def _plain(tiny, family, text, max_tokens):
    """What the model's own generate writes, as text: all of it, and of the prompt."""
    model = AutoModelForCausalLM.from_pretrained(tiny.folder(family)).eval()
    tokenizer = tiny.load_tokenizer(family)
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    answer = model.generate(ids, max_new_tokens=max_tokens, do_sample=False)[0]
    return tokenizer.decode(answer, skip_special_tokens=True), tokenizer.decode(ids[0], skip_special_tokens=True)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma"])
async def test_prompt_and_completion_join_to_what_plain_generate_writes(tiny, engine_of, family):
    [answer] = await engine_of(family).generate([Call(QUESTION, sampling=Sampling(max_tokens=20))])
    whole, prompt = _plain(tiny, family, QUESTION.text, 20)
    assert prompt + answer.text == whole
    assert answer.usage.completion_tokens <= 20


async def test_speculation_changes_the_usage_and_not_the_text(engine_of, draft):
    call = Call(QUESTION, sampling=Sampling(max_tokens=30))
    [plain] = await engine_of().generate([call])
    engine = engine_of(speculation=draft)
    [fast] = await engine.generate([call])
    assert engine.capabilities.speculates
    assert fast.text == plain.text
    assert fast.usage.completion_tokens == plain.usage.completion_tokens
    assert fast.usage.prompt_tokens == plain.usage.prompt_tokens
    assert fast.usage.drafted_tokens > fast.usage.accepted_tokens > 0
    assert plain.usage.drafted_tokens == 0


async def test_a_completion_continues_the_prefix_and_does_not_repeat_it(engine_of):
    engine = engine_of()
    [whole] = await engine.generate([Call(Prompt("Anna has"), sampling=Sampling(max_tokens=1))])
    [rest] = await engine.generate([Call(Prompt("Anna"), " has", Sampling(max_tokens=1))])
    assert rest.text == whole.text


async def test_a_chat_prefix_is_continued_inside_the_assistant_s_turn(tiny, engine_of):
    engine = engine_of()
    assert engine.capabilities.prefix == "continue_final_message"
    prefix = "The train travels"
    [rest] = await engine.generate([Call(Prompt.chat("How far?"), prefix, Sampling(max_tokens=12))])
    rendered = "<|user|>\nHow far?<|end|>\n<|assistant|>\n" + prefix
    whole, prompt = _plain(tiny, "llama", rendered, 12)
    assert prompt + rest.text == whole
    assert rest.notes == ()


async def test_a_stream_is_the_answer_in_pieces_and_ends_with_the_usage(engine_of, draft):
    engine = engine_of(speculation=draft)
    for stop in ((), ("zzz",)):
        call = Call(QUESTION, sampling=Sampling(max_tokens=24, stop=stop))
        [whole] = await engine.generate([call])
        pieces = [delta async for delta in engine.stream(call)]
        assert "".join(piece.text for piece in pieces) == whole.text
        assert len(pieces) > 2
        assert pieces[-1].finish_reason == whole.finish_reason
        assert pieces[-1].usage.completion_tokens == whole.usage.completion_tokens


async def test_a_stop_string_ends_the_row_and_is_never_streamed(engine_of, draft):
    engine = engine_of(speculation=draft)
    [whole] = await engine.generate([Call(QUESTION, sampling=Sampling(max_tokens=24))])
    stop = whole.text[5:9]
    call = Call(QUESTION, sampling=Sampling(max_tokens=24, stop=(stop,)))
    [stopped] = await engine.generate([call])
    assert stopped.text == whole.text[: whole.text.index(stop)]
    assert stopped.finish_reason == "stop"
    assert stopped.usage.completion_tokens < whole.usage.completion_tokens
    assert "".join([delta.text async for delta in engine.stream(call)]) == stopped.text


async def test_an_answer_that_is_cut_at_its_bound_says_so_although_stop_strings_were_given(engine_of, draft):
    engine = engine_of(speculation=draft)
    [plain] = await engine.generate([Call(QUESTION, sampling=Sampling(max_tokens=12))])
    call = Call(QUESTION, sampling=Sampling(max_tokens=12, stop=("never written",)))
    [bounded] = await engine.generate([call])
    assert (bounded.text, bounded.finish_reason) == (plain.text, "length")
    assert [delta.finish_reason async for delta in engine.stream(call)][-1] == "length"


async def test_concurrent_callers_share_a_batch(engine_of):
    engine = engine_of(max_batch=8, max_wait_ms=500)
    call = Call(QUESTION, sampling=Sampling(max_tokens=4))
    answers = await asyncio.gather(*(engine.generate([call]) for _ in range(8)))
    assert len({answer.text for [answer] in answers}) == 1
    assert (engine.stats.batches, engine.stats.calls, engine.stats.largest) == (1, 8, 8)


async def test_a_call_joins_a_batch_under_way(engine_of):
    engine = engine_of(max_wait_ms=0)
    stream = engine.stream(Call(QUESTION, sampling=Sampling(max_tokens=100, temperature=1.0, seed=1)))
    await anext(stream)
    await engine.generate([Call(QUESTION, sampling=Sampling(max_tokens=2))])
    await stream.aclose()
    assert engine.stats.calls == 2
    assert engine.stats.batches + engine.stats.joined == 2


async def test_rows_answer_as_they_would_alone(engine_of, draft):
    engine = engine_of(speculation=draft, max_wait_ms=100)
    calls = [
        Call(QUESTION, sampling=Sampling(max_tokens=20)),
        Call(Prompt("A train"), sampling=Sampling(max_tokens=9, temperature=0.9, top_k=20, top_p=0.9, seed=3)),
        Call(Prompt.chat("How far?"), "The", Sampling(max_tokens=15, temperature=1.2, min_p=0.01, seed=4)),
        Call(Prompt("你好"), sampling=Sampling(max_tokens=20, repetition_penalty=1.3)),
    ]
    together = await engine.generate(calls)
    alone = [(await engine.generate([call]))[0] for call in calls]
    assert [answer.text for answer in together] == [answer.text for answer in alone]


async def test_a_seed_repeats_and_its_absence_does_not(engine_of):
    engine = engine_of()
    fixed = Call(QUESTION, sampling=Sampling(max_tokens=30, temperature=1.0, seed=7))
    fresh = Call(QUESTION, sampling=Sampling(max_tokens=30, temperature=1.0))
    first, second, third, fourth = await engine.generate([fixed, fixed, fresh, fresh])
    assert first.text == second.text
    assert len({first.text, third.text, fourth.text}) == 3


async def test_bad_rows_come_back_as_errors_and_the_others_are_answered(engine_of, tiny):
    engine = engine_of()
    good = Call(QUESTION, sampling=Sampling(max_tokens=3))
    answers = await engine.generate([good, Call(Prompt("")), Call(Prompt("Anna" * tiny.context)), good])
    assert [type(answer) for answer in answers] == [Completion, EngineError, EngineError, Completion]
    assert "the prompt is empty" in str(answers[1])
    assert f"tokens, the model takes {tiny.context}; shorten it" in str(answers[2])
    assert answers[0].text == answers[3].text


async def test_an_answer_ends_where_the_context_does(engine_of):
    engine = engine_of(max_context=16)
    [answer] = await engine.generate([Call(QUESTION, sampling=Sampling(max_tokens=100, temperature=1.0, seed=0))])
    assert answer.finish_reason == "length"
    assert answer.usage.prompt_tokens + answer.usage.completion_tokens == 16


async def test_the_seconds_of_rows_add_up_to_the_loop_s_own(engine_of):
    engine = engine_of(max_wait_ms=100)
    short, long = await engine.generate(
        [Call(QUESTION, sampling=Sampling(max_tokens=4)), Call(QUESTION, sampling=Sampling(max_tokens=40))]
    )
    assert 0 < short.usage.seconds < long.usage.seconds


async def test_closing_a_stream_frees_its_row(engine_of, tiny):
    engine = engine_of(max_batch=1, max_wait_ms=0)
    endless = Call(QUESTION, sampling=Sampling(max_tokens=100_000))
    stream = engine.stream(endless)
    await anext(stream)
    await stream.aclose()
    [answer] = await asyncio.wait_for(engine.generate([Call(QUESTION, sampling=Sampling(max_tokens=2))]), 60)
    assert answer.usage.completion_tokens == 2


async def test_a_cancelled_caller_frees_its_rows(engine_of):
    engine = engine_of(max_batch=1, max_wait_ms=0)
    call = Call(QUESTION, sampling=Sampling(max_tokens=100))
    task = asyncio.create_task(engine.generate([call] * 50))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    [answer] = await asyncio.wait_for(engine.generate([Call(QUESTION, sampling=Sampling(max_tokens=2))]), 60)
    assert answer.usage.completion_tokens == 2


async def test_a_closed_engine_says_so_and_closing_twice_is_safe(engine_of):
    engine = engine_of()
    await engine.aclose()
    await engine.aclose()
    [answer] = await engine.generate([Call(QUESTION)])
    assert isinstance(answer, EngineError)
    assert "engine 'edge' is closed" in str(answer)


async def test_leniency_is_said_with_every_answer(engine_of, draft):
    engine = engine_of(speculation=draft + 'verifier = "lenient"\nrule = "linear"\nepsilon = 0.5\n')
    [answer] = await engine.generate([Call(QUESTION, sampling=Sampling(max_tokens=4))])
    assert answer.notes == ("lenient: drafted tokens passed by the rule 'linear' with epsilon 0.5",)


async def test_tokens_are_counted_by_the_model_s_own_tokenizer(engine_of, tiny):
    engine = engine_of()
    assert isinstance(engine, Engine)
    assert engine.capabilities.tokenizer
    assert engine.count_tokens("Anna has") == len(tiny.load_tokenizer("llama")("Anna has")["input_ids"])


async def test_the_plugin_builds_it_from_a_configuration(tiny, tmp_path):
    shutil.copytree(tiny.folder("llama"), tmp_path / "models" / "small")
    (tmp_path / "gkt.toml").write_text('[engines.edge]\nadapter = "transformers"\nmodel = "models/small"\n')
    config, plugins = load_config(tmp_path / "gkt.toml"), load_plugins()
    section = config.engines["edge"]
    context = BuildContext(name="edge", base_dir=config.base_dir, resources={"config": config, "plugins": plugins})
    engine = plugins.engines().build(section.adapter, section.options, context)
    assert (engine.name, engine.model) == ("edge", "small")  # the name under which it is priced
    await engine.aclose()


def _build(folder, **options):
    return TransformersEngine.build(TransformersOptions(model=str(folder), **options), BuildContext(name="edge"))


def test_a_missing_extra_is_named(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)  # as if it were not installed
    with pytest.raises(MissingDependencyError, match=r"run: pip install 'gkt-plugins\[transformers\]'"):
        _build(tiny.folder("llama"))


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"model folder '.*nowhere' does not exist; give an existing folder"):
        _build(tmp_path / "nowhere")


def test_a_folder_without_a_configuration_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"has no config.json; give a folder that save_pretrained wrote"):
        _build(tmp_path)


def test_a_folder_without_a_tokenizer_is_named(tiny, tmp_path):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(tiny.folder("llama") / name, tmp_path)
    with pytest.raises(ConfigError, match=r"has no tokenizer; save one into the folder"):
        _build(tmp_path)


def _damaged(tiny, tmp_path, damage):
    folder = tmp_path / "model"
    shutil.copytree(tiny.folder("llama"), folder)
    damage(folder / "model.safetensors")
    return folder


def _without_one_layer(path):
    weights = load_file(path)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, path, metadata={"format": "pt"})


def _misshapen(path):
    weights = load_file(path)
    save_file(weights | {"model.norm.weight": torch.zeros(3)}, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        pytest.param(
            lambda p: p.write_bytes(p.read_bytes()[:5000]), r"weights of model .* cannot be read", id="truncated"
        ),
        pytest.param(lambda p: p.write_bytes(b"garbage" * 99), r"weights of model .* cannot be read", id="no header"),
        pytest.param(lambda p: p.unlink(), r"weights of model .* cannot be read", id="no weights"),
        pytest.param(_without_one_layer, r"lacks 1 weights, model.layers.1.mlp.up_proj.weight first", id="incomplete"),
        pytest.param(_misshapen, r"weights of model .* cannot be read", id="another shape"),
    ],
)
def test_damaged_weights_are_one_clear_sentence(tiny, tmp_path, damage, sentence):
    folder = _damaged(tiny, tmp_path, damage)
    with pytest.raises(BackendError, match=sentence) as caught:
        _build(folder)
    assert "\n" not in str(caught.value)


def test_an_unknown_dtype_is_refused(tiny):
    with pytest.raises(ConfigError, match="dtype must be auto, float32, float16 or bfloat16, got 'int8'"):
        _build(tiny.folder("llama"), dtype="int8")


def test_a_draft_that_does_not_fit_says_how_to_leave_this_engine_out(tiny, tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    LlamaForCausalLM(LlamaConfig(vocab_size=2000, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                                 num_attention_heads=1)).save_pretrained(tmp_path)  # fmt: skip
    config = load_config(text=f'[speculation]\ndrafter = "model"\ndraft = "{tmp_path}"\n')
    context = BuildContext(name="edge", resources={"config": config})
    with pytest.raises(ConfigError, match=r"draft's vocabulary .* or set engines.edge.speculation = false"):
        TransformersEngine.build(TransformersOptions(model=str(tiny.folder("llama"))), context)


async def test_an_option_that_the_engine_cannot_honour_fails_its_own_row_and_is_named(engine_of):
    engine = engine_of()
    asked = Call(QUESTION, sampling=Sampling(max_tokens=2))
    extra = {"logit_bias": {"5": -100}, "frequency_penalty": 1}
    penalised = Call(QUESTION, sampling=Sampling(max_tokens=2, extra=extra))
    first, refused, last = await engine.generate([asked, penalised, asked])
    assert isinstance(first, Completion)
    assert isinstance(last, Completion)
    assert first.text == last.text
    assert isinstance(refused, EngineError)
    assert refused.refused
    assert str(refused) == (
        "the engine 'edge' decodes in this process and cannot honour frequency_penalty, logit_bias; "
        "leave it out of the request"
    )
    with pytest.raises(EngineError, match="cannot honour frequency_penalty, logit_bias"):
        await anext(engine.stream(penalised))
