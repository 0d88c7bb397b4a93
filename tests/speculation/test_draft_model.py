"""The draft model follows the rows with a cache of its own."""

from __future__ import annotations

import pytest
import torch

from gkt_plugins.contracts import Sampling
from gkt_plugins.speculation.draft_model import ModelDrafter
from gkt_plugins.speculation.loop import DecodeLoop
from gkt_plugins.speculation.requests import DecodeRequest
from gkt_plugins.speculation.target import TransformersModel


class Recorded(TransformersModel):
    """Remembers how many tokens per row each call fed."""

    def __init__(self, model) -> None:
        self.widths: list[int] = []
        super().__init__(model)
        self.widths.clear()

    def forward(self, ids, starts, **kwargs):
        self.widths.append(ids.shape[1])
        return super().forward(ids, starts, **kwargs)


def run(target_model, draft_model, prompts, *, gamma, max_batch=4, max_tokens=16, temperature=0.0):
    target = TransformersModel(target_model)
    drafter = ModelDrafter(draft_model, target.vocab_size)
    loop = DecodeLoop(target, drafter=drafter, gamma=gamma, max_batch=max_batch)
    sampling = Sampling(max_tokens=max_tokens, temperature=temperature, seed=0)
    return loop.run([DecodeRequest(prompt, sampling) for prompt in prompts])


@pytest.mark.parametrize("gamma", [1, 2, 5])
def test_a_model_that_drafts_for_itself_is_always_right(gamma, tiny, prompts):
    # Any token missing from, or left over in, the draft's cache would make it disagree with itself.
    results = run(tiny("llama"), TransformersModel(tiny("llama")), prompts, gamma=gamma)
    assert all(result.counts.accepted == result.counts.drafted > 0 for result in results)


def test_a_sampled_draft_of_the_same_model_is_always_accepted(tiny, prompts):
    results = run(tiny("llama"), TransformersModel(tiny("llama")), prompts[:20], gamma=3, temperature=1.0)
    drafted = sum(result.counts.tested for result in results)
    # p = q up to rounding of the logits, which differ by about 1e-6 between batch shapes.
    assert sum(result.counts.accepted for result in results) >= drafted - 1


def test_rejected_tokens_are_rolled_back_and_not_recomputed(tiny, perturbed):
    draft = Recorded(perturbed("llama"))
    (result,) = run(tiny("llama"), draft, [[1, 2, 3, 4, 5, 6]], gamma=3, max_tokens=30)
    assert 0 < result.counts.accepted < result.counts.drafted
    assert draft.widths[0] == 6  # the prompt, and then at most the two tokens of an accepted block that it lacks
    assert max(draft.widths[1:]) <= 2


def test_a_draft_that_was_not_asked_for_a_while_catches_up(tiny):
    class EveryTenth:
        """A gamma policy: plain steps, with a block in between."""

        def __init__(self) -> None:
            self.turn = 0

        def choose(self, batch):
            self.turn += 1
            return 4 if self.turn % 10 == 0 else 0

        def observe(self, *args, **kwargs):
            pass

    draft = TransformersModel(tiny("llama"))
    (result,) = run(tiny("llama"), draft, [[1, 2, 3]], gamma=EveryTenth(), max_tokens=60)
    assert result.counts.blocks >= 3
    assert result.counts.accepted == result.counts.drafted


@pytest.mark.parametrize(("target_size", "draft_size"), [(64, 70), (70, 64)], ids=["draft padded", "target padded"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_vocabularies_that_differ_by_padding_work(target_size, draft_size, temperature, tiny):
    prompts = [[1, 2, 3], [60, 61], [5]]
    target, draft = tiny("llama", vocab_size=target_size), tiny("gpt2", vocab_size=draft_size)
    plain = DecodeLoop(TransformersModel(target)).run(
        [DecodeRequest(prompt, Sampling(max_tokens=16)) for prompt in prompts]
    )
    results = run(target, TransformersModel(draft), prompts, gamma=3, temperature=temperature)
    assert all(result.error is None and not result.notes and max(result.token_ids) < target_size for result in results)
    if temperature == 0:
        assert [result.token_ids for result in results] == [result.token_ids for result in plain]


def test_a_draft_with_a_shorter_context_than_the_target_does_no_harm(tiny, perturbed):
    target, draft = tiny("gpt2"), perturbed("gpt2", n_positions=16)
    plain = DecodeLoop(TransformersModel(target)).run([DecodeRequest([1, 2, 3], Sampling(max_tokens=40))])
    results = run(target, TransformersModel(draft), [[1, 2, 3]], gamma=4, max_tokens=40)
    assert results[0].token_ids == plain[0].token_ids
    assert not results[0].notes


def test_prompts_as_long_as_the_context_allows_are_decoded_to_its_end(tiny, perturbed):
    context = tiny("gpt2").config.n_positions
    prompt = torch.randint(64, (context - 3,), generator=torch.Generator().manual_seed(0)).tolist()
    results = run(tiny("gpt2"), TransformersModel(perturbed("gpt2")), [prompt, [1]], gamma=5, max_tokens=9)
    assert [len(result.token_ids) for result in results] == [3, 9]
    plain = DecodeLoop(TransformersModel(tiny("gpt2"))).run([DecodeRequest(prompt, Sampling(max_tokens=9))])
    assert results[0].token_ids == plain[0].token_ids
