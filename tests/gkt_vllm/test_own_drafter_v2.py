"""Our drafter in vLLM's second model runner: which slots it drafts for, with what probabilities, and where it runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from gkt_plugins.demo.models import model_dir
from gkt_plugins.errors import ConfigError
from gkt_vllm.frontend import decide
from gkt_vllm.own_drafter_v2 import OwnSpeculator
from gkt_vllm.section import GktSection

LONGEST = 64
SLOTS = 5
MOST = 4


class FakeRunner:
    """The state that vLLM's second model runner keeps by slot, with the target's tokens given."""

    def __init__(self, speculator: OwnSpeculator, states: Any, sampling_params: Callable[..., Any]) -> None:
        self.speculator = speculator
        self._states = states
        self._sampling_params = sampling_params
        self._slots: dict[str, int] = {}
        self._scheduled: dict[str, int] = {}
        self._new: list[Any] = []

    def add(self, name: str, slot: int, prompt: Sequence[int], answer: Sequence[int] = (), **params: Any) -> None:
        """A request comes into a slot, whose last owner's tokens are still there.

        :param answer: what there is of it already; it was preempted.
        """
        self._slots[name] = slot
        self._scheduled.pop(name, None)
        known = [*prompt, *answer]
        self._states.all_token_ids.gpu[slot, : len(known)] = torch.tensor(known)
        self._states.total_len.gpu[slot] = len(known)
        self._states.draft_tokens[slot] = 0
        self._new.append(
            SimpleNamespace(
                req_id=name,
                prompt_token_ids=list(prompt),
                prompt_len=len(prompt),
                prefill_token_ids=known,
                sampling_params=self._sampling_params(**params),
                mm_features=[],
                prompt_embeds=None,
                lora_request=None,
            )
        )

    def step(
        self,
        sampled: Mapping[str, Sequence[int]],
        *,
        most: int | None = None,
        verified: Mapping[str, int] | None = None,
        finished: Sequence[str] = (),
    ) -> dict[str, list[int]]:
        """One step of the requests in ``sampled``, in that order; what vLLM is told to verify in the next.

        :param finished: who leaves before it.
        """
        self.speculator.begin(SimpleNamespace(finished_req_ids=set(finished), scheduled_new_reqs=self._new))
        self._new = []
        if not sampled:
            return {}
        names = list(sampled)
        slots = [self._slots[name] for name in names]
        for slot, new in zip(slots, sampled.values(), strict=True):
            length = int(self._states.total_len.gpu[slot])
            self._states.all_token_ids.gpu[slot, length : length + len(new)] = torch.tensor(new, dtype=torch.int32)
            self._states.total_len.gpu[slot] = length + len(new)
        scheduled = self._scheduled | dict(verified or {})
        batch = SimpleNamespace(
            num_reqs=len(names),
            req_ids=names,
            idx_mapping=torch.tensor(slots, dtype=torch.int32),
            idx_mapping_np=np.array(slots),
            num_draft_tokens_per_req=np.array([scheduled.get(name, 0) for name in names]) if scheduled else None,
        )
        gained = torch.tensor([len(new) for new in sampled.values()], dtype=torch.int32)
        ids = self.speculator.propose(batch, None, {}, None, None, gained, None, num_speculative_tokens=most)
        assert ids.shape == (len(names), MOST)
        self._states.draft_tokens[slots] = ids
        drafts = dict(zip(names, self.speculator.shorten(names, ids.tolist()), strict=True))
        self._scheduled = {name: len(draft) for name, draft in drafts.items() if draft}
        return drafts


@pytest.fixture
def open_runner(tmp_path, third_party, sampling_params) -> Callable[..., FakeRunner]:
    """``open_runner(drafter="model", …)``: a runner; by default with the third party's drafter, which counts."""

    def open_runner(
        drafter: str = "counting", vocab_size: int = 100, trace: Mapping[str, Any] | None = None, **options: Any
    ) -> FakeRunner:
        settings = {"drafter": drafter, "drafter_options": options, "base_dir": str(tmp_path), "auto": False}
        settings |= {"trace": trace}
        section = {"config": "gkt.toml", "workers": {"drafter": settings}}
        states = SimpleNamespace(
            max_num_reqs=SLOTS,
            all_token_ids=SimpleNamespace(gpu=torch.full((SLOTS, LONGEST), 77, dtype=torch.int32)),
            total_len=SimpleNamespace(gpu=torch.zeros(SLOTS, dtype=torch.int32)),
            draft_tokens=torch.zeros(SLOTS, MOST, dtype=torch.int64),
        )
        config = SimpleNamespace(
            additional_config={"gkt": json.loads(json.dumps(section))},
            model_config=SimpleNamespace(
                max_model_len=LONGEST, get_vocab_size=lambda: vocab_size, model="models/target"
            ),
            parallel_config=SimpleNamespace(tensor_parallel_size=1, data_parallel_index=0),
            speculative_config=SimpleNamespace(num_speculative_tokens=MOST),
        )
        speculator = OwnSpeculator(config, torch.device("cpu"), states)
        speculator.load()
        return FakeRunner(speculator, states, sampling_params)

    return open_runner


def test_rows_get_the_drafts_of_their_own_slots_in_any_order(runner):
    runner.add("a", 3, [10])
    runner.add("b", 0, [20])
    assert runner.step({"a": [11], "b": [21]}) == {"a": [12, 13, 14, 15], "b": [22, 23, 24, 25]}
    assert runner.step({"b": [22, 40], "a": [50]}) == {"b": [41, 42, 43, 44], "a": [51, 52, 53, 54]}


def test_a_prompt_that_is_still_read_is_not_drafted_for(runner):
    runner.add("read", 1, [10, 11, 12])
    runner.add("answers", 2, [20])
    assert runner.step({"read": [], "answers": [21]}) == {"read": [], "answers": [22, 23, 24, 25]}


def test_each_request_gets_as_many_drafts_as_it_asked_for_beside_the_others(runner, drafter):
    runner.add("none", 0, [10], extra_args={"gkt_gamma": 0})
    runner.add("two", 1, [20], extra_args={"gkt_gamma": 2})
    runner.add("all", 2, [30])
    drafts = runner.step({"none": [11], "two": [21], "all": [31]})
    assert drafts == {"none": [], "two": [22, 23], "all": [32, 33, 34, 35]}
    assert len(drafter.asked) == 1


def test_in_a_batch_that_vllm_says_is_too_large_nobody_is_drafted_for(runner, drafter):
    runner.add("a", 0, [10])
    assert runner.step({"a": [11]}, most=0) == {"a": []}
    assert drafter.asked == []
    assert runner.step({"a": [12]}, most=2) == {"a": [13, 14]}


def test_no_draft_reaches_beyond_the_models_length(runner):
    runner.add("a", 0, [10] * 60, max_tokens=None)
    assert runner.step({"a": [11]}) == {"a": [12, 13]}


def test_the_drafter_is_told_how_much_of_what_vllm_verified_was_kept(runner, drafter):
    runner.add("a", 0, [10])
    runner.add("b", 1, [20])
    runner.step({"a": [11], "b": [21]})
    runner.step({"a": [12, 13, 40], "b": [22, 23]}, verified={"b": 1})
    assert drafter.kept == [[2, 1]]


def test_a_trial_run_drafts_nothing(runner, drafter):
    batch = SimpleNamespace(num_reqs=3)
    ids = runner.speculator.propose(batch, None, None, None, None, torch.ones(3), dummy_run=True)
    assert torch.equal(ids, torch.zeros(3, MOST, dtype=torch.int64))
    assert drafter.asked == []


def test_a_name_that_comes_again_in_another_slot_is_another_row_to_the_drafter(runner, drafter):
    runner.add("a", 0, [10])
    runner.step({"a": [11]})
    runner.add("a", 4, [70, 71], extra_args={"gkt_gamma": 1})
    assert runner.step({"a": [72]}) == {"a": [73]}
    (first, _, _), (second, _, _) = drafter.asked
    assert first != second


def test_what_an_earlier_request_left_in_a_slot_changes_no_draft(open_runner):
    prompts = {"a": [9, 8, 7, 6, 5], "b": [30, 31]}
    drafts = []
    for leavings in ((), range(90, 96)):
        runner = open_runner("prompt_lookup")
        runner.add("old", 1, leavings)
        for slot, (name, prompt) in enumerate(prompts.items()):
            runner.add(name, slot, prompt)
        drafts.append(runner.step({"a": [9, 8], "b": [30]}))
    assert drafts == [{"a": [7, 6, 5, 9], "b": [31, 30]}] * 2


@pytest.fixture(scope="module")
def draft_model():
    return AutoModelForCausalLM.from_pretrained(model_dir("draft"), dtype=torch.float32).eval()


@pytest.fixture
def with_model(open_runner, draft_model):
    return open_runner("model", draft_model.config.vocab_size, draft=str(model_dir("draft")))


def next_probs(draft_model: Any, ids: Sequence[int], temperature: float) -> torch.Tensor:
    with torch.inference_mode():
        return (draft_model(torch.tensor([ids])).logits[0, -1] / temperature).softmax(-1)


def test_vllm_is_given_the_logits_whose_softmax_at_the_temperature_the_drafts_were_drawn_from(with_model, draft_model):
    temperatures = {"a": 0.7, "b": 1.6, "greedy": 0.0}
    for slot, (name, temperature) in zip((4, 2, 0), temperatures.items(), strict=True):
        with_model.add(name, slot, [5, 6, 7 + slot], temperature=temperature)
    drafts = with_model.step({"b": [9], "greedy": [9], "a": [9]})
    for name, slot in (("a", 4), ("b", 2)):
        known = [5, 6, 7 + slot, 9]
        for i, token in enumerate(drafts[name]):
            q = (with_model.speculator.draft_logits[slot, i] / temperatures[name]).softmax(-1)
            assert torch.allclose(q, next_probs(draft_model, known, temperatures[name]), atol=1e-5)
            known.append(token)
    best = next_probs(draft_model, [5, 6, 7, 9], 1.0).argmax().item()
    assert drafts["greedy"][0] == best


def test_tokens_that_a_request_truncates_away_have_no_probability_in_its_drafts(with_model):
    with_model.add("a", 1, [5, 6, 7], temperature=1.0, top_k=3)
    with_model.step({"a": [9]})
    q = with_model.speculator.draft_logits[1].softmax(-1)
    assert ((q > 0).sum(-1) == 3).all()


def test_drafts_that_were_certain_are_certain_to_vllm(runner):
    runner.add("a", 1, [10], temperature=0.5)
    [draft] = runner.step({"a": [11]}).values()
    q = (runner.speculator.draft_logits[1] / 0.5).softmax(-1)
    assert torch.equal(q, torch.nn.functional.one_hot(torch.tensor(draft), 100).float())


def test_a_drafter_that_never_has_probabilities_takes_no_memory_for_them(open_runner):
    runner = open_runner("prompt_lookup")
    runner.add("a", 0, [1, 2, 3], temperature=1.0)
    runner.step({"a": [1]})
    assert runner.speculator.draft_logits is None


@pytest.fixture
def start(tmp_path, monkeypatch):
    """``decide`` for our own drafter on a release, with vLLM's switch set as given."""

    def start(version: str, second: str | None, more: str = ""):
        text = f'[speculation]\ndrafter = "model"\ndraft = "{model_dir("draft")}"\ngamma = 4\n{more}'
        (tmp_path / "gkt.toml").write_text(f'{text}[vllm]\ndrafts_by = "gkt"')
        monkeypatch.delenv("VLLM_USE_V2_MODEL_RUNNER", raising=False)
        if second is not None:
            monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", second)
        return decide(GktSection(config=str(tmp_path / "gkt.toml")), str(model_dir("teacher")), None, version)

    return start


def test_the_second_runner_is_taken_where_the_operator_says_so_and_said_to_be_experimental(start):
    started = start("0.32.0", "1", 'verifier = "block"\n')
    assert started.speculative_config == {
        "method": "ngram_gpu",
        "num_speculative_tokens": 4,
        "rejection_sample_method": "block",
    }
    assert started.section.workers.drafter.drafter == "model"
    assert any("experimental" in note for note in started.notes)


@pytest.mark.parametrize("second", [None, "0"])
def test_the_first_runner_is_taken_otherwise(start, second):
    started = start("0.32.0", second)
    assert started.speculative_config["method"] == "custom_class"
    assert started.async_scheduling(None) is None


@pytest.mark.parametrize("version", ["0.28.0", "0.31.1"])
def test_a_release_whose_second_runner_has_no_place_for_it_is_refused_in_one_sentence(start, version):
    with pytest.raises(
        ConfigError, match=rf"runs on the second model runner of vLLM 0\.32, and this is {version}; unset"
    ):
        start(version, "1")


def test_vllm_schedules_no_step_ahead_and_an_operator_who_wants_that_is_told(start):
    started = start("0.32.0", "1")
    assert started.async_scheduling(None) is False
    with pytest.raises(ConfigError, match="remove --async-scheduling"):
        started.async_scheduling(True)


def test_traffic_is_recorded_there_too_and_the_banner_says_so(start, tmp_path):
    started = start("0.32.0", "1", '[trace]\npath = "traffic"\n')
    assert f"recording answers in {tmp_path / 'traffic'}" in started.active


def preempted(runner: FakeRunner, name: str = "a", **params: Any) -> None:
    """A block with a rejection, a preemption, and the end in the middle of a block; another request goes on beside."""
    runner.add("other", 4, [30])
    runner.add(name, 3, [10], max_tokens=6, **params)
    runner.step({name: [11], "other": [31]})
    runner.step({"other": [50], name: [12, 40]})  # 13 was drafted, and rejected
    runner.add(name, 1, [10], [11, 12, 40], max_tokens=6, **params)
    runner.step({"other": [70, 71], name: []})  # vLLM reads it again
    runner.step({name: [41]})
    runner.step({name: [42, 43, 44]}, verified={name: 2})
    runner.step({}, finished=[name])


def test_an_answer_is_a_line_as_on_the_first_runner_also_after_a_preemption(open_runner, closed, tmp_path):
    preempted(open_runner(trace={"path": "traffic.jsonl"}))
    closed()
    assert [json.loads(line) for line in (tmp_path / "traffic.jsonl").read_text().splitlines()] == [
        {
            "gkt_traffic": 1, "target": "models/target", "request": "a",
            "prompt": [10], "answer": [11, 12, 40, 41, 42, 43], "rejected": [2],
        }
    ]  # fmt: skip


def test_plugins_are_told_of_the_drafts_that_vllm_verified_there(open_runner, third_party, closed, monkeypatch):
    monkeypatch.setenv("GKT_TRACE", "on")
    preempted(open_runner())
    closed()
    first, last = [event for event in third_party.told if event.request_id == "a"]
    assert (first.token_ids, first.drafted, first.accepted, first.kept) == ((10, 11), (12, 13, 14, 15), 1, (12, 40))
    assert (last.token_ids, last.drafted, last.accepted) == ((10, 11, 12, 40, 41), (42, 43), 2)
    assert (last.kept, last.finished) == ((42, 43), True)


@pytest.mark.parametrize("name", ["_warmup_0_", "_v2_mixed_warmup_decode_"])
def test_what_vllm_itself_asks_to_warm_up_is_not_recorded(open_runner, closed, tmp_path, name):
    preempted(open_runner(trace={"path": "traffic.jsonl"}), name)
    closed()
    assert not (tmp_path / "traffic.jsonl").exists()
