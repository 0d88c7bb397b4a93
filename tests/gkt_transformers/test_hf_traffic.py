"""``[trace]`` and ``expected_acceptance`` work wherever a model is decoded: in the engine and in ``generate``."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys

import pytest
import torch

import gkt_transformers
from gkt_plugins.config import load_config
from gkt_plugins.contracts import BuildContext, Call, Prompt, Sampling
from gkt_plugins.distill.traffic import read_traffic
from gkt_plugins.testing.plugins import plugins_from

PROMPTS = ["Anna has 12 apples", "A train travels", "Hi"]


def config_of(tiny, folder, *, speculation="", trace=True):
    text = f'[engines.e]\nadapter = "transformers"\nmodel = "{tiny.folder("llama")}"\n'
    if speculation:
        text += f'[speculation]\ndrafter = "model"\ndraft = "{tiny.folder("draft")}"\ngamma = 3\n{speculation}\n'
    if trace:
        text += '[trace]\npath = "traffic.jsonl"\n'
    (folder / "gkt.toml").write_text(text)
    return load_config(folder / "gkt.toml")


def answer(config):
    """The engine's answers to PROMPTS, and the engine."""
    plugins = plugins_from()
    context = BuildContext("e", config.base_dir, resources={"config": config, "plugins": plugins})
    engine = plugins.engines().build("transformers", config.engines["e"].options, context)

    async def ask():
        calls = [Call(Prompt(text), sampling=Sampling(max_tokens=16), request_id=text) for text in PROMPTS]
        completions = await engine.generate(calls)
        await engine.aclose()
        return completions

    completions = asyncio.run(ask())
    plugins.close()
    return completions, engine


@pytest.mark.parametrize("speculation", ["verifier = 'exact'", ""], ids=["speculating", "plain"])
def test_the_engine_records_every_answer(tiny, tmp_path, speculation):
    completions, _ = answer(config_of(tiny, tmp_path, speculation=speculation))
    tokenizer = tiny.load_tokenizer("llama")
    recorded = {
        tokenizer.decode(sample.prompt): tokenizer.decode(sample.answer, skip_special_tokens=True)
        for sample in read_traffic(tmp_path / "traffic.jsonl", vocab_size=tiny.vocab)
    }
    assert recorded == {prompt: done.text for prompt, done in zip(PROMPTS, completions, strict=True)}


def test_without_the_section_nothing_is_recorded(tiny, tmp_path):
    answer(config_of(tiny, tmp_path, speculation="verifier = 'exact'", trace=False))
    assert [path.name for path in tmp_path.iterdir()] == ["gkt.toml"]


def test_the_engine_s_alarm_is_told_of_every_answer(tiny, tmp_path):
    speculation = "expected_acceptance = 0.01\nacceptance_band = 0.001\nacceptance_window = 1"
    _, engine = answer(config_of(tiny, tmp_path, speculation=speculation))
    assert engine.alarm.state == "high"
    assert engine.alarm.raised == 1


def test_the_report_of_generate_says_when_acceptance_has_left_its_band(tiny, tmp_path):
    def report(expected):
        line = f"expected_acceptance = {expected}\nacceptance_band = 0.02\nacceptance_window = 1"
        model = tiny.causal("llama")
        gkt_transformers.enable(model, config_of(tiny, tmp_path, speculation=line, trace=False))
        model.generate(torch.tensor([[5, 6, 7, 8]]), max_new_tokens=20)
        return gkt_transformers.last_report(model)

    measured = report(0.01)
    assert [note for note in measured.notes if note.startswith("alarm: acceptance rate")]
    assert report(measured.acceptance_rate).notes == ()


def test_generate_records_what_it_has_told_by_the_end_of_the_process(tiny, tmp_path):
    config_of(tiny, tmp_path, speculation="verifier = 'exact'")
    code = (
        "import torch, gkt_transformers\n"
        "from transformers import AutoModelForCausalLM\n"
        f"model = AutoModelForCausalLM.from_pretrained({str(tiny.folder('llama'))!r})\n"
        "gkt_transformers.enable(model, 'gkt.toml')\n"
        "print(model.generate(torch.tensor([[5, 6, 7, 8]]), max_new_tokens=20)[0, 4:].tolist())\n"
    )
    env = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
    )
    (sample,) = read_traffic(tmp_path / "traffic.jsonl")
    assert sample.prompt == (5, 6, 7, 8)
    assert str(list(sample.answer)) == done.stdout.splitlines()[-1]
