"""A configuration becomes a pipeline: engines, policies, presets, prices and the ledger."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from gkt_plugins.accounting.ledger import Ledger
from gkt_plugins.config import Config, load_config
from gkt_plugins.contracts import BuildContext, Engine, Factory, Message, Options, Prompt, Sampling
from gkt_plugins.errors import ConfigError, EngineError
from gkt_plugins.guidance.events import Emit
from gkt_plugins.guidance.pipeline import Pipeline, answer_all, open_pipelines
from gkt_plugins.guidance.presets import PRESETS
from gkt_plugins.hookspecs import hookimpl
from gkt_plugins.plugins import Plugins
from gkt_plugins.testing.engines import EchoEngine, ScriptedEngine
from gkt_plugins.testing.plugins import plugins_from

TOML = """
[engines.cloud]
adapter = "scripted"
answer = "the cat sat on the mat"
[engines.edge]
adapter = "echo"
[prices.cloud-model]
input_per_million = "2.00"
output_per_million = "10.00"
[pipelines.default]
teacher = "cloud"
student = "edge"
[pipelines.default.guidance]
tokens = 3
[pipelines.alone]
student = "edge"
"""


class ScriptedOptions(Options):
    answer: str


class Fakes:
    """A plugin with two engines; remembers what it built."""

    GKT_CONTRACT = 1

    def __init__(self) -> None:
        self.built: list[ScriptedEngine] = []

    @hookimpl
    def gkt_engines(self) -> dict[str, Factory[Engine]]:
        def scripted(options: ScriptedOptions, context: BuildContext) -> Engine:
            if not options.answer:
                raise EngineError(f"engines.{context.name} has nothing to say")
            return self._kept(ScriptedEngine(options.answer, name=context.name, model=f"{context.name}-model"))

        def echo(options: Options, context: BuildContext) -> Engine:
            return self._kept(EchoEngine(name=context.name))

        return {"scripted": Factory(scripted, ScriptedOptions), "echo": Factory(echo)}

    def _kept(self, engine: ScriptedEngine) -> Engine:
        self.built.append(engine)
        return engine


@pytest.fixture
def fakes() -> Fakes:
    return Fakes()


@pytest.fixture
def plugins(fakes: Fakes) -> Plugins:
    return plugins_from(fakes)


@pytest.fixture
def config(tmp_path: Path, plugins: Plugins) -> Config:
    return written(tmp_path, plugins, TOML)


def written(folder: Path, plugins: Plugins, toml: str) -> Config:
    path = folder / "gkt.toml"
    path.write_text(toml)
    return load_config(path, env={}, plugins=plugins)


async def test_a_configured_pipeline_guides_answers_and_accounts(config, plugins, fakes, tmp_path):
    async with Pipeline.from_config(config, plugins=plugins, env={}) as pipeline:
        answer = await pipeline.answer("the cat slept")
    assert (answer.guidance, answer.text) == ("the cat", "the cat slept")
    assert [engine.closed for engine in fakes.built] == [True, True]
    ledger = Ledger.open("sqlite:///gkt.db", base_dir=tmp_path)
    by_role = {record.role: record for record in ledger.records()}
    ledger.close()
    assert by_role["teacher"].cost_nano == 3 * 2_000 + 3 * 10_000  # 3 words asked, 3 written, nano-dollars
    assert by_role["student"].cost_nano is None
    assert {record.pipeline for record in by_role.values()} == {"default"}


async def test_streams_batches_and_every_kind_of_prompt_are_answered_by_one_pipeline(config, plugins):
    chat = (Message("system", "Be brief."), Message("user", "the cat slept"))
    async with Pipeline.from_config(config, plugins=plugins, env={}) as pipeline:
        pieces = [piece async for piece in pipeline.stream("the cat slept", sampling=Sampling(max_tokens=9))]
        answers = [answer async for answer in pipeline.batch([Prompt(text="the cat slept"), "the cat ran"], n=2)]
        assert (await pipeline.answer(chat)).text == "the cat slept"
    assert "".join(piece.text for piece in pieces if isinstance(piece, Emit)) == "the cat slept"
    assert sorted(choice.text for answer in answers for choice in answer.choices) == [
        "the cat ran",
        "the cat ran",
        "the cat slept",
        "the cat slept",
    ]


async def test_a_pipeline_without_a_teacher_is_the_student_alone(config, plugins, fakes):
    async with Pipeline.from_config(config, name="alone", plugins=plugins, env={}) as pipeline:
        answer = await pipeline.answer("hello there")
    assert (answer.guidance, answer.text) == ("", "hello there")
    assert [engine.name for engine in fakes.built] == ["edge"]


async def test_one_engine_may_be_teacher_and_student_and_is_built_once(tmp_path, plugins, fakes):
    config = written(tmp_path, plugins, TOML.replace('teacher = "cloud"', 'teacher = "edge"'))
    async with Pipeline.from_config(config, plugins=plugins, env={}) as pipeline:
        assert (await pipeline.answer("one two three four")).text == "one two three four"
    assert len(fakes.built) == 1


async def test_engines_that_were_built_are_closed_when_a_later_one_fails(tmp_path, plugins, fakes):
    toml = TOML.replace('teacher = "cloud"', 'teacher = "edge"').replace('student = "edge"', 'student = "cloud"', 1)
    config = written(tmp_path, plugins, toml.replace("the cat sat on the mat", ""))
    with pytest.raises(EngineError, match=r"engines\.cloud has nothing to say"):
        async with Pipeline.from_config(config, plugins=plugins, env={}):
            pass
    assert [engine.closed for engine in fakes.built] == [True]


def test_an_unknown_pipeline_is_answered_with_those_that_exist(config, plugins):
    with pytest.raises(ConfigError, match=r"there is no pipeline 'fast'; .* that exist: alone, default"):
        Pipeline.from_config(config, name="fast", plugins=plugins)


async def test_a_pipeline_that_was_not_entered_says_so(config, plugins):
    with pytest.raises(RuntimeError, match="inside 'async with pipeline:' only"):
        await Pipeline.from_config(config, plugins=plugins, env={}).answer("hello")


def test_answers_of_a_script_come_in_the_order_of_its_prompts(config, plugins):
    prompts = [f"the cat {i}" for i in range(30)]
    assert [answer.text for answer in answer_all(config, prompts, plugins=plugins)] == prompts


async def test_a_notebook_whose_event_loop_runs_can_ask_for_answers_without_awaiting(config, plugins):
    assert asyncio.get_running_loop().is_running()
    [answer] = answer_all(config, ["the cat slept"], plugins=plugins)
    assert answer.text == "the cat slept"


def test_an_error_on_the_way_reaches_the_script(tmp_path, plugins):
    config = written(tmp_path, plugins, TOML.replace("the cat sat on the mat", ""))
    with pytest.raises(EngineError, match="nothing to say"):
        answer_all(config, ["hello"], plugins=plugins)


# ------------------------------------------------------------------------------------------------------------- presets


@pytest.mark.parametrize(
    ("name", "guidance", "completion"), [("paper-gsm8k", 40, 300), ("paper-csqa", 30, 100), ("paper-aqua", 20, 100)]
)
def test_presets_are_the_paper_s_generation_settings(name, guidance, completion):
    greedy, sampled = PRESETS[name], PRESETS[f"{name}-sampled"]
    for preset in (greedy, sampled):
        assert (preset.guidance_tokens, preset.completion_tokens) == (guidance, completion)
        assert (preset.batches.teacher_batch, preset.batches.student_batch) == (10, 1)
    assert (greedy.teacher.temperature, greedy.student.temperature) == (0.0, 0.0)
    assert (sampled.teacher.temperature, sampled.teacher.top_p) == (0.8, 0.9)
    assert (sampled.student.temperature, sampled.student.top_p) == (0.8, 0.95)


async def test_a_preset_sets_tokens_sampling_and_batches(tmp_path, plugins, fakes):
    config = written(tmp_path, plugins, TOML.replace("tokens = 3", 'preset = "paper-gsm8k-sampled"'))
    async with Pipeline.from_config(config, plugins=plugins, env={}) as pipeline:
        assert (pipeline.sampling.max_tokens, pipeline.batches.teacher_batch) == (340, 10)
        await pipeline.answer("the cat slept", sampling=Sampling(max_tokens=340, temperature=0.1))
    cloud = next(engine for engine in fakes.built if engine.name == "cloud")
    [call] = cloud.calls
    assert (call.sampling.max_tokens, call.sampling.temperature, call.sampling.top_p) == (40, 0.8, 0.9)


async def test_guidance_tokens_written_beside_a_preset_count(tmp_path, plugins, fakes):
    config = written(tmp_path, plugins, TOML.replace("tokens = 3", 'preset = "paper-gsm8k"\ntokens = 2'))
    async with Pipeline.from_config(config, plugins=plugins, env={}) as pipeline:
        await pipeline.answer("the cat slept")
    cloud = next(engine for engine in fakes.built if engine.name == "cloud")
    assert cloud.calls[0].sampling.max_tokens == 2


def test_an_unknown_preset_is_answered_with_the_known_ones(tmp_path, plugins):
    with pytest.raises(ConfigError, match=r"preset must name a preset, got 'paper-mmlu'.*'paper-aqua'"):
        written(tmp_path, plugins, TOML.replace("tokens = 3", 'preset = "paper-mmlu"'))


def test_negative_guidance_tokens_are_refused_where_they_are_written(tmp_path, plugins):
    with pytest.raises(ConfigError, match=r"pipelines\.default\.guidance\.tokens"):
        written(tmp_path, plugins, TOML.replace("tokens = 3", "tokens = -1"))


async def test_pipelines_of_one_configuration_share_ledger_cache_and_what_is_learnt_of_engines(tmp_path, fakes):
    more = '[cache]\n[retries]\nattempts = 1\n[pipelines.other]\nteacher = "cloud"\nstudent = "edge"\n'
    path = tmp_path / "gkt.toml"
    path.write_text(TOML + more + "guidance.tokens = 3\n")
    plugins = plugins_from(fakes)
    async with AsyncExitStack() as stack:
        config = load_config(path, plugins=plugins)
        opened = await open_pipelines(["default", "other"], config, plugins, {}, stack)
        assert len(fakes.built) == 2
        first, second = opened["default"], opened["other"]
        assert first.cache is second.cache is not None
        assert first.attempts is second.attempts
        assert first.attempts.wait_s("cloud", EngineError("busy", retryable=True), 0) is None
        cached = []
        for made in (first, second):
            async with Pipeline.of(made) as pipeline:
                cached.append((await pipeline.answer(Prompt(text="the cat sat on the mat and slept"))).cached)
    assert cached == [False, True]
    assert (tmp_path / "guidance.db").is_file()


async def test_a_cutting_policy_of_another_name_has_entries_of_its_own(tmp_path, fakes):
    path = tmp_path / "gkt.toml"
    path.write_text(TOML + '[pipelines.other]\nteacher = "cloud"\nstudent = "edge"\nguidance.cut = "sentence"\n')
    plugins = plugins_from(fakes)
    async with AsyncExitStack() as stack:
        opened = await open_pipelines(["default", "other"], load_config(path, plugins=plugins), plugins, {}, stack)
        assert opened["default"].rules.cutting_name == "word {}"
        assert opened["other"].rules.cutting_name == "sentence {}"
