"""Our drafter inside vLLM: drafts as each request and each batch wants them, and requests that come and go."""

from __future__ import annotations

import gc
import importlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gkt_plugins.demo.models import model_dir
from gkt_plugins.speculation.verifiers import ExactVerifier
from gkt_plugins.testing.plugins import write_distribution
from gkt_vllm import drafting
from gkt_vllm.counters import counts_of

GAMMA = 4
BOUND = 0.02
OWN = f"""
[speculation]
drafter = "model"
draft = "{model_dir("draft")}"
gamma = {GAMMA}
[vllm]
drafts_by = "gkt"
"""
# Answers that are known beforehand are drafted, rightly or wrongly; each token takes a twentieth of a step.
PLUGIN = """
import torch
from gkt_plugins.contracts import Factory, Options, Proposal
from gkt_plugins.hookspecs import hookimpl

GKT_CONTRACT = 1
known = []
right = False
seconds = 0.0

class Knowing:
    def propose(self, state, gamma):
        rows = [row[:length] for row, length in zip(state.token_ids.tolist(), state.lengths)]
        global seconds
        seconds += gamma / 20
        return Proposal(torch.tensor([self.after(row, gamma) for row in rows]), None)

    def after(self, row, gamma):
        [whole] = [one for one in known if one[: len(row)] == row]
        ids = (whole[len(row) :] + [0] * gamma)[:gamma]
        return ids if right else [0 if i else 1 for i in ids]

    def commit(self, kept):
        pass

@hookimpl
def gkt_drafters():
    return {"knowing": Factory(lambda options, context: Knowing(), Options, "knows the answers")}
"""


@pytest.fixture(scope="module")
def llm(open_engine: Callable[..., Any]) -> Iterator[Any]:
    """What a cached prompt is padded with would count as drafts, so that no prompt is cached."""
    with open_engine(f"{OWN}max_leniency = {BOUND}", enable_prefix_caching=False) as llm:
        yield llm


@pytest.fixture
def knowing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An installed third party's plugin with a drafter ``knowing``, whose drafts alone take time."""
    monkeypatch.syspath_prepend(str(write_distribution(tmp_path, "gkt-knowing", "gkt_knowing", PLUGIN)))
    plugin = importlib.import_module("gkt_knowing")
    steps = itertools.count()
    # A clock that shows a second more at each look, so that what pays does not depend on what else the machine does.
    monkeypatch.setattr(drafting, "time", SimpleNamespace(perf_counter=lambda: next(steps) + plugin.seconds))
    return plugin


@pytest.fixture(scope="module")
def gained(counters: Callable[[Any], dict[str, Any]]) -> Callable[..., tuple[list[Any], dict[str, Any]]]:
    """``gained(llm, chats, params)``: the answers' token ids, and by how much vLLM's counters grew."""

    def gained(llm: Any, chats: list[Any], params: Any) -> tuple[list[Any], dict[str, Any]]:
        before = counters(llm)
        answers = [list(answer.outputs[0].token_ids) for answer in llm.chat(chats, params, use_tqdm=False)]
        after = counters(llm)
        names = [name for name in after if name != "accepted_tokens_per_pos"]
        return answers, {name: after[name] - before.get(name, 0) for name in names}

    return gained


def greedy(gamma: int | None = None, **options: Any) -> Any:
    from vllm import SamplingParams

    extra = None if gamma is None else {"gkt_gamma": gamma}
    return SamplingParams(**({"temperature": 0.0, "max_tokens": 48, "extra_args": extra} | options))


def test_beside_requests_without_drafts_the_others_have_theirs_as_if_they_were_alone(llm, chats, gained):
    plain, none = gained(llm, chats[:16], greedy(0))
    _, alone = gained(llm, chats[:8], greedy(GAMMA))
    mixed, both = gained(llm, chats[:16], [greedy(GAMMA)] * 8 + [greedy(0)] * 8)
    assert none == {"drafts": 0, "draft_tokens": 0, "accepted_tokens": 0}
    assert both == alone
    assert alone["accepted_tokens"] > 0
    assert mixed == plain


def test_leniency_is_for_those_requests_of_a_batch_that_ask_for_it_and_have_drafts(llm, chats, gained):
    exact, _ = gained(llm, chats[:32], greedy())
    asked = [{"gkt_epsilon": BOUND}, {}, {"gkt_epsilon": BOUND, "gkt_gamma": 0}, {"gkt_gamma": 0}]
    mixed, _ = gained(llm, chats[:32], [greedy(extra_args=asked[i % 4]) for i in range(32)])
    assert {i % 4 for i, (one, other) in enumerate(zip(mixed, exact, strict=True)) if one != other} == {0}


def test_sampled_tokens_are_drawn_as_the_target_draws_them_whatever_length_of_draft_is_asked_for(llm, assert_drawn):
    asked = [{"extra_args": {"gkt_gamma": gamma}} for gamma in range(GAMMA + 1)]
    assert_drawn(llm, asked, [{"extra_args": {"gkt_epsilon": BOUND}}, {"temperature": 0.0}])


@pytest.mark.parametrize("gamma", [1, 2])
def test_a_request_has_no_more_drafts_a_block_than_it_asked_for(llm, chats, gained, gamma):
    _, counted = gained(llm, chats[:8], greedy(gamma))
    assert 0 < counted["draft_tokens"] <= gamma * counted["drafts"]


def test_aborted_requests_leave_nothing_behind_and_disturb_nobody(llm, chats, gained):
    from vllm.v1.worker.gpu_input_batch import CachedRequestState

    expected, _ = gained(llm, chats[:12], greedy())
    engine = llm.llm_engine
    tokenizer = llm.get_tokenizer()
    answers: dict[str, list[int]] = {}
    for i, chat in enumerate(chats[:12]):
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
        engine.add_request(str(i), {"prompt_token_ids": ids}, greedy())
    steps = 0
    while engine.has_unfinished_requests():
        for output in engine.step():
            if output.finished:
                answers[output.request_id] = list(output.outputs[0].token_ids)
        steps += 1
        if steps in (3, 5):  # in flight, each with drafts
            engine.abort_request([str(i) for i in range(steps, 12, 6)])
    survivors = {str(i): expected[i] for i in range(12) if i % 6 not in (3, 5)}
    assert {name: answers.get(name) for name in survivors} == survivors
    assert all(not answers.get(name) or len(answers[name]) < 48 for name in answers.keys() - survivors.keys())
    gained(llm, chats[:1], greedy(max_tokens=2))  # only with the next step does a worker hear of who has left
    gc.collect()
    assert sum(isinstance(one, CachedRequestState) for one in gc.get_objects()) <= 1


def test_sampled_acceptance_is_our_loops_also_for_requests_that_are_preempted(
    open_engine, chats, counters, ours, assert_agree
):
    with open_engine(
        OWN, max_num_batched_tokens=64, block_size=32, num_gpu_blocks_override=32, max_model_len=256
    ) as llm:
        llm.chat(chats, greedy(temperature=1.0, max_tokens=64, ignore_eos=True), use_tqdm=False)
        counted = counters(llm)
        preempted = next(metric.value for metric in llm.get_metrics() if metric.name == "vllm:num_preemptions")
    assert preempted > 0
    engine = counts_of(
        counted["drafts"], counted["draft_tokens"], counted["accepted_tokens"], counted["accepted_tokens_per_pos"]
    )
    assert_agree(engine, ours(len(chats), ExactVerifier()))


def test_larger_batches_than_the_configuration_allows_have_no_drafts(open_engine, chats, gained):
    with open_engine(f"{OWN}largest_batch = 4", enable_prefix_caching=False) as llm:
        plain, large = gained(llm, chats[:16], greedy(min_tokens=48))
        small = gained(llm, chats[:4], greedy(min_tokens=48))
    assert large == {"drafts": 0, "draft_tokens": 0, "accepted_tokens": 0}
    assert small[0] == plain[:4]
    assert small[1]["accepted_tokens"] > 0


def test_drafts_that_never_agree_go_off_and_come_back_when_they_would_pay(open_engine, chats, gained, knowing):
    text = '[speculation]\ndrafter = "knowing"\ngamma = "auto"\n[vllm]\ndrafts_by = "gkt"'
    tokens, rows = 200, 4
    params = {"max_tokens": tokens, "ignore_eos": True}
    with open_engine(text, enable_prefix_caching=False) as llm:
        prompts = [
            answer.prompt_token_ids for answer in llm.chat(chats[:rows], greedy(0, max_tokens=1), use_tqdm=False)
        ]
        answers, _ = gained(llm, chats[:rows], greedy(0, **params))
        knowing.known[:] = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]

        same, wrong = gained(llm, chats[:rows], greedy(**params))
        assert same == answers
        assert wrong["drafts"] > 0
        assert wrong["accepted_tokens"] == 0
        # A few blocks to find out, then probes with ever longer pauses between them.
        assert wrong["drafts"] < 0.15 * rows * tokens

        knowing.right = True
        for _ in range(12):
            same, counted = gained(llm, chats[:rows], greedy(**params))
            assert same == answers
            if counted["accepted_tokens"] > rows * tokens / 2:
                break
        assert counted["accepted_tokens"] > rows * tokens / 2
