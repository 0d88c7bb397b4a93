"""What a draft is worth is what the decode loop counts, and what the two distributions say."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from gkt_plugins.distill import overlap
from gkt_plugins.distill.acceptance import HeldOut, held_out_acceptance, measure_acceptance, target_samples
from gkt_plugins.distill.overlap import SampleOverlaps
from gkt_plugins.distill.samples import PromptItem, Sample
from gkt_plugins.errors import ConfigError
from gkt_plugins.speculation.block_verifier import BlockVerifier
from gkt_plugins.speculation.counts import Counts

VOCAB, EOS = 200, 0


def llama(vocab_size: int = VOCAB, seed: int = 7) -> Any:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=128, initializer_range=0.3, bos_token_id=None, eos_token_id=EOS, pad_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def resized(model: Any, vocab_size: int) -> Any:
    """The same model with a head of another size; further entries are of its own."""
    other = llama(vocab_size)
    shared = min(vocab_size, model.config.vocab_size)
    with torch.no_grad():
        for (name, mine), theirs in zip(other.named_parameters(), model.parameters(), strict=True):
            if "embed" in name or "lm_head" in name:
                mine[:shared] = theirs[:shared]
            else:
                mine.copy_(theirs)
    return other


@cache
def target() -> Any:
    return llama()


@cache
def draft() -> Any:
    """Agrees with the target about two times in three."""
    model = copy.deepcopy(target())
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.03 * torch.randn(parameter.shape, generator=generator))
    return model


def prompts(count: int = 12) -> list[PromptItem]:
    rng = random.Random(3)
    rows = [tuple(rng.randrange(1, VOCAB) for _ in range(rng.randrange(1, 20))) for _ in range(count)]
    return [PromptItem(row, "", family=("odd", "even")[n % 2]) for n, row in enumerate(rows)]


HOW: dict[str, Any] = {"max_new_tokens": 40, "seed": 5, "eos_ids": (EOS,)}


@cache
def samples(temperature: float) -> tuple[Sample, ...]:
    return tuple(target_samples(target(), prompts(), temperature=temperature, **HOW))


def distributions(model: Any, sample: Sample, temperature: float) -> torch.Tensor:
    """[answer tokens, vocab], one sample by itself, in double precision."""
    with torch.no_grad():
        logits = model(torch.tensor([[*sample.prompt, *sample.answer]])).logits[0].double()
    logits = logits[len(sample.prompt) - 1 : -1]
    if temperature == 0:
        return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).double()
    return torch.softmax(logits / temperature, -1)


@pytest.mark.parametrize("at_once", [2**25, 50_000, 1], ids=["one batch", "several batches", "each by itself"])
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_acceptance_tv_is_one_minus_total_variation_after_the_true_tokens(temperature, at_once, monkeypatch):
    monkeypatch.setattr(overlap, "_LOGITS", at_once)
    got = SampleOverlaps(target(), samples(temperature), temperature=temperature).of(draft())
    for sample, part in zip(samples(temperature), got, strict=True):
        p, q = (distributions(model, sample, temperature) for model in (target(), draft()))
        assert part.tolist() == pytest.approx((1 - 0.5 * (p - q).abs().sum(-1)).tolist(), abs=2e-5)


def test_padding_of_a_draft_s_head_counts_as_in_decoding():
    wide, narrow = resized(draft(), VOCAB + 4), resized(draft(), VOCAB - 4)
    for model, shared in ((wide, VOCAB), (narrow, VOCAB - 4)):
        got = SampleOverlaps(target(), samples(1.0), temperature=1.0).of(model)
        for sample, part in zip(samples(1.0), got, strict=True):
            known = Sample(sample.prompt, sample.answer, "")
            if shared < VOCAB:  # what only the target knows is the draft's last token
                low = shared - 1
                known = Sample(
                    tuple(min(token, low) for token in sample.prompt), tuple(min(t, low) for t in sample.answer), ""
                )
            p = distributions(target(), sample, 1.0)
            q = distributions(model, known, 1.0)[:, :shared]
            assert part.tolist() == pytest.approx(
                torch.minimum(p[:, :shared], q / q.sum(-1, keepdim=True)).sum(-1).tolist(), abs=2e-5
            )


def test_another_vocabulary_is_refused_with_both_sizes():
    with pytest.raises(ConfigError, match="the draft's vocabulary has 260 entries, the target's 200"):
        held_out_acceptance(target(), llama(260), samples(0.0), temperature=0.0)


def counters(agrees: Sequence[bool], gamma: int) -> Counts:
    """What a greedy loop counts when ``agrees`` says, for each answer token, whether the draft would have said it.

    The first token comes with the prompt. Of the last block no more is drafted than the answer may still get.
    """
    counts, at, length = Counts(), 1, len(agrees)
    while at < length:
        limit = HOW["max_new_tokens"] - at - 1
        drafted = min(gamma, limit)
        accepted = 0
        while accepted < drafted and at + accepted < length and agrees[at + accepted]:
            accepted += 1
        emitted = min(accepted + 1, length - at)
        counts.add_block(drafted, min(accepted, emitted), bonus=accepted == drafted and emitted > accepted)
        at += emitted
    return counts


def test_at_temperature_0_the_loop_counts_what_the_agreement_of_the_models_implies_for_every_gamma():
    report = measure_acceptance(target(), draft(), prompts(), temperature=0.0, gammas=range(1, 8), **HOW)
    agreement = SampleOverlaps(target(), samples(0.0), temperature=0.0).of(draft())
    assert 0.3 < report.acceptance_tv.value < 0.95  # the pair says something
    for prompt, agrees in zip(report.prompts, agreement, strict=True):
        assert prompt.tokens == len(agrees)
        assert prompt.overlap == agrees.sum()
        for gamma in report.gammas:
            assert prompt.counts[gamma] == counters([bool(a) for a in agrees], gamma)


def test_sampled_the_loop_accepts_as_often_as_the_distributions_overlap():
    many = [PromptItem(item.ids, "") for item in prompts(30) for _ in range(10)]
    report = measure_acceptance(target(), draft(), many, temperature=1.0, gammas=(8,), **HOW)
    # about 8,000 tokens on either side: one standard error of a share is at most sqrt(0.25/8000) = 0.0056, and rows are
    # correlated within a prompt; the bonus tokens, which the loop never tests, shift its rate by less than 0.01
    assert report.loop_acceptance.value == pytest.approx(report.acceptance_tv.value, abs=0.03)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_draft_that_is_the_target_is_accepted_always(temperature):
    report = measure_acceptance(target(), target(), prompts(), temperature=temperature, gammas=(1, 4), **HOW)
    assert report.acceptance_tv.value == pytest.approx(1.0, abs=1e-5)
    assert report.loop_acceptance.value == 1.0
    assert all(estimate.value == 1.0 for estimate in report.by_position)


def test_places_of_a_block_add_up_to_the_loop_s_counters():
    report = measure_acceptance(target(), draft(), prompts(), temperature=1.0, gammas=(2, 5), **HOW)
    for prompt in report.prompts:
        counts = prompt.counts[5]
        assert len(prompt.positions) == 5
        assert sum(accepted for _, accepted in prompt.positions) == counts.accepted
        # a token that lies behind the end counts as tested there, and not here
        assert counts.tested - sum(tested for tested, _ in prompt.positions) in (0, 1)


def test_the_same_seed_measures_the_same_and_another_does_not():
    first, again, other = (
        measure_acceptance(
            target(), draft(), prompts(), temperature=1.0, gammas=(3,), max_new_tokens=40, seed=s, eos_ids=(EOS,)
        )
        for s in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_samples_that_are_there_already_are_not_written_again():
    given = measure_acceptance(
        target(), draft(), prompts(), temperature=1.0, gammas=(2,), samples=samples(1.0), **HOW
    )  # fmt: skip
    assert given == measure_acceptance(target(), draft(), prompts(), temperature=1.0, gammas=(2,), **HOW)


def test_every_gamma_is_reported_when_it_is_done():
    seen: list[int] = []
    measure_acceptance(
        target(), draft(), prompts(2), temperature=0.0, gammas=(3, 1, 2), on_gamma=seen.append, **HOW
    )  # fmt: skip
    assert seen == [1, 2, 3]


def test_samples_end_with_the_end_of_sequence_token_or_at_the_bound():
    for sample in samples(1.0):
        assert EOS not in sample.answer[:-1]
        assert sample.answer[-1] == EOS or len(sample.answer) == HOW["max_new_tokens"]


def test_a_draft_in_training_is_left_as_it_was():
    model = copy.deepcopy(draft()).train()
    model.model.layers[0].eval()
    before = [module.training for module in model.modules()]
    loss = model(torch.tensor([[1, 2, 3]])).logits.sum()
    held_out_acceptance(target(), model, samples(1.0), temperature=1.0)
    measure_acceptance(target(), model, prompts(2), temperature=1.0, gammas=(1,), **HOW)
    assert [module.training for module in model.modules()] == before
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


class Counted:
    """A model that counts its forward calls."""

    def __init__(self, model: Any) -> None:
        self.calls = 0
        model.register_forward_hook(self._count)

    def _count(self, *_: object) -> None:
        self.calls += 1


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_held_out_samples_cost_the_target_one_pass_and_follow_the_draft_s_weights(temperature):
    model, changing = copy.deepcopy(target()), copy.deepcopy(draft())
    counted = Counted(model)
    held_out = HeldOut(model, samples(temperature), temperature=temperature)
    first = held_out.acceptance(changing)
    calls = counted.calls
    with torch.no_grad():
        for parameter, better in zip(changing.parameters(), target().parameters(), strict=True):
            parameter.copy_(better)
    assert first.value < 0.95
    assert held_out.acceptance(changing).value == pytest.approx(1.0, abs=1e-5)
    assert counted.calls == calls
    assert held_out_acceptance(target(), draft(), samples(temperature), temperature=temperature) == first


def test_what_the_target_says_is_computed_again_where_memory_does_not_allow_keeping_it():
    model = copy.deepcopy(target())
    counted = Counted(model)
    overlaps = SampleOverlaps(model, samples(1.0), temperature=1.0, keep_bytes=1000)
    first = overlaps.of(draft())
    calls = counted.calls
    assert all(torch.equal(a, b) for a, b in zip(first, overlaps.of(draft()), strict=True))
    assert counted.calls == 2 * calls


def test_block_verification_can_be_measured_and_keeps_more():
    many = [PromptItem(item.ids, "") for item in prompts(30) for _ in range(5)]
    exact, block = (
        measure_acceptance(target(), draft(), many, temperature=1.0, gammas=(6,), verifier=verifier, **HOW)
        for verifier in (None, BlockVerifier())
    )
    assert block.block_efficiency(6).value > exact.block_efficiency(6).value


def test_a_verifier_that_fails_is_no_measurement():
    class Fails(BlockVerifier):
        def verify(self, proposal, target, noise):
            raise RuntimeError("no")

    with pytest.raises(ConfigError, match="the draft cannot be measured: the verifier failed"):
        measure_acceptance(target(), draft(), prompts(2), temperature=1.0, gammas=(2,), verifier=Fails(), **HOW)


def test_a_prompt_that_cannot_be_decoded_is_named():
    items = [*prompts(2), PromptItem(tuple([1] * 128), "")]
    with pytest.raises(ConfigError, match="prompt 3 cannot be decoded: expected a prompt shorter than"):
        measure_acceptance(target(), draft(), items, temperature=0.0, gammas=(1,), **HOW)


def test_too_few_prompts_are_refused():
    with pytest.raises(ConfigError, match="at least 1 prompt"):
        measure_acceptance(target(), draft(), [], temperature=0.0, **HOW)
    with pytest.raises(ConfigError, match="at least 2 held-out prompts, got 1"):
        HeldOut(target(), samples(0.0)[:1], temperature=0.0)
