"""``generate`` with speculation gives what plain ``generate`` gives, whichever way it is switched on."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from scipy.stats import chi2
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

import gkt_transformers
from gkt_plugins.config import load_config
from gkt_plugins.contracts import ExportRequest

WAYS = ["enable", "callable", "folder"]


@pytest.fixture(scope="module")
def target(tiny):
    return tiny.causal("llama")


@pytest.fixture(scope="module")
def config_path(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "gkt.toml"
    path.write_text(f'[speculation]\ndrafter = "model"\ndraft = "{tiny.folder("draft")}"\ngamma = 3\n')
    return path


@pytest.fixture(scope="module")
def exported(tiny, config_path, tmp_path_factory):
    config = load_config(config_path)
    output = tmp_path_factory.mktemp("exported") / "llama"
    request = ExportRequest(tiny.folder("llama"), output, config.speculation, config.base_dir)
    return gkt_transformers.TransformersExporter().export(request).folder


@pytest.fixture
def generate(target, config_path, exported):
    """``generate(way, …)``: the target's generate, switched on in that way for one call."""

    def call(way, *args, **kwargs):
        model = copy.copy(target)  # shares the weights; what is switched on ends with it
        if way == "enable":
            gkt_transformers.enable(model, config_path)
            output = model.generate(*args, **kwargs)
        elif way == "callable":
            extra = {"custom_generate": gkt_transformers.generate, "gkt_config": config_path}
            output = model.generate(*args, **extra, **kwargs)
        else:
            output = model.generate(*args, custom_generate=str(exported), trust_remote_code=True, **kwargs)
        assert gkt_transformers.last_report(model).counts.drafted or kwargs.get("max_new_tokens") == 1
        return output

    return call


@pytest.fixture(scope="module")
def batch():
    """Three prompts of different lengths, padded on the left."""
    torch.manual_seed(5)
    input_ids = torch.randint(5, 320, (3, 12))
    attention_mask = torch.ones_like(input_ids)
    for row, padding in ((0, 4), (2, 7)):
        input_ids[row, :padding] = 0
        attention_mask[row, :padding] = 0
    return {"input_ids": input_ids, "attention_mask": attention_mask}


@pytest.fixture(scope="module")
def ends(target, batch):
    """Tokens of the greedy answers, so that as an end of sequence they end rows at different places."""
    answers = target.generate(**batch, max_new_tokens=24, eos_token_id=None)[:, 12:]
    return [int(answers[0, 5]), int(answers[1, 11])]


@pytest.mark.parametrize("way", WAYS)
def test_greedy_answers_of_a_padded_batch_are_plain_generate_s_own(generate, target, batch, way):
    expected = target.generate(**batch, max_new_tokens=30)
    got = generate(way, **batch, max_new_tokens=30)
    assert got.dtype == expected.dtype
    assert torch.equal(got, expected)


@pytest.mark.parametrize("family", ["qwen2", "gpt2", "gpt_neox", "gemma", "hybrid"])
def test_every_family_answers_as_its_plain_generate_does(tiny, batch, tmp_path, family):
    model = tiny.hybrid() if family == "hybrid" else tiny.causal(family)
    tiny.noisy_copy(model, 0.05).save_pretrained(tmp_path / "draft")
    expected = model.generate(**batch, max_new_tokens=30)
    text = f'[speculation]\ndrafter = "model"\ndraft = "{tmp_path / "draft"}"\ngamma = 4\n'
    gkt_transformers.enable(model, load_config(text=text))
    assert torch.equal(model.generate(**batch, max_new_tokens=30), expected)
    assert gkt_transformers.last_report(model).counts.accepted > 0


@pytest.mark.parametrize("way", WAYS)
def test_rows_that_end_early_are_padded_as_plain_generate_pads_them(generate, target, batch, ends, way):
    options = {"max_new_tokens": 24, "eos_token_id": ends, "pad_token_id": 3}
    expected = target.generate(**batch, **options)
    assert (expected[:, 12:] == 3).any()
    assert torch.equal(generate(way, **batch, **options), expected)


def _allowed(row, ids):
    return [10 + row, 20 + row, 30 + int(ids[-1]) % 100]


OPTIONS = {
    "max_length": {"max_length": 20},
    "the default length": {},
    "min_new_tokens": {"min_new_tokens": 20},
    "min_length": {"min_length": 30},
    "repetition_penalty": {"repetition_penalty": 1.7},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 2},
    "repetition_penalty after a bias": {"repetition_penalty": 1.7, "sequence_bias": [[[9], 2.0], [[12, 13], -3.0]]},
    "bad_words_ids": {"bad_words_ids": [[4], [6], [7, 8], [9]]},
    "suppress_tokens": {"suppress_tokens": list(range(40, 200))},
    "begin_suppress_tokens": {"begin_suppress_tokens": list(range(5, 250))},
    "forced_eos_token_id": {"forced_eos_token_id": 2},
    "forced_bos_token_id": {"forced_bos_token_id": 9},
    "exponential_decay_length_penalty": {"exponential_decay_length_penalty": (3, 1.4)},
    "remove_invalid_values": {"remove_invalid_values": True},
    "renormalize_logits": {"renormalize_logits": True},
    "prefix_allowed_tokens_fn": {"prefix_allowed_tokens_fn": _allowed},
    "sampling of one candidate": {"do_sample": True, "top_k": 1, "temperature": 0.7},
    "sampling of a tiny nucleus": {"do_sample": True, "top_p": 1e-4, "top_k": 0},
    "sampling with a high floor": {"do_sample": True, "min_p": 1.0, "renormalize_logits": True},
    "sampling of one typical token": {"do_sample": True, "top_k": 1, "typical_p": 0.9, "epsilon_cutoff": 1e-4},
    "several samples": {"do_sample": True, "top_k": 1, "num_return_sequences": 2, "repetition_penalty": 1.2},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_means_what_it_means_in_plain_generate(generate, target, batch, ends, name):
    options = {"eos_token_id": ends, "max_new_tokens": 24} | OPTIONS[name]
    if name in ("max_length", "the default length"):
        del options["max_new_tokens"]
    expected = target.generate(**batch, **options)
    assert torch.equal(generate("enable", **batch, **options), expected)


@pytest.mark.parametrize("way", ["callable", "folder"])
def test_options_and_processors_reach_every_way(generate, target, batch, ends, way):
    options = {"eos_token_id": ends, "max_new_tokens": 24} | OPTIONS["several samples"] | {"no_repeat_ngram_size": 2}
    assert torch.equal(generate(way, **batch, **options), target.generate(**batch, **options))


def test_options_may_come_from_the_model_s_own_generation_config(target, batch, config_path):
    model = copy.copy(target)
    model.generation_config = copy.deepcopy(target.generation_config)
    model.generation_config.update(repetition_penalty=1.7, max_new_tokens=9)
    expected = model.generate(**batch)
    gkt_transformers.enable(model, config_path)
    assert torch.equal(model.generate(**batch), expected)


@pytest.mark.parametrize("options", [{"top_k": 3, "temperature": 0.8}, {"top_k": 4, "top_p": 0.9, "min_p": 0.05}])
def test_sampled_answers_have_the_target_s_own_distribution(generate, target, options):
    prompt = torch.tensor([[5, 6, 7, 8]])
    n, temperature = 1500, options.get("temperature", 1.0)
    torch.manual_seed(0)
    # The first token comes from the prompt alone; the second is drafted and verified when more are to come.
    answers = generate(
        "enable", prompt, max_new_tokens=4, min_new_tokens=2, do_sample=True, num_return_sequences=n, **options
    )
    seen = [tuple(row) for row in answers[:, 4:6].tolist()]

    def truncated(ids):
        with torch.no_grad():
            scores = target(torch.tensor([ids])).logits[0, -1].double() / temperature
        scores[2] = -math.inf  # min_new_tokens
        top = scores.topk(options["top_k"])
        probs = torch.softmax(top.values, dim=-1)
        keep = probs.cumsum(0) - probs < options.get("top_p", 1.0)
        probs = torch.where(keep, probs, 0.0)
        probs = torch.where(probs >= options.get("min_p", 0.0) * probs.max(), probs, 0.0)
        return dict(zip(top.indices.tolist(), (probs / probs.sum()).tolist(), strict=True))

    expected = {}
    for first, p in truncated([5, 6, 7, 8]).items():
        for second, q in truncated([5, 6, 7, 8, first]).items():
            expected[first, second] = p * q
    assert set(seen) <= {pair for pair, p in expected.items() if p > 0}
    large = {pair: p for pair, p in expected.items() if p * n >= 5}  # the usual condition of a chi-square test
    statistic = sum((seen.count(pair) - n * p) ** 2 / (n * p) for pair, p in large.items())
    assert statistic < chi2.ppf(1 - 1e-4, len(large))  # one false alarm in ten thousand, and the seed is fixed


def test_a_seed_makes_sampling_repeatable(generate, batch):
    outputs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outputs.append(generate("enable", **batch, max_new_tokens=20, do_sample=True))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


class _SpyProcessor(LogitsProcessor):
    def __init__(self):
        self.seen = []

    def __call__(self, input_ids, scores):
        self.seen.append(input_ids.tolist())
        return scores


@pytest.mark.parametrize("way", WAYS)
def test_processors_see_each_row_s_own_unpadded_ids(generate, target, batch, way):
    spy = _SpyProcessor()
    options = {**batch, "max_new_tokens": 12, "eos_token_id": None}
    answers = generate(way, **options, logits_processor=LogitsProcessorList([spy]))
    assert torch.equal(answers, target.generate(**options))
    prompts = [row[mask.bool()].tolist() for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    assert all(len(ids) == 1 for ids in spy.seen)
    assert all(any(ids[0][: len(prompt)] == prompt for prompt in prompts) for ids in spy.seen)
    whole = [row[row.tolist().index(prompt[0]) :].tolist() for row, prompt in zip(answers, prompts, strict=True)]
    for prompt, row in zip(prompts, whole, strict=True):
        for length in range(len(prompt), len(row)):
            assert [row[:length]] in spy.seen  # every kept token was processed in its own context


class _SpyCriterion(StoppingCriteria):
    def __init__(self, length):
        self.length = length
        self.seen = []

    def __call__(self, input_ids, scores, **kwargs):
        self.seen += [tuple(row) for row in input_ids.tolist()]
        return torch.tensor([(row[-1] % 7 == 0).item() or len(row) >= self.length for row in input_ids])


@pytest.mark.parametrize("way", WAYS)
def test_stopping_criteria_see_the_rows_that_plain_generate_shows_them(generate, target, batch, way):
    mine, plain = _SpyCriterion(26), _SpyCriterion(26)
    options = {**batch, "max_new_tokens": 24}
    expected = target.generate(**options, stopping_criteria=StoppingCriteriaList([plain]))
    assert torch.equal(generate(way, **options, stopping_criteria=StoppingCriteriaList([mine])), expected)
    assert set(mine.seen) <= set(plain.seen)
    assert len(mine.seen) == len(set(mine.seen))  # once per kept token


class _SpyStreamer(BaseStreamer):
    def __init__(self):
        self.seen = []

    def put(self, value):
        self.seen.append(value.tolist())

    def end(self):
        self.seen.append("end")


@pytest.mark.parametrize("way", WAYS)
def test_a_streamer_gets_what_plain_generate_would_give_it(generate, target, way):
    mine, plain = _SpyStreamer(), _SpyStreamer()
    prompt = torch.tensor([[5, 6, 7]])
    target.generate(prompt, max_new_tokens=15, streamer=plain)
    generate(way, prompt, max_new_tokens=15, streamer=mine)
    assert mine.seen == plain.seen


@pytest.mark.parametrize("way", ["enable", "folder"])
def test_stop_strings_end_rows_where_plain_generate_ends_them(generate, target, tiny, batch, way):
    tokenizer = tiny.byte_level_tokenizer()
    texts = tokenizer.batch_decode(target.generate(**batch, max_new_tokens=24)[:, 12:])
    options = {**batch, "max_new_tokens": 24, "stop_strings": [texts[0][6:9], texts[1][12:14]], "tokenizer": tokenizer}
    expected = target.generate(**options)
    assert torch.equal(generate(way, **options), expected)
    assert (expected[:, -1] == 0).any()  # some row ended before others


@pytest.mark.parametrize("way", WAYS)
def test_return_dict_carries_the_sequences_and_the_report(generate, target, batch, way):
    expected = target.generate(**batch, max_new_tokens=10, return_dict_in_generate=True)
    got = generate(way, **batch, max_new_tokens=10, return_dict_in_generate=True)
    assert isinstance(got, type(expected))
    assert torch.equal(got.sequences, expected.sequences)
    assert (got.scores, got.logits, got.attentions, got.hidden_states) == (None,) * 4
    assert got.report.rows == 3
    assert got.report.tokens == 30
    assert 0 < got.report.acceptance_rate <= 1
    assert 1 <= got.report.block_efficiency <= 4
    assert not got.report.lenient


def test_positional_arguments_and_a_generation_config_object_work(target, batch, config_path):
    model = copy.copy(target)
    config = copy.deepcopy(target.generation_config)
    config.max_new_tokens = 9
    expected = model.generate(batch["input_ids"][1:2], config)
    gkt_transformers.enable(model, config_path)
    assert torch.equal(model.generate(batch["input_ids"][1:2], config), expected)


def test_a_row_that_reaches_the_end_of_the_context_is_told_in_the_report(target, tiny, config_path):
    model = copy.copy(target)
    gkt_transformers.enable(model, config_path)
    answer = model.generate(torch.randint(5, 320, (1, tiny.context - 6)), max_new_tokens=50)
    assert answer.shape[1] == tiny.context
    assert any("context" in note for note in gkt_transformers.last_report(model).notes)
