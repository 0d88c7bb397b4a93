import copy
from typing import Any

import peft
import pytest
import torch
from scipy import stats
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from gkt_plugins.distill.rollouts import Rollouts
from gkt_plugins.errors import ConfigError

VOCAB, CONTEXT = 64, 48
COMMON = {"vocab_size": VOCAB, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
SHAPE = {
    **COMMON,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.3,
    "tie_word_embeddings": False,
}


def llama(**changes: Any) -> Any:
    torch.manual_seed(7)
    return LlamaForCausalLM(LlamaConfig(**{**SHAPE, **changes}))


def models() -> dict[str, Any]:
    torch.manual_seed(7)
    return {
        "llama": llama(),
        "llama-eager": LlamaForCausalLM._from_config(LlamaConfig(**SHAPE), attn_implementation="eager"),
        "mistral-sliding": MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=8)),
        "gemma3": Gemma3ForCausalLM(
            Gemma3TextConfig(**{**SHAPE, "num_hidden_layers": 7}, head_dim=8, sliding_window=8)
        ),
        "gpt2": GPT2LMHeadModel(
            GPT2Config(**COMMON, n_embd=32, n_layer=2, n_head=4, n_positions=CONTEXT, initializer_range=0.3)
        ),
    }


PROMPTS = [[3, 9, 4], [5], [8, 8, 1, 2, 60, 7, 31, 2, 4, 5, 6, 11], [40, 2]]


def rollouts(model: Any, **changes: Any) -> Rollouts:
    return Rollouts(model, **{"eos_ids": (), "max_new_tokens": 24, "max_batch": 8, **changes})


def greedily(model: Any, prompt: list[int], tokens: int) -> list[int]:
    """Without cache and without batch."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(tokens):
            ids.append(int(model.eval()(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


# ------------------------------------------------------------------------------------------------- what is written


@pytest.mark.parametrize("name", ["llama", "llama-eager", "mistral-sliding", "gemma3", "gpt2"])
def test_greedy_rollouts_are_the_model_s_own_whatever_shares_the_batch(name: str) -> None:
    model = models()[name]
    expected = [greedily(model, prompt, 24) for prompt in PROMPTS]
    for max_batch in (1, 3, 8):
        assert rollouts(model, max_batch=max_batch).write(PROMPTS, temperature=0, seed=0) == expected


def test_an_answer_ends_with_its_end_of_sequence_token_while_the_others_go_on() -> None:
    model = llama()
    whole = rollouts(model).write(PROMPTS, temperature=1.0, seed=5)
    eos_ids = {whole[0][2], whole[2][9], whole[3][0]}
    answers = rollouts(model, eos_ids=eos_ids).write(PROMPTS, temperature=1.0, seed=5)
    lengths = []
    for answer, full in zip(answers, whole, strict=True):
        end = next((i + 1 for i, token in enumerate(full) if token in eos_ids), len(full))
        assert answer == full[:end]
        lengths.append(end)
    assert len(set(lengths)) > 1


def test_sampled_tokens_follow_the_model_s_distribution() -> None:
    model, rows, temperature = llama(vocab_size=12), 4000, 1.5
    prompt = [3, 9, 4]
    answers = rollouts(model, max_new_tokens=2, max_batch=1000).write([prompt] * rows, temperature=temperature, seed=1)
    with torch.no_grad():
        first = model(input_ids=torch.tensor([prompt])).logits[0, -1].div(temperature).softmax(-1)
        pairs = torch.tensor([[*prompt, token] for token in range(12)])
        second = model(input_ids=pairs).logits[:, -1].div(temperature).softmax(-1)
    expected = (first[:, None] * second).flatten().double().numpy() * rows
    observed = torch.bincount(torch.tensor([12 * a + b for a, b in answers]), minlength=144).double().numpy()
    common = expected >= 5  # the rest in one cell, as the chi-square test wants
    cells = [*observed[common], observed[~common].sum()], [*expected[common], expected[~common].sum()]
    statistic = sum((o - e) ** 2 / e for o, e in zip(*cells, strict=True))
    assert stats.chi2.sf(statistic, df=len(cells[0]) - 1) > 1e-3


def test_rows_with_the_same_prompt_get_draws_of_their_own() -> None:
    answers = rollouts(llama()).write([[5]] * 8, temperature=1.0, seed=0)
    assert len({tuple(answer) for answer in answers}) == 8


def test_the_same_weights_prompts_and_seed_give_the_same_tokens_and_another_seed_others() -> None:
    model = llama()
    first = rollouts(model).write(PROMPTS, temperature=1.0, seed=11)
    assert rollouts(copy.deepcopy(model)).write(PROMPTS, temperature=1.0, seed=11) == first
    assert rollouts(model).write(PROMPTS, temperature=1.0, seed=12) != first


def test_a_row_with_a_seed_of_its_own_depends_on_nothing_else() -> None:
    ours = rollouts(llama(), max_batch=3)
    together = ours.write(PROMPTS, temperature=1.0, seed=[4, 5, 6, 7])
    for row, prompt in enumerate(PROMPTS):
        assert ours.write([prompt], temperature=1.0, seed=[4 + row]) == [together[row]]


def test_rows_stop_at_the_model_s_context() -> None:
    long = [[1] * (CONTEXT - 1), [2] * (CONTEXT - 5), [3, 4]]
    model = llama()
    answers = rollouts(model, max_new_tokens=60).write(long, temperature=0, seed=0)
    assert [len(answer) for answer in answers] == [1, 5, CONTEXT - 2]
    assert answers == [greedily(model, prompt, len(answer)) for prompt, answer in zip(long, answers, strict=True)]


# ------------------------------------------------------------------------------------------- around a training step


@pytest.mark.parametrize("hidden_size", [32, 256])  # the larger one's linear layers run packed
def test_new_weights_are_noticed(hidden_size: int) -> None:
    model = llama(hidden_size=hidden_size, intermediate_size=2 * hidden_size)
    ours = rollouts(model, max_new_tokens=8)
    optimizer = torch.optim.SGD(model.parameters(), lr=5.0)
    before = ours.write(PROMPTS, temperature=0, seed=0)
    model.train()
    model(input_ids=torch.tensor([PROMPTS[2]]), labels=torch.tensor([PROMPTS[2]])).loss.backward()
    optimizer.step()
    after = ours.write(PROMPTS, temperature=0, seed=0)
    assert after != before
    assert after == [greedily(model, prompt, 8) for prompt in PROMPTS]


def test_modes_gradients_and_the_graph_around_are_left_as_found() -> None:
    model = llama(attention_dropout=0.5)
    model.train()
    model.model.layers[1].eval()  # somebody's own choice
    modes = {name: module.training for name, module in model.named_modules()}
    ids = torch.tensor([PROMPTS[2]])
    model(input_ids=ids).logits.sum().backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    first = rollouts(model).write(PROMPTS, temperature=1.0, seed=0)
    assert rollouts(model).write(PROMPTS, temperature=1.0, seed=0) == first  # no dropout
    assert {name: module.training for name, module in model.named_modules()} == modes
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.grad, gradients[name])
        assert parameter.requires_grad
    model(input_ids=ids).logits.sum().backward()  # training goes on


def test_an_adapter_s_additions_are_written_with() -> None:
    plain = llama()
    expected = rollouts(plain, max_new_tokens=8).write(PROMPTS, temperature=0, seed=0)
    adapted = peft.get_peft_model(plain, peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    ours = rollouts(adapted, max_new_tokens=8)
    assert ours.write(PROMPTS, temperature=0, seed=0) == expected  # an adapter begins with zeros
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(0))
    changed = ours.write(PROMPTS, temperature=0, seed=0)
    assert changed != expected
    assert changed == [greedily(adapted, prompt, 8) for prompt in PROMPTS]


def test_autocast_around_is_respected() -> None:
    model = llama()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        answers = rollouts(model, max_new_tokens=8).write(PROMPTS, temperature=1.0, seed=0)
    assert [len(answer) for answer in answers] == [8] * 4


# -------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], f"expected prompts of 1 to {CONTEXT - 1} tokens, the model's context, got 0"),
        ([1] * CONTEXT, f"expected prompts of 1 to {CONTEXT - 1} tokens, the model's context, got {CONTEXT}"),
        ([1, VOCAB], f"expected token ids from 0 to {VOCAB - 1}, got 1 to {VOCAB}"),
    ],
)
def test_a_prompt_that_cannot_be_continued_is_refused(prompt: list[int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rollouts(llama()).write([[1], prompt], temperature=1.0, seed=0)


def test_options_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1 new token and 1 row, got 0 and 8"):
        rollouts(llama(), max_new_tokens=0)
    with pytest.raises(ConfigError, match="temperature of rollouts must be at least 0, got -1"):
        rollouts(llama()).write(PROMPTS, temperature=-1, seed=0)
    with pytest.raises(ValueError, match="one seed for each of 4 prompts, got 2"):
        rollouts(llama()).write(PROMPTS, temperature=1.0, seed=[1, 2])


def test_an_encoder_decoder_is_refused() -> None:
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2))
    with pytest.raises(ConfigError, match="decoder-only model, got the encoder-decoder T5ForConditionalGeneration"):
        rollouts(t5)


def test_no_prompts_give_no_answers() -> None:
    assert rollouts(llama()).write([], temperature=1.0, seed=0) == []
