"""Leniency by slot, as vLLM's second model runner calls it: the right request's, in the right engine only."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from gkt_plugins.speculation.leniency import linear
from gkt_vllm import leniency_v2, patching
from gkt_vllm.asked import Leniency

SLOTS = 4
VOCABULARY = 6
TOKEN = 3


class FakeConfig:
    """vLLM's configuration of an engine."""


class FakeRunner:
    """An engine of vLLM's: requests enter, and one drafted token of each is verified."""

    def __init__(self, rejection_sampler: Any) -> None:
        self.vllm_config = FakeConfig()
        self.sampler = FakeSampler()
        self.max_num_reqs = SLOTS
        self.device = torch.device("cpu")
        self.req_states = SimpleNamespace(req_id_to_index={})
        self.rejection_sampler = rejection_sampler(self.sampler)

    def add_requests(self, scheduler_output: Any) -> None:
        for request in scheduler_output.scheduled_new_reqs:
            self.req_states.req_id_to_index[request.req_id] = request.slot

    def enter(self, slot: int, epsilon: float | None = None) -> None:
        asked = SimpleNamespace(extra_args=None if epsilon is None else {"gkt_epsilon": epsilon})
        request = SimpleNamespace(req_id=f"in {slot}", slot=slot, sampling_params=asked)
        self.add_requests(SimpleNamespace(scheduled_new_reqs=[request]))

    def verify(self, slots: list[int]) -> list[float]:
        """Probability of the drafted token of each of the slots' requests, as the rejection sampler sees it."""
        seen: torch.Tensor = self.rejection_sampler(torch.zeros(2 * len(slots), VOCABULARY), slots)
        return seen[::2, TOKEN].tolist()


class FakeSampler:
    """Its buffers take turns, as vLLM's do on a GPU: none is where it was a step ago."""

    def __init__(self) -> None:
        self._turns = [torch.ones(SLOTS), torch.ones(SLOTS)]

    @property
    def temperature(self) -> torch.Tensor:
        self._turns.reverse()
        return self._turns[0]


def fake_rejection_sampler() -> ModuleType:
    """vLLM's module, whose function tells the probabilities that it was called with."""
    module = ModuleType("vllm.v1.worker.gpu.spec_decode.rejection_sampler")

    def rejection_sample(
        target_logits: torch.Tensor,
        draft_logits: None,
        draft_sampled: torch.Tensor,
        cu_num_logits: torch.Tensor,
        pos: None,
        idx_mapping: None,
        expanded_idx_mapping: torch.Tensor,
        expanded_local_pos: None,
        temperature: torch.Tensor,
        seed: int,
        *,
        use_fp64: bool,
    ) -> torch.Tensor:
        assert (seed, use_fp64) == (7, True)
        return target_logits.softmax(-1)

    class RejectionSampler:
        def __init__(self, sampler: FakeSampler) -> None:
            self.sampler = sampler

        def __call__(self, logits: torch.Tensor, input_batch: list[int]) -> torch.Tensor:
            rows = torch.tensor(input_batch).repeat_interleave(2)
            drafted = torch.tensor([0, TOKEN] * len(input_batch))
            starts = torch.arange(0, len(rows) + 1, 2)
            seen = module.rejection_sample(
                logits, None, drafted, starts, None, None, rows, None, self.sampler.temperature, 7, use_fp64=True
            )
            assert torch.equal(logits, torch.zeros_like(logits))  # what was lifted has been put back
            assert isinstance(seen, torch.Tensor)
            return seen

    module.rejection_sample = rejection_sample  # type: ignore[attr-defined]
    module.RejectionSampler = RejectionSampler  # type: ignore[attr-defined]
    return module


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Callable[[Leniency | None], FakeRunner]:
    """``engine(leniency)``: an engine of this process, whose vLLM is a stand-in; None: one that is not bound."""
    sampler = fake_rejection_sampler()
    runner = ModuleType("vllm.v1.worker.gpu.model_runner")
    runner.GPUModelRunner = type("GPUModelRunner", (FakeRunner,), {"add_requests": FakeRunner.add_requests})  # type: ignore[attr-defined]
    spec_decode = ModuleType("vllm.v1.worker.gpu.spec_decode")
    spec_decode.rejection_sampler = sampler  # type: ignore[attr-defined]
    modules = {"vllm.v1.worker.gpu.spec_decode": spec_decode, runner.__name__: runner, sampler.__name__: sampler}
    for name in ("vllm", "vllm.v1", "vllm.v1.worker", "vllm.v1.worker.gpu"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(patching, "_done", {})

    def engine(leniency: Leniency | None) -> FakeRunner:
        leniency_v2.install()
        made: FakeRunner = runner.GPUModelRunner(sampler.RejectionSampler)
        if leniency is not None:
            leniency_v2.bind(made.vllm_config, leniency)
        return made

    return engine


P = 1 / VOCABULARY
HALF = Leniency(linear, 1.0, 0.5)


def test_each_slot_is_verified_as_its_request_asked_while_vllms_buffers_take_turns(engine):
    runner = engine(HALF)
    runner.enter(0, 0.5)
    runner.enter(3)
    runner.enter(1, 0.8)
    for _ in range(3):
        assert runner.verify([3, 0, 1]) == pytest.approx([P, P / 0.5, P / 0.8])


def test_who_comes_into_a_slot_does_not_inherit_its_leniency(engine):
    runner = engine(HALF)
    runner.enter(2, 0.5)
    assert runner.verify([2]) == pytest.approx([2 * P])
    runner.enter(2)
    assert runner.verify([2]) == pytest.approx([P])


def test_more_than_the_operator_allows_is_exact(engine):
    runner = engine(HALF)
    runner.enter(0, 0.1)
    assert runner.verify([0]) == pytest.approx([P])


def test_another_engine_of_the_process_is_as_lenient_as_its_own_configuration_says(engine):
    lenient, exact, other = engine(HALF), engine(None), engine(Leniency(linear, 0.25, 0.25))
    for runner in (lenient, exact, other):
        runner.enter(0)
        runner.enter(1, 0.5)
    assert lenient.verify([0, 1]) == pytest.approx([P, 2 * P])
    assert exact.verify([0, 1]) == pytest.approx([P, P])
    assert other.verify([0, 1]) == pytest.approx([4 * P, 2 * P])


def test_what_is_verified_on_its_own_needs_no_engine(engine):
    runner = engine(None)
    table = leniency_v2.SlotLeniency(HALF, SLOTS, torch.device("cpu"))
    table.fill(0, 0.5)
    sampler = sys.modules["vllm.v1.worker.gpu.spec_decode.rejection_sampler"]
    rows, starts = torch.tensor([0, 0]), torch.tensor([0, 2])
    with leniency_v2.leniently(table):
        seen = sampler.rejection_sample(
            torch.zeros(2, VOCABULARY), None, torch.tensor([0, TOKEN]), starts, None, None, rows, None,
            runner.sampler.temperature, 7, use_fp64=True,
        )  # fmt: skip
    assert seen[:, TOKEN].tolist() == pytest.approx([2 * P, P])  # the last row draws the bonus token
