"""The adapter against a real server with real tokenizers: ``transformers serve`` with the demo models.

What this server does is good material: it continues raw prompts, takes no flag for chats, tells usage in the last chunk
of a stream without ``[DONE]``, and has no list of models.
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from gkt_openai.engine import OpenAIEngine
from gkt_openai.options import OpenAIOptions
from gkt_plugins.cli import main
from gkt_plugins.config import load_config
from gkt_plugins.contracts import BuildContext, Call, Completion, Engine, Prompt, Sampling
from gkt_plugins.demo.models import model_dir
from gkt_plugins.demo.problems import problems
from gkt_plugins.guidance.pipeline import Pipeline
from gkt_transformers.engine import TransformersEngine
from gkt_transformers.options import TransformersOptions

QUESTIONS = [problem.question for problem in problems(0, 6, split="test")]


@pytest.fixture(scope="module")
def servers(transformers_serve: Any) -> Iterator[dict[str, str]]:
    """Base URLs of the teacher and of the student."""
    with ExitStack() as stack:
        names = ("teacher", "student")
        yield {name: f"{stack.enter_context(transformers_serve(model_dir(name)))}/v1" for name in names}


def endpoint(servers: dict[str, str], name: str, folder: Path, *, template: bool = True) -> OpenAIEngine:
    options = OpenAIOptions(
        base_url=servers[name],
        model=str(model_dir(name)),
        chat_template=str(model_dir(name)) if template else None,
    )
    return OpenAIEngine(options, BuildContext(name=name, env={"GKT_CACHE_DIR": str(folder)}))


def local(name: str) -> TransformersEngine:
    options = TransformersOptions(model=str(model_dir(name)), device="cpu", dtype="float32")
    return TransformersEngine.build(options, BuildContext(name=name))


async def streamed(engine: Engine, call: Call) -> tuple[str, str | None, int | None]:
    """Text, reason and tokens."""
    deltas = [delta async for delta in engine.stream(call)]
    assert deltas[-1].usage is not None
    assert not deltas[-1].usage.estimated
    return "".join(delta.text for delta in deltas), deltas[-1].finish_reason, deltas[-1].usage.completion_tokens


async def test_the_probe_finds_what_this_server_can_do_and_what_not(servers, tmp_path):
    engine = endpoint(servers, "teacher", tmp_path, template=False)
    found = {finding.name: finding for finding in await engine.examine()}
    await engine.aclose()
    assert found["answers"].value == "chat, raw prompts"
    assert found["model listed"].good is None
    assert found["prefix route"].value.startswith("a hint")
    assert "chat_template" in found["prefix route"].advice
    assert found["usage on streams"].value == "yes"
    assert found["log-probabilities"].value == "no"


@pytest.mark.parametrize("prefix", ["", "Plan:", "Plan: 3 +"])
async def test_an_answer_and_its_continuation_are_the_model_s_own_greedy_text(servers, tmp_path, prefix):
    remote, here = endpoint(servers, "student", tmp_path), local("student")
    for question in QUESTIONS[:3]:
        call = Call(Prompt.chat(question), prefix, Sampling(max_tokens=24))
        [expected] = await here.generate([call])
        assert isinstance(expected, Completion)
        assert await streamed(remote, call) == (
            expected.text, expected.finish_reason, expected.usage.completion_tokens
        )  # fmt: skip
        [whole] = await remote.generate([call])
        assert isinstance(whole, Completion)
        assert (whole.text, whole.usage.prompt_tokens) == (expected.text, expected.usage.prompt_tokens)
    await remote.aclose()
    await here.aclose()


async def test_two_endpoints_guide_as_the_same_models_in_process_do(servers, tmp_path, monkeypatch):
    monkeypatch.setenv("GKT_CACHE_DIR", str(tmp_path))
    shared = (
        '[pipelines.default]\nteacher = "teacher"\nstudent = "student"\n[pipelines.default.guidance]\ntokens = 20\n'
    )
    remote, here = "", ""
    for name in ("teacher", "student"):
        folder = json.dumps(str(model_dir(name)))
        remote += f'[engines.{name}]\nadapter = "openai"\nbase_url = "{servers[name]}"\nmodel = {folder}\n'
        remote += f"chat_template = {folder}\n"
        here += f'[engines.{name}]\nadapter = "transformers"\nmodel = {folder}\ndevice = "cpu"\ndtype = "float32"\n'
    answers = []
    for number, config in enumerate((remote + shared, here + shared)):
        config += f'[ledger]\nurl = "sqlite:///{tmp_path}/{number}.db"\n'
        async with Pipeline.from_config(load_config(text=config)) as pipeline:
            answers.append([await pipeline.answer(q, sampling=Sampling(max_tokens=60)) for q in QUESTIONS[:3]])
    for over_http, in_process in zip(*answers, strict=True):
        assert over_http.guidance == in_process.guidance != ""
        assert over_http.choices[0].notes == ()
        assert over_http.usage["teacher"].prompt_tokens == in_process.usage["teacher"].prompt_tokens
        # Over HTTP the guidance's tokens are its share of those reported, so the student's budget may differ a little.
        shorter, longer = sorted((over_http.text, in_process.text), key=len)
        assert longer.startswith(shorter)
        counts = [answer.usage["student"].completion_tokens for answer in (over_http, in_process)]
        assert None not in counts
        assert abs(counts[0] - counts[1]) <= 3


def test_a_draft_learns_from_the_text_of_a_served_model(servers, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GKT_CACHE_DIR", str(tmp_path / "cache"))
    teacher, draft = model_dir("teacher"), model_dir("draft")
    lines = [{"messages": [{"role": "user", "content": question}]} for question in QUESTIONS]
    Path("prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    Path("gkt.toml").write_text(
        f'[engines.served]\nadapter = "openai"\nbase_url = "{servers["teacher"]}"\nmodel = "{teacher}"\n'
    )
    Path("distill.toml").write_text(
        f'output = "out"\n[models]\ntarget = "{draft}"\ndraft = "{draft}"\ndevice = "cpu"\n'
        '[endpoint]\nengine = "served"\nconcurrency = 2\n'
        '[data]\nprompts = "prompts.jsonl"\npolicy = "target"\nmax_new_tokens = 24\nheld_out = 0.4\n'
        "[train]\nsteps = 6\nbatch_size = 4\nlearning_rate = 0.002\n[evaluation]\nevery = 3\n"
    )
    with pytest.raises(SystemExit) as done:
        main(["distill", "--json"])
    assert done.value.code == 0
    report = json.loads(capsys.readouterr().out)
    assert report["after"]["value"] >= report["before"]["value"] > 0
    assert "SeqKD" in report["notes"][0]  # this server tells no log-probabilities, whatever it is asked
    answers = [json.loads(line) for line in Path("out/answers.jsonl").read_text().splitlines()]
    assert len(answers) == len(QUESTIONS)
    assert all(answer["text"] and not answer["tokens"] for answer in answers)
