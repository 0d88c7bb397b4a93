"""Every option of ``generate`` has a row in the table, and the table is true."""

from __future__ import annotations

import inspect

import pytest
from transformers import GenerationConfig, GenerationMixin

from gkt_plugins.errors import ConfigError
from gkt_transformers._generation_options import ARGUMENTS, FIELDS, check_generation_config

_FIELDS_OF_THIS_RELEASE = sorted(name for name in vars(GenerationConfig()) if not name.startswith("_"))

ASKING = {
    "num_beams": 4,
    "num_beam_groups": 2,
    "diversity_penalty": 0.5,
    "constraints": ["a constraint"],
    "force_words_ids": [[5]],
    "penalty_alpha": 0.6,
    "dola_layers": "high",
    "guidance_scale": 1.5,
    "token_healing": True,
    "use_cache": False,
    "cache_implementation": "static",
    "cache_config": {"backend": "quanto"},
    "max_cache_len": 64,
    "prefill_chunk_size": 16,
    "continuous_batching_config": object(),
    "encoder_repetition_penalty": 1.3,
    "encoder_no_repeat_ngram_size": 2,
    "watermarking_config": object(),
    "output_scores": True,
    "output_logits": True,
    "output_attentions": True,
    "output_hidden_states": True,
    "prompt_lookup_num_tokens": 3,
    "assistant_early_exit": 1,
    "speculation_type": "dflash",
    "use_mtp": True,
    "is_assistant": True,
    "assistant_ensemble_weight": 0.5,
}
"""A value of each refused field that asks for something."""


def _prepared(**values):
    config = GenerationConfig()
    config.update(**GenerationConfig._get_default_generation_params(), defaults_only=True)
    for name, value in values.items():
        setattr(config, name, value)
    return config


def test_every_field_of_the_installed_generation_config_has_a_row():
    assert [name for name in _FIELDS_OF_THIS_RELEASE if name not in FIELDS] == []


def test_every_row_is_a_field_of_the_installed_generation_config():
    assert [name for name in FIELDS if name not in _FIELDS_OF_THIS_RELEASE] == []


def test_every_argument_of_generate_has_a_row():
    arguments = set(inspect.signature(GenerationMixin.generate).parameters) - {"self", "custom_generate", "kwargs"}
    assert arguments <= set(ARGUMENTS)


def test_what_generate_sets_by_itself_is_not_refused():
    check_generation_config(_prepared())


def test_every_refused_field_has_a_value_to_test_it_with():
    assert sorted(ASKING) == sorted(name for name, field in FIELDS.items() if field.treatment == "refused")


@pytest.mark.parametrize("name", sorted(ASKING))
def test_a_refused_field_is_named_with_what_to_do_instead(name):
    with pytest.raises(ConfigError, match=f"^speculation cannot honour {name}=.*: .+"):
        check_generation_config(_prepared(**{name: ASKING[name]}))


def test_a_field_of_a_later_release_is_refused_as_soon_as_it_has_a_value():
    check_generation_config(_prepared(brand_new_option=None))
    with pytest.raises(
        ConfigError, match="speculation cannot honour brand_new_option=7: this option is not known here"
    ):
        check_generation_config(_prepared(brand_new_option=7))
