"""How an endpoint is found to continue a given beginning, and that it then does."""

from __future__ import annotations

import asyncio
import json
import time

import pytest

from gkt_openai.engine import OpenAIEngine
from gkt_openai.errors import EndpointError
from gkt_openai.findings import MAX_AGE_S
from gkt_plugins.contracts import Call, Prompt
from gkt_plugins.errors import ConfigError
from gkt_plugins.guidance.events import Request, Rules
from gkt_plugins.guidance.exchange import Exchange, Parts
from gkt_plugins.guidance.policies import FixedLength, WordCut
from gkt_plugins.guidance.request import run_exchange
from gkt_plugins.testing.engines import ScriptedEngine
from gkt_plugins.testing.openai_upstream import Fault, Reply, Upstream

TEXT = "The first eight letters are A, B, C, D, E, and some more."
BEGUN = "The first eight let"
CHAT = Call(Prompt.chat("Which letters?"), BEGUN)

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}[A] {% endif %}"
)


async def text_of(engine: OpenAIEngine, call: Call) -> str:
    return "".join([delta.text async for delta in engine.stream(call)])


async def found(engine: OpenAIEngine) -> dict[str, str]:
    return {finding.name: finding.value for finding in await engine.examine()}


ROUTES = [
    (["continue_final_message"], "continue_final_message", "chat with continue_final_message"),
    (["prefix"], "provider_flag", "chat with prefix = true in the last message"),
    (["partial"], "provider_flag", "chat with partial = true in the last message"),
    (["partial", "prefix", "continue_final_message"], "continue_final_message", "chat with continue_final_message"),
    (["trailing"], "provider_flag", "chat that ends with the assistant's message"),
]


@pytest.mark.parametrize(("continues", "capability", "shown"), ROUTES, ids=str)
async def test_the_best_way_that_an_endpoint_has_is_found_and_used(engine_of, continues, capability, shown):
    with Upstream(TEXT, continues=continues) as upstream:
        engine = engine_of(upstream)
        assert BEGUN + await text_of(engine, CHAT) == TEXT
        assert engine.capabilities.prefix == capability
        assert (await found(engine))["prefix route"] == shown


@pytest.mark.parametrize(("continues", "capability", "shown"), ROUTES, ids=str)
async def test_the_way_is_found_by_the_text_where_no_tokens_are_told(engine_of, continues, capability, shown):
    with Upstream(Reply(TEXT, usage="never"), continues=continues) as upstream:
        engine = engine_of(upstream)
        assert (await found(engine))["prefix route"] == shown


@pytest.mark.parametrize("usage", ["asked", "never"])
async def test_a_flag_that_is_taken_and_ignored_is_not_believed(engine_of, usage):
    with Upstream(Reply(TEXT, usage=usage), continues=[], routes=["chat"]) as upstream:
        engine = engine_of(upstream)
        assert (await found(engine))["prefix route"].startswith("a hint")
        assert engine.capabilities.prefix == "hint"


async def test_a_hint_is_told_in_the_user_s_turn_and_the_beginning_is_not_repeated(engine_of):
    with Upstream(TEXT, continues=[]) as upstream:
        engine = engine_of(upstream, prefix="hint")
        deltas = [delta async for delta in engine.stream(CHAT)]
        [whole] = await engine.generate([CHAT])
    assert BEGUN + "".join(delta.text for delta in deltas) == TEXT
    assert getattr(whole, "text", "") == TEXT[len(BEGUN) :]
    assert all(note.startswith("degraded: hint") for note in deltas[-1].notes)
    assert [turn["role"] for turn in upstream.received[0].body["messages"]] == ["user"]
    assert BEGUN in upstream.received[0].body["messages"][0]["content"]


@pytest.mark.parametrize("answer", ["and more.", "The first eight", "The first nine.", "\n" + BEGUN + "ters."])
async def test_a_hinted_answer_loses_nothing_but_the_repeated_beginning(engine_of, answer):
    with Upstream(answer, continues=[]) as upstream:
        text = await text_of(engine_of(upstream, prefix="hint"), CHAT)
    assert text == answer.strip("\n").removeprefix(BEGUN)


@pytest.mark.parametrize("known", ["before", "with the first call"])
async def test_a_hint_is_said_once_in_the_answer(engine_of, known):
    with Upstream(TEXT, continues=[], routes=["chat"]) as upstream:
        student = engine_of(upstream)
        if known == "before":
            await student.prepare()
        rules = Rules(FixedLength(3), WordCut(), student_prefix=student.capabilities.prefix)
        parts = Parts(rules, student, ScriptedEngine(TEXT))
        exchange = Exchange(Request(CHAT.prompt), parts)
        async for _ in run_exchange(exchange, parts):
            pass
    [choice] = exchange.answer.choices
    assert choice.text == TEXT
    assert [note for note in choice.notes if "hint" in note] == [*choice.notes]
    assert len(choice.notes) == 1


async def test_raw_prompts_are_continued_without_asking_anything_first(engine_of):
    with Upstream(TEXT) as upstream:
        assert await text_of(engine_of(upstream), Call(Prompt(text="Which? "), BEGUN)) == TEXT[len(BEGUN) :]
    [received] = upstream.received
    assert received.body["prompt"] == "Which? " + BEGUN


async def test_a_chat_becomes_a_raw_prompt_by_the_model_s_own_template(engine_of, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": "{{ bos_token }}" + TEMPLATE, "bos_token": {"content": "<s>"}})
    )
    with Upstream(TEXT, continues=["completion"]) as upstream:
        engine = engine_of(upstream, chat_template="model")
        assert BEGUN + await text_of(engine, CHAT) == TEXT
        assert engine.capabilities.prefix == "completion"
        assert (await found(engine))["prefix route"] == "raw prompt, by the model's chat template"
    assert upstream.received[-1].body["prompt"] == f"[user] Which letters?\n[A] {BEGUN}"


async def test_an_endpoint_without_chats_gets_them_as_raw_prompts(engine_of, tmp_path):
    (tmp_path / "chat.jinja").write_text(TEMPLATE)
    with Upstream(TEXT, routes=["completions"]) as upstream:
        engine = engine_of(upstream, chat_template="chat.jinja")
        await engine.prepare()
        assert await text_of(engine, Call(CHAT.prompt)) == TEXT
    assert upstream.received[-1].body["prompt"] == "[user] Which letters?\n[A] "


async def test_a_template_that_refuses_a_chat_says_why(engine_of, tmp_path):
    (tmp_path / "chat.jinja").write_text("{{ raise_exception('roles must alternate') }}")
    with Upstream(TEXT) as upstream:
        engine = engine_of(upstream, chat_template="chat.jinja", prefix="completion")
        [error] = await engine.generate([CHAT])
    assert str(error) == "the chat template does not take these messages: roles must alternate"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"prefix": "completion"}, "engines.cloud.prefix is 'completion'"),
        ({"chat_template": "nowhere"}, "chat_template must name a .jinja file"),
    ],
)
def test_what_cannot_work_is_said_before_the_first_call(engine_of, options, says):
    with pytest.raises(ConfigError, match=says):
        engine_of(Upstream("unused"), base_url="http://127.0.0.1:9/v1", **options)


# ---------------------------------------------------------------------------------------------------------------- probe


async def test_the_probe_says_what_an_endpoint_has(engine_of):
    with Upstream(TEXT) as upstream:
        engine = engine_of(upstream)
        assert not engine.capabilities.logprobs
        assert {name: value for name, value in (await found(engine)).items() if name != "asked"} == {
            "answers": "chat, raw prompts",
            "model listed": "yes",
            "prefix route": "chat with continue_final_message",
            "usage on streams": "yes",
            "log-probabilities": "of the top 20 in chat and 20 in raw prompts",
            "prompt log-probabilities": "yes, by echo",
        }
        assert engine.capabilities.logprobs


async def test_the_probe_says_what_an_endpoint_has_not(engine_of):
    with Upstream(Reply(TEXT, usage="never"), continues=[], routes=["chat"], refuses=["logprobs", "stream_options"],
                  models_status=500) as upstream:  # fmt: skip
        engine = engine_of(upstream)
        findings = {finding.name: finding for finding in await engine.examine()}
        assert not engine.capabilities.stream_usage
    assert findings["answers"].value == "chat"
    assert findings["model listed"].value == "no: /models does not name it"
    assert findings["usage on streams"].good is False
    assert findings["log-probabilities"].value == "no"
    assert findings["prompt log-probabilities"].value == "no"
    assert "vLLM, SGLang or llama.cpp" in findings["prefix route"].advice


async def test_running_counts_are_asked_for_where_they_are_had_and_survive_a_break(engine_of):
    with Upstream(Reply(TEXT, usage="every_chunk")) as upstream:
        engine = engine_of(upstream)
        assert (await found(engine))["usage on streams"] == "yes, in every chunk"
        deltas = []
        stream = engine.stream(Call(Prompt.chat("Which?")))
        async for delta in stream:
            deltas.append(delta)
            if len(deltas) == 3:
                break
        await stream.aclose()
    assert upstream.received[-1].body["stream_options"]["continuous_usage_stats"] is True
    assert deltas[-1].usage is not None
    assert deltas[-1].usage.completion_tokens == 3


async def test_completions_that_hide_a_chat_template_are_not_taken_for_raw_prompts(engine_of):
    with Upstream(TEXT, wraps_completions=True, continues=[]) as upstream:
        findings = await found(engine_of(upstream))
    assert findings["answers"] == "chat"
    assert "chat template" in findings["note"]


async def test_an_endpoint_is_asked_once_by_all_calls_and_all_runs(engine_of):
    with Upstream(TEXT) as upstream:
        engine = engine_of(upstream)
        await asyncio.gather(*(text_of(engine, CHAT) for _ in range(5)))
        asked = len(upstream.received) - 5
        await text_of(engine_of(upstream), CHAT)
        assert len(upstream.received) == asked + 6
        assert asked <= 14


async def test_all_who_wait_for_a_probe_that_fails_fail_with_it(engine_of):
    with Upstream(Reply("", fault=Fault(silent=True))) as upstream:
        engine = engine_of(upstream, read_timeout_s=0.2)
        results = await engine.generate([CHAT] * 5)
        assert len(upstream.received) == 1
    assert [getattr(result, "code", "") for result in results] == ["upstream_timeout"] * 5


async def test_one_who_goes_away_does_not_spoil_the_probe_for_the_others(engine_of):
    with Upstream(Reply(TEXT, first_token_s=0.05)) as upstream:
        engine = engine_of(upstream)
        impatient, patient = (asyncio.create_task(text_of(engine, CHAT)) for _ in range(2))
        assert await asyncio.to_thread(upstream.wait_until, lambda up: len(up.received) > 0)
        impatient.cancel()
        assert BEGUN + await patient == TEXT


async def test_closing_the_engine_ends_a_probe_that_is_under_way(engine_of):
    with Upstream(Reply("", fault=Fault(silent=True))) as upstream:
        engine = engine_of(upstream)
        call = asyncio.create_task(text_of(engine, CHAT))
        assert await asyncio.to_thread(upstream.wait_until, lambda up: len(up.received) > 0)
        await engine.aclose()
        with pytest.raises(asyncio.CancelledError):
            await call


async def test_examining_asks_again_when_it_is_told_to(engine_of):
    with Upstream(TEXT) as upstream:
        engine = engine_of(upstream)
        await engine.examine()
        asked = len(upstream.received)
        await engine.examine()
        assert len(upstream.received) == asked
        await engine.examine(refresh=True)
        assert len(upstream.received) > asked


@pytest.mark.parametrize("spoil", ["age", "format", "cut"])
async def test_findings_that_are_old_or_spoilt_are_asked_for_anew(engine_of, tmp_path, spoil):
    with Upstream(TEXT) as upstream:
        await engine_of(upstream).examine()
        [file] = (tmp_path / "endpoints").glob("*.json")
        kept = json.loads(file.read_text())
        kept["findings"]["chat_route"] = "hint"
        if spoil == "age":
            kept["findings"]["at"] = time.time() - MAX_AGE_S - 1
        elif spoil == "format":
            kept["format"] = 0
        text = json.dumps(kept)
        file.write_text(text[: len(text) // 2] if spoil == "cut" else text)
        assert (await found(engine_of(upstream)))["prefix route"] == "chat with continue_final_message"


async def test_no_key_is_kept_with_the_findings(engine_of, tmp_path):
    with Upstream(TEXT, key="s3cret-key") as upstream:
        await engine_of(upstream, api_key_env="K", env={"K": "s3cret-key"}).examine()
    [file] = (tmp_path / "endpoints").glob("*.json")
    assert "s3cret" not in file.read_text()


@pytest.mark.parametrize(
    ("script", "code"),
    [(Reply("", status=429), "upstream_rate_limited"), (Reply("", status=401), "upstream_key_refused"),
     (Reply("", status=404, error={"message": "no such model"}), "upstream_refused")],
)  # fmt: skip
async def test_an_endpoint_that_cannot_be_asked_says_why_and_nothing_is_kept(engine_of, tmp_path, script, code):
    with Upstream(script) as upstream, pytest.raises(EndpointError) as caught:
        await engine_of(upstream).examine()
    assert caught.value.code == code
    assert not (tmp_path / "endpoints").exists()
