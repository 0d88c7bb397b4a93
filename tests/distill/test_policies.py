import copy
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from gkt_plugins.distill.interleaving import Interleaved
from gkt_plugins.distill.policies import (
    POLICIES,
    CorrectOnly,
    DataPolicy,
    GroundTruth,
    Mixture,
    build_policy,
    load_scorer,
)
from gkt_plugins.distill.rollouts import Rollouts
from gkt_plugins.distill.samples import PromptItem, Sample, fixed_key
from gkt_plugins.errors import ConfigError

VOCAB, CONTEXT = 32, 64


def model(seed: int, vocab_size: int = VOCAB) -> Any:
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=CONTEXT,
            initializer_range=0.3,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )
    ).eval()


@pytest.fixture(name="draft")
def draft_fixture() -> Any:
    return model(1)


@pytest.fixture(name="target")
def target_fixture() -> Any:
    return model(2)


class Letters:
    """A tokenizer whose text is the numbers of the tokens."""

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return " ".join(map(str, ids))


ITEMS = [PromptItem((i + 1, i + 2, 3), f"prompt {i}", (4, i + 1, 0)) for i in range(12)]


def built(name: Any, draft: Any, target: Any, **changes: Any) -> DataPolicy:
    options = {"tokenizer": Letters(), "eos_ids": (0,), "max_new_tokens": 10, "max_batch": 8}
    return build_policy(name, draft_model=draft, target_model=target, **{**options, **changes})


def texts(samples: Sequence[Sample]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    return [(sample.prompt, sample.answer) for sample in samples]


# ------------------------------------------------------------------------------------------------ what all promise


@pytest.mark.parametrize("name", POLICIES)
def test_samples_follow_the_order_of_the_prompts_and_say_who_wrote_them(name: Any, draft: Any, target: Any) -> None:
    samples = built(name, draft, target, scorer=lambda item, text: True).samples(ITEMS, seed=3)
    assert [sample.prompt for sample in samples] == [item.ids for item in ITEMS]
    known = {"mixture": {"draft", "target"}, "correct_only": {"target"}}.get(name, {name})
    assert {sample.source for sample in samples} == known
    for sample in samples:
        assert 0 < len(sample.answer) <= 10
        assert 0 not in sample.answer[:-1]  # nothing behind the end-of-sequence token
        assert sample.key == ("" if sample.source in ("draft", "interleaved") else fixed_key(*texts([sample])[0]))


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_built_anew_gives_the_same_samples_so_that_training_resumes(
    name: Any, draft: Any, target: Any
) -> None:
    def run(rounds: range) -> list[list[Sample]]:
        policy = built(name, draft, target, scorer=lambda item, text: len(text) % 2 == 0)
        return [policy.samples(ITEMS[r : r + 6], seed=r) for r in rounds]

    assert run(range(5))[3:] == run(range(3, 5))


@pytest.mark.parametrize("name", ["draft", "interleaved", "mixture"])
def test_another_seed_gives_other_samples(name: Any, draft: Any, target: Any) -> None:
    policy = built(name, draft, target)
    assert policy.samples(ITEMS, seed=1) != policy.samples(ITEMS, seed=2)


# -------------------------------------------------------------------------------------------------- one by one


def test_the_draft_s_samples_are_what_it_writes_now(draft: Any, target: Any) -> None:
    policy = built("draft", draft, target)
    written = Rollouts(draft, eos_ids=(0,), max_new_tokens=10, max_batch=8)
    before = policy.samples(ITEMS, seed=3)
    with torch.no_grad():
        draft.lm_head.weight.neg_()
    after = policy.samples(ITEMS, seed=3)
    assert after != before
    prompts = [item.ids for item in ITEMS]
    assert [list(s.answer) for s in after] == written.write(prompts, temperature=1.0, seed=3)


def test_the_target_answers_each_prompt_once_and_is_asked_no_more(
    draft: Any, target: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    write = Rollouts.write

    def counted(self: Rollouts, prompts: Any, **options: Any) -> list[list[int]]:
        asked.append(len(prompts))
        return write(self, prompts, **options)

    monkeypatch.setattr(Rollouts, "write", counted)
    policy = built("target", draft, target)
    first = policy.samples(ITEMS[:8], seed=1)
    again = policy.samples([*ITEMS[4:], ITEMS[0], ITEMS[0]], seed=2)
    assert asked == [8, 4]
    assert again[:4] == first[4:]
    assert again[-2:] == [first[0]] * 2
    assert built("target", draft, target, seed=1).samples(ITEMS[:8], seed=1) != first


def test_ground_truth_needs_an_answer_to_every_prompt() -> None:
    assert texts(GroundTruth().samples(ITEMS, seed=0)) == [(item.ids, item.answer) for item in ITEMS]
    with pytest.raises(ConfigError, match="ground_truth policy needs an answer to every prompt, 'no answer' has none"):
        GroundTruth().samples([PromptItem((1,), "no answer")], seed=0)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_mixture_sends_its_share_of_prompts_to_the_draft(share: float, draft: Any, target: Any) -> None:
    policy = Mixture(built("draft", draft, target), GroundTruth(), share)
    sources = Counter(s.source for seed in range(20) for s in policy.samples(ITEMS, seed=seed))
    n = 20 * len(ITEMS)
    assert sources.total() == n
    assert abs(sources["draft"] / n - share) <= 4 * (share * (1 - share) / n) ** 0.5  # 4 standard deviations


def test_a_mixture_keeps_the_order_also_when_some_prompts_have_no_sample(draft: Any, target: Any) -> None:
    picky = CorrectOnly(GroundTruth(), lambda item, text: item.ids[0] % 3 > 0, Letters())
    policy = Mixture(built("draft", draft, target), picky, 0.5)
    samples = policy.samples(ITEMS, seed=4)
    order = [item.ids for item in ITEMS]
    places = [order.index(sample.prompt) for sample in samples]
    assert places == sorted(places)
    dropped = set(order) - {sample.prompt for sample in samples}
    assert dropped
    assert all(ids[0] % 3 == 0 for ids in dropped)
    assert {sample.source for sample in samples} == {"draft", "ground_truth"}


def test_a_mixture_may_draw_on_any_fixed_data(draft: Any, target: Any) -> None:
    for rest in ("ground_truth", "target", "correct_only"):
        policy = built("mixture", draft, target, rest=rest, draft_share=0.0, scorer=lambda item, text: True)
        expected = "target" if rest == "correct_only" else rest
        assert {sample.source for sample in policy.samples(ITEMS, seed=0)} == {expected}
    with pytest.raises(ConfigError, match=r"lambda, the share of draft-written samples, must be in \[0, 1\], got 1.5"):
        built("mixture", draft, target, draft_share=1.5)


def test_only_answers_that_the_scorer_accepts_are_kept(draft: Any, target: Any) -> None:
    everything = built("target", draft, target).samples(ITEMS, seed=0)
    seen: list[tuple[str, str]] = []

    def even(item: PromptItem, text: str) -> bool:
        seen.append((item.text, text))
        return int(text.split()[0]) % 2 == 0

    kept = built("correct_only", draft, target, scorer=even).samples(ITEMS, seed=0)
    assert kept == [sample for sample in everything if sample.answer[0] % 2 == 0]
    assert 0 < len(kept) < len(everything)
    assert seen == [(i.text, " ".join(map(str, s.answer))) for i, s in zip(ITEMS, everything, strict=True)]


# ------------------------------------------------------------------------------------------------------- interleaved


def interleaved(draft: Any, target: Any, **changes: Any) -> Interleaved:
    return Interleaved(draft, target, **{"eos_ids": (), "max_new_tokens": 20, "max_batch": 8, **changes})


def answers(policy: DataPolicy, items: Sequence[PromptItem] = ITEMS, seed: int = 0) -> list[list[int]]:
    return [list(sample.answer) for sample in policy.samples(items, seed=seed)]


def test_a_draft_that_may_say_anything_writes_alone(draft: Any, target: Any) -> None:
    alone = Rollouts(draft, eos_ids=(), max_new_tokens=20, max_batch=8)
    policy = interleaved(draft, target, top_k=VOCAB, temperature=0)
    assert answers(policy) == alone.write([item.ids for item in ITEMS], temperature=0, seed=0)


def test_a_draft_that_may_only_say_the_likeliest_token_writes_what_the_target_would(draft: Any, target: Any) -> None:
    alone = Rollouts(target, eos_ids=(), max_new_tokens=20, max_batch=8)
    expected = alone.write([item.ids for item in ITEMS], temperature=0, seed=0)
    assert answers(interleaved(draft, target, top_k=1, temperature=0)) == expected


@pytest.mark.parametrize(("seed", "block"), [(0, 1), (0, 3), (1, 8)])
def test_each_token_is_the_draft_s_or_the_target_s_correction_of_it(
    draft: Any, target: Any, seed: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gkt_plugins.distill.interleaving._GAMMA", block)
    items = ITEMS if seed == 0 else [PromptItem((7,), ""), PromptItem(tuple(range(1, 20)), "")]
    corrected = 0
    for item, answer in zip(items, answers(interleaved(draft, target, top_k=4, temperature=0), items), strict=True):
        ids = torch.tensor([[*item.ids, *answer]])
        with torch.no_grad():
            says = [it(input_ids=ids).logits[0, len(item.ids) - 1 : -1] for it in (draft, target)]
        for place, token in enumerate(answer):
            proposed = int(says[0][place].argmax())
            allowed = says[1][place].topk(4).indices.tolist()
            assert token == (proposed if proposed in allowed else int(says[1][place].argmax()))
            corrected += token != proposed
    assert corrected > 0


def test_sampled_tokens_follow_the_distribution_of_draft_and_corrections(draft: Any, target: Any) -> None:
    rows, top_k = 4000, 8
    item = PromptItem((3, 9, 4), "")
    policy = interleaved(draft, target, top_k=top_k, max_new_tokens=1, max_batch=1000)
    first = torch.tensor([answer[0] for answer in answers(policy, [item] * rows)])
    with torch.no_grad():
        q, p = (it(input_ids=torch.tensor([item.ids])).logits[0, -1].softmax(-1) for it in (draft, target))
    allowed = torch.zeros(VOCAB)
    allowed[p.topk(top_k).indices] = 1.0
    expected = q * allowed + (1 - (q * allowed).sum()) * p
    observed = torch.bincount(first, minlength=VOCAB) / rows
    assert ((observed - expected).abs() <= 4.5 * torch.sqrt(expected * (1 - expected) / rows) + 1e-9).all()


def test_end_of_sequence_budget_and_context_end_an_interleaved_answer(draft: Any, target: Any) -> None:
    whole = answers(interleaved(draft, target))
    eos = whole[0][4]
    for answer, full in zip(answers(interleaved(draft, target, eos_ids=(eos,))), whole, strict=True):
        assert answer == full[: full.index(eos) + 1 if eos in full else None]
    assert {len(answer) for answer in whole} == {20}
    near = PromptItem(tuple([1] * (CONTEXT - 3)), "")
    assert [len(a) for a in answers(interleaved(draft, target), [near, ITEMS[0]])] == [3, 20]
    with pytest.raises(ConfigError, match=f"prompts of 1 to {CONTEXT - 1} tokens, the models' context, got {CONTEXT}"):
        answers(interleaved(draft, target), [PromptItem(tuple([1] * CONTEXT), "")])


@pytest.mark.parametrize("padded", ["draft", "target"])
def test_a_padded_head_changes_nothing(draft: Any, target: Any, padded: str) -> None:
    expected = answers(interleaved(draft, target, top_k=4))
    larger = copy.deepcopy(draft if padded == "draft" else target)
    larger.resize_token_embeddings(VOCAB + 8, mean_resizing=False)
    with torch.no_grad():
        larger.get_output_embeddings().weight[VOCAB:] = 0
    if padded == "draft":
        got = answers(interleaved(larger, target, top_k=4))
    else:
        with torch.no_grad():  # padding of a trained head is never likely
            hidden = larger.lm_head.weight.shape[1]
            larger.lm_head = torch.nn.Linear(hidden, VOCAB + 8)
            larger.lm_head.weight[:VOCAB] = target.lm_head.weight
            larger.lm_head.weight[VOCAB:] = 0
            larger.lm_head.bias.zero_()
            larger.lm_head.bias[VOCAB:] = -1e4
        got = answers(interleaved(draft, larger, top_k=4))
    assert got == expected


# -------------------------------------------------------------------------------------------------------- refusals


def test_unknown_policies_and_useless_options_are_refused(draft: Any, target: Any) -> None:
    with pytest.raises(ConfigError, match="there is no data policy 'on_policy'"):
        built("on_policy", draft, target)
    with pytest.raises(ConfigError, match=r"correct_only policy needs a scorer; name one as package.module:function"):
        built("correct_only", draft, target)
    with pytest.raises(ConfigError, match="top_k, from which the draft may choose, must be at least 1, got 0"):
        built("interleaved", draft, target, top_k=0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("json", "a scorer is named package.module:function, got 'json'"),
        ("no.such.module:f", "cannot load the scorer 'no.such.module:f': No module named 'no'"),
        ("json:nothing", "cannot load the scorer 'json:nothing': module 'json' has no attribute 'nothing'"),
        ("json:__name__", "the scorer 'json:__name__' is not a function but str"),
    ],
)
def test_a_scorer_that_is_not_there_is_named(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_scorer(name)


def test_a_scorer_is_found_by_its_dotted_name() -> None:
    import json

    assert load_scorer("json:dumps") is json.dumps
