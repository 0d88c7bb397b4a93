"""What one section of vLLM's configuration becomes, before vLLM itself is there."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from gkt_plugins.demo.models import model_dir
from gkt_plugins.errors import BackendError, ConfigError
from gkt_vllm.frontend import decide
from gkt_vllm.section import GktSection, read_section
from gkt_vllm.versions import TRIED

VERSION = f"{TRIED[-1]}.0"
DRAFT = f'drafter = "model"\ndraft = {json.dumps(str(model_dir("draft")))}\n'


@pytest.fixture
def start(tmp_path):
    """``decide`` for a file of the given text."""

    def start(text: str, *, model: str = str(model_dir("teacher")), given: object = None, version: str = VERSION):
        (tmp_path / "gkt.toml").write_text(text)
        return decide(GktSection(config=str(tmp_path / "gkt.toml")), model, given, version)

    return start


def test_a_draft_becomes_vllms_own_argument(start):
    started = start(f"[speculation]\n{DRAFT}gamma = 4")
    assert started.speculative_config == {
        "method": "draft_model",
        "model": str(model_dir("draft")),
        "num_speculative_tokens": 4,
        "draft_sample_method": "probabilistic",
    }
    assert started.section.workers.leniency is None


def test_prompt_lookup_becomes_vllms_own_n_grams(start):
    started = start('[speculation]\ndrafter = "prompt_lookup"\nmax_ngram = 2\ngamma = 3')
    assert started.speculative_config["method"] == "ngram"
    assert started.speculative_config["prompt_lookup_max"] == 2


def test_drafts_end_where_the_configuration_says_batches_are_too_large(start):
    started = start(f"[speculation]\n{DRAFT}gamma = 4\n[vllm]\nlargest_batch = 8")
    assert started.speculative_config["num_speculative_tokens_per_batch_size"] == [[1, 8, 4], [9, 9, 0]]
    assert started.active == ["drafts by model, 4 tokens a block, none in batches of more than 8"]


def test_an_automatic_gamma_is_a_fixed_one_in_vllm_and_said_to_be(start):
    started = start(f"[speculation]\n{DRAFT}")
    assert started.speculative_config["num_speculative_tokens"] == 5
    assert any("gamma = 'auto'" in note for note in started.notes)


def test_our_own_drafter_is_a_custom_class_that_workers_build(start):
    started = start(f'[speculation]\n{DRAFT}[vllm]\ndrafts_by = "gkt"')
    assert started.speculative_config["method"] == "custom_class"
    drafter = started.section.workers.drafter
    assert (drafter.drafter, drafter.auto) == ("model", True)
    assert started.active == ["drafts by model, as many tokens a block as pay, 5 at most"]
    assert Path(drafter.base_dir).is_absolute()


def test_what_the_operator_gave_on_the_command_line_goes_before_the_file(start):
    started = start(f"[speculation]\n{DRAFT}", given={"method": "ngram"})
    assert started.speculative_config is None
    assert any("--speculative-config goes before" in note for note in started.notes)


@pytest.mark.parametrize(
    ("verifier", "bound", "expected"),
    [
        ("exact", 1.0, None),
        ("exact", 0.3, (1.0, 0.3)),
        ("lenient", 1.0, (0.5, 0.5)),
        ("lenient", 0.3, (0.5, 0.3)),
        ("lenient", 0.8, (0.5, 0.5)),
    ],
)
def test_leniency_is_the_configured_one_and_requests_have_a_bound(start, verifier, bound, expected):
    epsilon = 'rule = "square"\nepsilon = 0.5\n' if verifier == "lenient" else ""
    started = start(f'[speculation]\n{DRAFT}verifier = "{verifier}"\n{epsilon}[vllm]\nmax_leniency = {bound}')
    leniency = started.section.workers.leniency
    assert (leniency and (leniency.epsilon, leniency.least)) == expected


def test_workers_get_a_frozen_section_that_json_can_carry(start):
    given = start(f"[speculation]\n{DRAFT}gamma = 2\n[vllm]\nmax_leniency = 0.5").additional_config({"other": 1})
    again = json.loads(json.dumps(given))
    assert again["other"] == 1
    section = read_section(again)
    assert section.workers.leniency.least == 0.5
    assert Path(section.config).is_absolute()


@pytest.mark.parametrize("given", [None, {}, {"other": {}}, "text"])
def test_without_a_section_there_is_nothing_to_do(given):
    assert read_section(given) is None


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"gkt": "gkt.toml"}, "must be a table"),
        ({"gkt": {}}, "config is missing"),
        ({"gkt": {"confg": "gkt.toml"}}, "confg is not a known key"),
        ({"gkt": {"config": 3}}, "config must be a valid string"),
    ],
)
def test_a_wrong_section_is_refused_by_its_key(given, words):
    with pytest.raises(ConfigError, match=words):
        read_section(given)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[speculation]\ndrafter = "model"\ndraft = "./missing"', "names no folder"),
        ('[speculation]\ndrafter = "model"\ndraft = "~/missing"', "names no folder"),
        ('[speculation]\ndrafter = "model"\ndraft = "models/small/missing"', "names no folder"),
        (f'[speculation]\n{DRAFT}verifier = "nobody"', "verifier must name a known"),
        ("[speculation]\ngamma = 0", "gamma must be an integer of at least 1"),
    ],
)
def test_what_cannot_be_done_is_a_start_up_error(start, text, words):
    with pytest.raises(ConfigError, match=words):
        start(text)


def test_a_draft_may_be_below_the_home_of_who_starts_it(start, monkeypatch):
    monkeypatch.setenv("HOME", str(model_dir("draft").parent))
    started = start('[speculation]\ndrafter = "model"\ndraft = "~/draft"\ngamma = 4')
    assert started.speculative_config["model"] == str(model_dir("draft"))


@pytest.mark.parametrize("drafts_by", ["vllm", "gkt"])
def test_a_draft_that_is_no_folder_here_is_said_to_come_from_the_hub(start, drafts_by):
    speculation = '[speculation]\ndrafter = "model"\ndraft = "owner/small"\ngamma = 4\n'
    started = start(f'{speculation}[vllm]\ndrafts_by = "{drafts_by}"')
    assert started.active == ["drafts by model owner/small of the Hub, 4 tokens a block"]


def test_a_draft_with_another_vocabulary_is_refused_with_both_sizes(start, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    config = json.loads((model_dir("draft") / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"vocab_size": config["vocab_size"] + 7}))
    (other / "model.safetensors").write_bytes(b"weights")
    with pytest.raises(ConfigError, match=f"got {config['vocab_size'] + 7} tokens"):
        start(f'[speculation]\ndrafter = "model"\ndraft = "{other}"')


@pytest.mark.parametrize(
    ("wrong", "words"), [("missing", "names no folder"), ("empty", "no config.json"), ("other", "more than padding")]
)
def test_the_draft_of_our_own_drafter_is_looked_at_before_anything_is_loaded(start, tmp_path, wrong, words):
    for name in ("empty", "other"):
        (tmp_path / name).mkdir()
    config = json.loads((model_dir("draft") / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps(config | {"vocab_size": 7 * config["vocab_size"]}))
    (tmp_path / "other" / "model.safetensors").write_bytes(b"weights")
    with pytest.raises(ConfigError, match=words):
        start(f'[speculation]\ndrafter = "model"\ndraft = "./{wrong}"\n[vllm]\ndrafts_by = "gkt"')


def test_a_release_that_was_not_tried_is_refused_unless_the_operator_lets_it_through(start):
    with pytest.raises(BackendError, match=r"vLLM 0\.99\.0 was not tried"):
        start("", version="0.99.0")
    started = start("[vllm]\nallow_untested_version = true", version="0.99.0+cpu")
    assert any("was not tried" in note for note in started.notes)


def test_leniency_without_drafts_is_a_start_up_error(start):
    started = start(f'[speculation]\n{DRAFT}verifier = "lenient"\nepsilon = 0.5')
    with pytest.raises(ConfigError, match="leniency needs drafts"):
        started.check(SimpleNamespace(speculative_config=None, use_v2_model_runner=False), serves=False, env={})


def test_leniency_and_block_verification_exclude_each_other(start):
    started = start(f'[speculation]\n{DRAFT}verifier = "lenient"\nepsilon = 0.5', given={"method": "draft_model"})
    engine = SimpleNamespace(rejection_sample_method="block")
    with pytest.raises(ConfigError, match="exclude each other"):
        started.check(SimpleNamespace(speculative_config=engine, use_v2_model_runner=True), serves=False, env={})


def test_what_has_no_effect_in_this_engine_is_said_in_the_banner(start):
    started = start(f'[speculation]\n{DRAFT}verifier = "block"')
    engine = SimpleNamespace(rejection_sample_method="block")
    started.check(SimpleNamespace(speculative_config=engine, use_v2_model_runner=False), serves=False, env={})
    assert any("token by token instead of by block" in note for note in started.notes)


def test_a_key_about_drafts_without_any_is_a_start_up_error(start):
    with pytest.raises(ConfigError, match=r"vllm\.largest_batch is about drafts"):
        start("[vllm]\nlargest_batch = 4")


def test_a_server_that_should_guide_does_not_start_where_vllm_leaves_the_plugin_out(start, guided):
    started = start(guided)
    engine = SimpleNamespace(speculative_config=None, use_v2_model_runner=True)
    for env in ({}, {"VLLM_PLUGINS": ""}, {"VLLM_PLUGINS": "other"}):
        with pytest.raises(ConfigError, match="only where it is named"):
            started.check(engine, serves=True, env=env)
    with pytest.raises(ConfigError, match="unset VLLM_USE_RUST_FRONTEND"):
        started.check(engine, serves=True, env={"VLLM_PLUGINS": "gkt", "VLLM_USE_RUST_FRONTEND": "1"})
    started.check(engine, serves=True, env={"VLLM_PLUGINS": "other,gkt", "VLLM_USE_RUST_FRONTEND": "0"})
    started.check(engine, serves=False, env={})


def test_an_engine_that_is_no_server_does_not_say_that_it_guides(start, guided):
    started = start(guided)
    assert started.active == ["guidance, pipelines.default by large"]
    started.check(SimpleNamespace(speculative_config=None, use_v2_model_runner=False), serves=False, env={})
    assert started.active == []
    assert any("is not guided" in note for note in started.notes)


def test_a_server_that_guides_nobody_starts_without_the_plugin_and_says_what_is_missing(start):
    started = start("")
    started.check(SimpleNamespace(speculative_config=None, use_v2_model_runner=False), serves=True, env={})
    assert any("requests are not on record" in note and "VLLM_PLUGINS=gkt" in note for note in started.notes)


def test_guidance_wants_the_server_itself_as_student_and_another_engine_as_teacher(start, guided):
    with pytest.raises(ConfigError, match="student must be this server"):
        start(guided.replace('student = "here"', 'student = "large"'))
    with pytest.raises(ConfigError, match="teacher cannot be this server too"):
        start(guided.replace('teacher = "large"', 'teacher = "here"'))


def test_a_pipeline_without_a_teacher_guides_nobody(start, guided):
    assert not start(guided.replace('teacher = "large"\n', "")).guidance


@pytest.mark.parametrize(
    ("observed", "drafts", "said"),
    [
        ({"per_request_spec_decode_metrics": "none"}, "drafts", ("drafts counted by request", None)),
        ({}, "drafts", (None, "does not count drafts by request")),
        ({"per_request_spec_decode_metrics": "none"}, None, (None, None)),
    ],
)
def test_drafts_are_counted_by_request_where_there_are_any_and_it_is_said_where_vllm_cannot(
    start, observed, drafts, said
):
    started = start("")
    engine = SimpleNamespace(speculative_config=drafts, observability_config=SimpleNamespace(**observed))
    started.count_requests(engine)
    active, note = said
    assert started.active == ([active] if active else [])
    assert [note in one for one in started.notes] == ([True] if note else [])
    if drafts is None:
        assert engine.observability_config.per_request_spec_decode_metrics == "none"
