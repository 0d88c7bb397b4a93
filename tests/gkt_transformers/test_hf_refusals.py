"""What speculation cannot honour is refused with a sentence, on every way into ``generate``."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import DynamicCache, LogitsProcessorList, StaticCache, StoppingCriteriaList
from transformers.generation.logits_process import UnbatchedClassifierFreeGuidanceLogitsProcessor
from transformers.generation.stopping_criteria import StoppingCriteria
from transformers.generation.streamers import BaseStreamer

import gkt_transformers
from gkt_plugins.config import load_config
from gkt_plugins.errors import ConfigError

PROMPT = torch.tensor([[5, 6, 7, 8]])


@pytest.fixture(scope="module")
def target(tiny):
    return tiny.causal("llama")


@pytest.fixture(scope="module")
def lookup():
    """Prompt lookup: no draft model is needed to be refused."""
    return load_config(text='[speculation]\ndrafter = "prompt_lookup"\ngamma = 2\n')


@pytest.fixture
def enabled(target, lookup):
    model = copy.copy(target)
    gkt_transformers.enable(model, lookup)
    return model


def _ask(enabled, way, *args, **kwargs):
    if way == "enable":
        return enabled.generate(*args, max_new_tokens=4, **kwargs)
    method = type(enabled).generate
    return method(enabled, *args, max_new_tokens=4, custom_generate=gkt_transformers.generate, **kwargs)


@pytest.mark.parametrize("way", ["enable", "callable"])
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"num_beams": 2}, "honour num_beams=2: beams cannot be verified"),
        ({"num_beams": 2, "do_sample": True}, "honour num_beams=2"),
        ({"prompt_lookup_num_tokens": 3}, "honour prompt_lookup_num_tokens=3: name the drafter under .speculation."),
        ({"guidance_scale": 1.5}, "honour guidance_scale=1.5"),
        ({"use_cache": False}, "honour use_cache=False"),
        ({"cache_implementation": "static"}, "honour cache_implementation='static'"),
        ({"output_scores": True, "return_dict_in_generate": True}, "honour output_scores=True"),
        ({"output_attentions": True, "return_dict_in_generate": True}, "honour output_attentions=True"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "honour penalty_alpha=0.6"),
        ({"token_type_ids": torch.zeros_like(PROMPT)}, "honour token_type_ids=a Tensor"),
        ({"past_key_values": DynamicCache()}, "honour past_key_values=.*rows have a cache of their own"),
        ({"position_ids": PROMPT}, "honour position_ids=a Tensor: rows are numbered from 0"),
        ({"synced_gpus": True}, "honour synced_gpus=True"),
        ({"encoder_repetition_penalty": 1.5}, "honour encoder_repetition_penalty=1.5"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)  # fmt: skip
def test_an_option_that_cannot_be_honoured_is_refused(tiny, enabled, way, options, sentence):
    model = copy.copy(tiny.causal("gpt2")) if "token_type_ids" in options else enabled
    if model is not enabled:
        gkt_transformers.enable(model, load_config(text='[speculation]\ndrafter = "prompt_lookup"\n'))
    with pytest.raises(ConfigError, match=sentence):
        _ask(model, way, PROMPT, **options)


@pytest.mark.parametrize("way", ["enable", "callable"])
def test_an_assistant_is_refused_although_generate_would_hide_it(target, enabled, way):
    with pytest.raises(ConfigError, match=r"honour assistant_model=a LlamaForCausalLM: name the drafter"):
        _ask(enabled, way, PROMPT, assistant_model=target)


@pytest.mark.parametrize("way", ["enable", "callable"])
def test_embeddings_instead_of_ids_are_refused(enabled, way):
    with pytest.raises(ConfigError, match="honour inputs_embeds=a Tensor: pass input_ids"):
        _ask(enabled, way, inputs_embeds=torch.zeros(1, 3, 32))


@pytest.mark.parametrize("way", ["enable", "callable"])
def test_a_static_cache_is_refused(enabled, way):
    cache = StaticCache(config=enabled.config, max_cache_len=32)
    with pytest.raises(ConfigError, match="honour past_key_values=a StaticCache"):
        _ask(enabled, way, PROMPT, past_key_values=cache)


@pytest.mark.parametrize("mask", [[[1, 1, 1, 0]], [[1, 0, 1, 1]]], ids=["right", "gap"])
def test_padding_anywhere_but_on_the_left_is_refused(enabled, mask):
    with pytest.raises(ConfigError, match=r"padded on the left, .* set tokenizer.padding_side = 'left'"):
        enabled.generate(PROMPT, attention_mask=torch.tensor(mask), max_new_tokens=4)


def test_a_processor_that_keeps_state_is_refused(target, enabled):
    processor = UnbatchedClassifierFreeGuidanceLogitsProcessor(1.5, target)
    with pytest.raises(ConfigError, match="honour logits_processor=a UnbatchedClassifierFree"):
        enabled.generate(PROMPT, max_new_tokens=4, logits_processor=LogitsProcessorList([processor]))


@pytest.mark.parametrize("way", ["enable", "callable"])
def test_streaming_a_batch_is_refused(enabled, way):
    class Streamer(BaseStreamer):
        def put(self, value):
            pass

        def end(self):
            pass

    with pytest.raises(ConfigError, match="honour streamer=a Streamer: rows of a batch advance by different amounts"):
        _ask(enabled, way, PROMPT.expand(2, -1), streamer=Streamer())


def test_criteria_for_a_batch_without_an_end_of_sequence_are_refused(enabled):
    class Never(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            return torch.zeros(len(input_ids), dtype=torch.bool)

    with pytest.raises(ConfigError, match="rows that end early need an eos_token_id to be padded; set one"):
        enabled.generate(
            PROMPT.expand(2, -1),
            max_new_tokens=4,
            eos_token_id=None,
            stopping_criteria=StoppingCriteriaList([Never()]),
        )


def test_continuous_batching_is_refused(enabled):
    with pytest.raises(ConfigError, match="honour cache_implementation='paged': it is generate_batch's"):
        enabled.generate(PROMPT, max_new_tokens=4, cache_implementation="paged")


def test_stop_strings_with_the_callable_are_generate_s_own_error(enabled, tiny):
    with pytest.raises(ValueError, match="could not locate a tokenizer"):
        _ask(enabled, "callable", PROMPT, stop_strings=["a"], tokenizer=tiny.byte_level_tokenizer())


def test_the_callable_says_where_it_belongs(target):
    with pytest.raises(ConfigError, match=r"is for model.generate\(custom_generate=…\)"):
        gkt_transformers.generate(target, PROMPT)


def test_another_custom_generate_is_left_alone(enabled):
    def constant(model, input_ids, **kwargs):
        return input_ids

    assert torch.equal(enabled.generate(PROMPT, max_new_tokens=4, custom_generate=constant), PROMPT)


def test_an_encoder_decoder_model_cannot_be_enabled(tiny, lookup):
    from transformers import AutoModelForSeq2SeqLM

    model = AutoModelForSeq2SeqLM.from_pretrained(tiny.folder("t5"))
    with pytest.raises(ConfigError, match="speculation needs a decoder-only model"):
        gkt_transformers.enable(model, lookup)


def test_a_draft_with_another_vocabulary_is_refused(tiny, target, tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = target.config.to_dict() | {"vocab_size": 4 * tiny.vocab}
    LlamaForCausalLM(LlamaConfig(**shape)).save_pretrained(tmp_path)
    config = load_config(text=f'[speculation]\ndrafter = "model"\ndraft = "{tmp_path}"\n')
    with pytest.raises(ConfigError, match="the draft's vocabulary has 1280 entries, the target's 320"):
        gkt_transformers.enable(copy.copy(target), config)


def test_a_configuration_without_speculation_is_refused(target):
    with pytest.raises(ConfigError, match=r"has no \[speculation\] section; add one"):
        gkt_transformers.enable(copy.copy(target), load_config(text=""))


def test_a_missing_configuration_file_is_named(target):
    with pytest.raises(ConfigError, match="nowhere"):
        gkt_transformers.enable(copy.copy(target), "nowhere/gkt.toml")
