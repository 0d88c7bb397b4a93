"""``enable`` is one line, ``disable`` undoes it, and neither leaves a trace in what is saved."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from transformers import pipeline

import gkt_transformers
from gkt_plugins.config import load_config
from gkt_plugins.errors import ConfigError

PROMPT = torch.tensor([[5, 6, 7, 8]])


@pytest.fixture
def model(tiny):
    return tiny.causal("llama")


@pytest.fixture(scope="module")
def config(tiny):
    return load_config(text=f'[speculation]\ndrafter = "model"\ndraft = "{tiny.folder("draft")}"\ngamma = 3\n')


def test_disable_gives_the_plain_generate_back(model, config):
    plain = model.generate
    gkt_transformers.enable(model, config)
    assert model.generate != plain
    gkt_transformers.disable(model)
    assert model.generate == plain
    assert "generate" not in vars(model)


def test_disable_of_a_model_that_was_not_enabled_does_nothing(model):
    gkt_transformers.disable(model)
    assert model.generate(PROMPT, max_new_tokens=2).shape == (1, 6)


def test_enabling_twice_takes_the_new_configuration_and_one_disable_undoes_both(model, config):
    gkt_transformers.enable(model, config)
    gkt_transformers.enable(model, load_config(text='[speculation]\ndrafter = "prompt_lookup"\ngamma = 2\n'))
    expected = type(model).generate(model, PROMPT, max_new_tokens=20)
    assert torch.equal(model.generate(PROMPT, max_new_tokens=20), expected)
    gkt_transformers.disable(model)
    assert "generate" not in vars(model)


def test_a_failed_enable_leaves_the_model_as_it_was(model, config):
    gkt_transformers.enable(model, config)
    with pytest.raises(ConfigError):
        gkt_transformers.enable(model, load_config(text=""))
    model.generate(PROMPT, max_new_tokens=12)
    assert gkt_transformers.last_report(model).counts.drafted > 0


@pytest.mark.parametrize(
    "make", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"]
)
def test_copies_and_pickles_are_plain_models_with_the_same_weights(model, config, make):
    keys = list(model.state_dict())
    plain_size = len(pickle.dumps(model))
    expected = model.generate(PROMPT, max_new_tokens=12)
    gkt_transformers.enable(model, config)
    model.generate(PROMPT, max_new_tokens=12)
    assert list(model.state_dict()) == keys
    assert len(list(model.modules())) == len(list(copy.deepcopy(model).modules()))
    assert len(pickle.dumps(model)) < plain_size + 1000  # without the draft, which is as large as the model here
    twin = make(model)
    assert torch.equal(twin.generate(PROMPT, max_new_tokens=12), expected)
    with pytest.raises(ConfigError, match="has not speculated yet"):
        gkt_transformers.last_report(twin)
    gkt_transformers.enable(twin, config)
    assert torch.equal(twin.generate(PROMPT, max_new_tokens=12), expected)
    assert gkt_transformers.last_report(twin).counts.drafted > 0


def test_a_saved_model_is_the_same_as_without(model, config, tmp_path):
    model.save_pretrained(tmp_path / "plain")
    gkt_transformers.enable(model, config)
    model.save_pretrained(tmp_path / "enabled")
    for file in sorted((tmp_path / "plain").iterdir()):
        assert (tmp_path / "enabled" / file.name).read_bytes() == file.read_bytes()


def test_a_pipeline_over_an_enabled_model_speculates(model, tiny, config):
    tokenizer = tiny.byte_level_tokenizer()
    texts = ["Anna has 12 apples", "A train"]
    options = {"max_new_tokens": 15, "do_sample": False, "batch_size": 2, "return_full_text": False}
    expected = pipeline("text-generation", model=model, tokenizer=tokenizer)(texts, **options)
    gkt_transformers.enable(model, config)
    answers = pipeline("text-generation", model=model, tokenizer=tokenizer)(texts, **options)
    assert answers == expected
    assert gkt_transformers.last_report(model).rows == 2


def test_a_pipeline_s_stop_sequence_is_honoured(model, tiny, config):
    tokenizer = tiny.byte_level_tokenizer()
    options = {"max_new_tokens": 15, "do_sample": False, "return_full_text": False}
    plain = pipeline("text-generation", model=model, tokenizer=tokenizer)
    whole = plain("Anna", **options)[0]["generated_text"]
    expected = plain("Anna", stop_sequence=whole[4:6], **options)
    gkt_transformers.enable(model, config)
    stopped = pipeline("text-generation", model=model, tokenizer=tokenizer)("Anna", stop_sequence=whole[4:6], **options)
    assert stopped == expected
    assert len(stopped[0]["generated_text"]) < len(whole)


def test_lenient_verification_is_always_said(model, tiny):
    text = (
        f'drafter = "model"\ndraft = "{tiny.folder("draft")}"\nverifier = "lenient"\nrule = "linear"\nepsilon = 0.5\n'
    )
    gkt_transformers.enable(model, load_config(text="[speculation]\n" + text))
    output = model.generate(PROMPT, max_new_tokens=12, return_dict_in_generate=True)
    assert output.report.lenient
    assert "lenient: drafted tokens passed by the rule 'linear' with epsilon 0.5" in str(output.report)


def test_there_is_no_report_before_the_first_call(model, config):
    gkt_transformers.enable(model, config)
    with pytest.raises(ConfigError, match="has not speculated yet; enable it, then call generate"):
        gkt_transformers.last_report(model)


def test_the_callable_takes_what_an_enabled_model_was_enabled_with(model, config):
    gkt_transformers.enable(model, config)
    expected = type(model).generate(model, PROMPT, max_new_tokens=9)
    assert torch.equal(model.generate(PROMPT, max_new_tokens=9, custom_generate=gkt_transformers.generate), expected)
    assert gkt_transformers.last_report(model).counts.drafted > 0


def test_a_configuration_file_that_changes_is_read_again(model, tmp_path):
    path = tmp_path / "gkt.toml"
    options = {"max_new_tokens": 30, "custom_generate": gkt_transformers.generate, "gkt_config": path}
    path.write_text('[speculation]\ndrafter = "prompt_lookup"\ngamma = 2\n')
    model.generate(PROMPT, **options)
    path.write_text('[speculation]\ndrafter = "no such drafter"\n')
    with pytest.raises(ConfigError, match="no such drafter"):
        model.generate(PROMPT, **options)


def test_the_callable_finds_gkt_toml_in_the_current_folder(model, tmp_path, monkeypatch):
    (tmp_path / "gkt.toml").write_text('[speculation]\ndrafter = "prompt_lookup"\ngamma = 2\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GKT_CONFIG", raising=False)
    expected = model.generate(PROMPT, max_new_tokens=30)
    assert torch.equal(model.generate(PROMPT, max_new_tokens=30, custom_generate=gkt_transformers.generate), expected)
    assert gkt_transformers.last_report(model).tokens == expected.shape[1] - 4
