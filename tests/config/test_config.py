"""What a configuration may say, and what is said about one that it may not."""

from __future__ import annotations

import pytest

from gkt_plugins.config import as_written, chosen_names, environment_names
from gkt_plugins.errors import ConfigError

ENGINES = """\
[engines.big]
adapter = "fake"
model = "large"
[engines.small]
adapter = "fake"
model = "tiny"
"""

WHOLE = (
    ENGINES
    + """\
[prices.large]
input_per_million = "2.50"
output_per_million = "10.00"
[prices.tiny]
per_hour = "1.20"
[price_sources.fallback]
source = "catalogue"
model = "any"
[pipelines.default]
teacher = "big"
student = "small"
[pipelines.default.guidance]
length = "fixed"
tokens = 25
cut = "lines"
least = 2
on_teacher_error = "fail"
[speculation]
drafter = "model"
draft = "models/small-draft"
gamma = 4
verifier = "lenient"
rule = "square"
epsilon = 0.5
[ledger]
url = "sqlite:///other.db"
[gateway]
port = 8500
[gateway.keys.team]
sha256 = "0000000000000000000000000000000000000000000000000000000000000000"
[vllm]
max_leniency = 0.5
"""
)


# ------------------------------------------------------------------------------------------------------ what is loaded


def test_every_section_is_read_into_its_own_type(load, fake_options):
    config = load(WHOLE)
    assert config.engines["big"].adapter == "fake"
    assert config.engines["big"].options == fake_options(model="large")
    assert config.prices["large"].input_per_million == "2.50"
    assert config.price_sources["fallback"].options == fake_options(model="any")
    pipeline = config.pipelines["default"]
    assert (pipeline.teacher, pipeline.student) == ("big", "small")
    assert pipeline.guidance.length_options.tokens == 25
    assert pipeline.guidance.cut_options.least == 2
    assert pipeline.guidance.on_teacher_error == "fail"
    assert config.speculation is not None
    assert (config.speculation.gamma, config.speculation.verifier) == (4, "lenient")
    assert (config.speculation.rule, config.speculation.epsilon) == ("square", 0.5)
    assert config.vllm.max_leniency == 0.5
    assert (config.gateway.port, config.gateway.keys["team"].admin) == (8500, False)


def test_an_empty_configuration_has_the_documented_defaults(load):
    config = load("")
    assert (config.engines, config.pipelines, config.speculation) == ({}, {}, None)
    assert config.ledger.url == "sqlite:///gkt.db"
    assert config.gateway.host == "127.0.0.1"
    assert config.vllm.max_leniency == 1.0


def test_guidance_that_is_not_written_has_the_policies_own_defaults(load):
    guidance = load(ENGINES + '[pipelines.p]\nstudent = "small"\nteacher = "big"').pipelines["p"].guidance
    assert (guidance.length, guidance.cut, guidance.on_teacher_error) == ("fixed", "word", "student")
    assert guidance.length_options.tokens == 40


def test_a_configuration_cannot_be_changed(load):
    with pytest.raises(ValueError, match="frozen"):
        load(WHOLE).vllm.max_leniency = 0.1


def test_a_configuration_written_out_reads_back_the_same(load):
    config = load(WHOLE)
    flat = as_written(config)
    assert flat["pipelines"]["default"]["guidance"]["tokens"] == 25
    assert "length_options" not in flat["pipelines"]["default"]["guidance"]
    assert flat["engines"]["big"]["timeout_s"] == 30.0
    assert "base_dir" not in flat


def test_everything_that_plugins_provide_is_listed_with_its_family(load):
    chosen = {key: (family, name) for key, family, name in chosen_names(load(WHOLE))}
    assert chosen["engines.big.adapter"] == ("engines", "fake")
    assert chosen["pipelines.default.guidance.cut"] == ("cutting_policies", "lines")
    assert chosen["speculation.rule"] == ("leniency_rules", "square")


def test_the_environment_variables_that_it_names_are_listed(load):
    config = load(WHOLE, "engines.big.api_key_env=CLOUD_KEY")
    assert environment_names(config) == {"engines.big.api_key_env": "CLOUD_KEY"}


def test_the_same_text_loads_twice_to_the_same_configuration(load):
    assert load(WHOLE) == load(WHOLE)


# ------------------------------------------------------------------------------------------------------------ overrides


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("models/small", "models/small"),
        ('"quoted"', "quoted"),
        ("", ""),
        ("a=b", "a=b"),
        (" spaces ", "spaces"),
    ],
)
def test_the_value_of_an_override_is_toml_or_else_a_bare_string(load, written, value):
    assert load(ENGINES, f"engines.big.model={written}").engines["big"].options.model == value


def test_overrides_win_over_the_file_and_later_ones_over_earlier_ones(load):
    config = load(WHOLE, "pipelines.default.guidance.tokens=3", "pipelines.default.guidance.tokens=20")
    assert config.pipelines["default"].guidance.length_options.tokens == 20


def test_an_override_may_add_a_table_and_quote_a_name(load):
    config = load("", 'engines."a.b"={adapter = "fake", model = "m"}')
    assert config.engines["a.b"].options.model == "m"


@pytest.mark.parametrize("written", ["tokens", "=3", "a b=3", "a.=3"])
def test_an_override_without_a_key_is_refused(refusal, written):
    assert refusal("", written) == [f"an override must be dotted.key=value, got {written!r}"]


def test_an_override_with_half_a_list_is_not_taken_for_a_string(refusal):
    (line,) = refusal(ENGINES, "engines.big.model=[1, 2")
    assert line.startswith("the value of the override 'engines.big.model=[1, 2' is not TOML")


def test_an_override_below_a_value_is_refused(refusal):
    (line,) = refusal(ENGINES, "engines.big.model.x=1")
    assert line == "the override 'engines.big.model.x=1' needs engines.big.model to be a table, and it is none"


def test_an_error_in_an_override_names_the_override(refusal):
    assert refusal("[vllm]\nmax_leniency = 0.5", "vllm.max_leniency=2") == [
        "vllm.max_leniency must be in (0, 1], got 2 (override 'vllm.max_leniency=2'); "
        "1 is lossless, smaller accepts more draft tokens"
    ]


# ---------------------------------------------------------------------------------------------------------- wrong keys


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[gatway]", "gatway is not a known section (line 1); did you mean 'gateway'?"),
        ("[ledger]\nurll = 1", "ledger.urll is not a known key (line 2); did you mean 'url'?"),
        (ENGINES + "modle = 1", "engines.small.modle is not a known key (line 7); did you mean 'model'?"),
        (
            ENGINES + "retry.atempts = 1",
            "engines.small.retry.atempts is not a known key (line 7); did you mean 'attempts'?",
        ),
        (
            ENGINES + "retries = [{},\n{atempts = 1}]",
            "engines.small.retries[1].atempts is not a known key (line 8); did you mean 'attempts'?",
        ),
        (
            WHOLE + "[pipelines.other]\nstudent = 'small'\nteacher = 'big'\nguidance.token = 3",
            "pipelines.other.guidance.token is not a known key (line 42); did you mean 'tokens'?",
        ),
        (
            ENGINES + "[pipelines.p]\nstudent = 'small'\ntokens = 3",
            "pipelines.p.tokens is not a known key (line 9); did you mean 'guidance.tokens'?",
        ),
        (
            "[speculation]\ndrafter = 'model'\ndraft = 'd'\ngama = 1",
            "speculation.gama is not a known key (line 4); did you mean 'gamma'?",
        ),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_valid_one(refusal, text, message):
    assert refusal(text) == [message]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            ENGINES + '[engines.x]\nadapter = "fale"\nanything = 1',
            "engines.x.adapter must name a known engine adapter, got 'fale' (line 8); did you mean 'fake'?",
        ),
        (
            ENGINES + '[pipelines.p]\nstudent = "smal"',
            "pipelines.p.student must name an engine, got 'smal' (line 8); did you mean 'small'?",
        ),
        (
            ENGINES + '[pipelines.p]\nstudent = "small"\nteacher = "bgi"',
            "pipelines.p.teacher must name an engine, got 'bgi' (line 9); did you mean 'big'?",
        ),
        (
            '[pipelines.p]\nstudent = "small"',
            "pipelines.p.student must name an engine, got 'small' (line 2); none is known here",
        ),
        (
            WHOLE.replace('"lines"\nleast = 2', '"wrod"'),
            "pipelines.default.guidance.cut must name a known cutting policy, got 'wrod' (line 21); "
            "did you mean 'word'?",
        ),
        (
            WHOLE.replace('"fixed"', '"fixd"'),
            "pipelines.default.guidance.length must name a known length policy, got 'fixd' (line 19); "
            "did you mean 'fixed'?",
        ),
        (
            WHOLE.replace('"square"', '"sqare"'),
            "speculation.rule must name a known leniency rule, got 'sqare' (line 29); did you mean 'square'?",
        ),
        (
            WHOLE.replace('cut = "lines"\nleast = 2', 'preset = "paper-gsm8"'),
            "pipelines.default.guidance.preset must name a preset, got 'paper-gsm8' (line 21); "
            "did you mean 'paper-gsm8k'?",
        ),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest_known_one(refusal, text, message):
    assert refusal(text) == [message]


# --------------------------------------------------------------------------------------------------------- wrong values


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ENGINES + "timeout_s = 0", "engines.small.timeout_s must be greater than 0, got 0 (line 7)"),
        (
            ENGINES + "timeout_s = 'x'",
            "engines.small.timeout_s must be a valid number, unable to parse string as a number, got 'x' (line 7)",
        ),
        (ENGINES + "retry = 3", "engines.small.retry must be a valid dictionary or instance of Retry, got 3 (line 7)"),
        (ENGINES + "either = [1]", "engines.small.either must be a valid integer, got [1] (line 7)"),
        ("[engines.x]\nadapter = 'fake'", "engines.x.model is missing (line 1)"),
        ("[engines.x]\nmodel = 'm'", "engines.x.adapter is missing (line 1)"),
        ("[pipelines.p]", "pipelines.p.student is missing (line 1)"),
        ("engines = 3", "engines must be a table, got 3 (line 1)"),
        ("[engines]\nx = 3", "engines.x must be a table, got 3 (line 2)"),
        (
            WHOLE.replace("tokens = 25", "tokens = -1"),
            "pipelines.default.guidance.tokens must be at least 0, got -1 (line 20)",
        ),
        (
            WHOLE.replace('"fail"', '"retry"'),
            "pipelines.default.guidance.on_teacher_error must be 'student' or 'fail', got 'retry' (line 23)",
        ),
        (
            WHOLE.replace("gamma = 4", "gamma = 0"),
            "speculation.gamma must be an integer of at least 1, or 'auto', got 0 (line 27)",
        ),
        (
            WHOLE.replace("gamma = 4", "gamma = true"),
            "speculation.gamma must be an integer of at least 1, or 'auto', got True (line 27)",
        ),
        (
            WHOLE.replace("epsilon = 0.5", "epsilon = 0"),
            "speculation.epsilon must be in (0, 1], got 0 (line 30); 1 is lossless, smaller accepts more draft tokens",
        ),
        (
            WHOLE.replace("epsilon = 0.5", "epsilon = nan"),
            "speculation.epsilon must be in (0, 1], got nan (line 30); "
            "1 is lossless, smaller accepts more draft tokens",
        ),
        (
            WHOLE.replace('"lenient"\nrule = "square"', '"exact"'),
            "speculation.epsilon has no effect with verifier 'exact' (line 29); remove it, or choose 'lenient'",
        ),
        (
            "[prices.m]\nper_hour = 1.5",
            'prices.m.per_hour must be a decimal string like "2.50", at least 0 and with at most 9 digits after the '
            "point, got 1.5 (line 2)",
        ),
        (
            "[prices.m]\ninput_per_million = '1'",
            "prices.m is half a price and would make every cost unknown (line 1); "
            "give both input_per_million and output_per_million",
        ),
        (
            ENGINES + "[pipelines.p]\nstudent = 'small'\n[pipelines.p.guidance]\ntokens = 3",
            "pipelines.p.guidance has no effect without a teacher (line 9); add teacher, or remove the section",
        ),
        (
            "[ledger]\nurl = 'sqlite:///a'\nurl_env = 'URL'",
            "ledger has both url and url_env (line 1); keep one of them",
        ),
    ],
)
def test_a_value_that_cannot_be_used_says_what_was_expected_and_what_came(refusal, text, message):
    assert refusal(text) == [message]


def test_everything_that_is_wrong_is_said_at_once_in_the_order_of_the_file(refusal):
    lines = refusal('[vllm]\nmax_leniency = 7\n[engines.x]\nadapter = "fake"\nmodle = 1\n[gatway]\n[gateway]\nhost = 3')
    assert [line.split(" ")[0] for line in lines] == [
        "vllm.max_leniency",
        "engines.x.model",
        "engines.x.modle",
        "gatway",
        "gateway.host",
    ]


# -------------------------------------------------------------------------------------------------------------- secrets


@pytest.mark.parametrize(
    "key", ["api_key", "apikey", "API-KEY", "cloud_api_key", "password", "token", "hf_token", "client_secret"]
)
def test_a_secret_is_refused_unseen_with_the_key_that_names_it_instead(refusal, key):
    (line,) = refusal(ENGINES + f"{key} = 'hunter2'")
    assert line.startswith(f"engines.small.{key} looks like a secret, and secrets are never written here (line 7); ")
    assert "_env" in line
    assert "hunter2" not in line


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:hunter2@host/db",
        "postgresql+psycopg://host/db?user=u&password=hunter2",
        "https://host/v1?api_key=hunter2",
    ],
)
def test_a_url_with_a_secret_inside_is_refused_unseen(refusal, url):
    (line,) = refusal(f"[ledger]\nurl = '{url}'")
    assert line.startswith("ledger.url is a URL with a secret inside, and secrets are never written here (line 2); ")
    assert line.endswith("as url_env")
    assert "hunter2" not in line


@pytest.mark.parametrize(
    "written", ["model = 'postgresql://user@host/db'", "model = 'http://[half'", "api_key_env = 'KEY'"]
)
def test_what_only_resembles_a_secret_is_allowed(load, written):
    text = ENGINES.rpartition("model")[0] + written + ("" if written.startswith("model") else "\nmodel = 'm'")
    assert load(text).engines["small"].adapter == "fake"


def test_the_ledgers_url_may_come_from_the_environment(load):
    ledger = load('[ledger]\nurl_env = "URL"').ledger
    assert ledger.resolved_url({"URL": "sqlite:///x.db"}) == "sqlite:///x.db"
    with pytest.raises(ConfigError, match=r"ledger\.url_env names URL, and that environment variable is not set"):
        ledger.resolved_url({})
