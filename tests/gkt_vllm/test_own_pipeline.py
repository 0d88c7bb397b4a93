"""What a server's requests are on record as."""

from __future__ import annotations

import pytest

from gkt_plugins.config import load_config
from gkt_vllm.pipelines import own_pipeline
from gkt_vllm.section import GktSection

SECTION = GktSection(config="gkt.toml")
HERE = '[engines.here]\nadapter = "vllm"\nmodel = "priced"\n'
CLOUD = '[engines.cloud]\nadapter = "openai"\nbase_url = "http://127.0.0.1:1/v1"\nmodel = "large"\n'


@pytest.mark.parametrize(
    ("text", "pipeline", "role", "guides", "student"),
    [
        ("", "vllm", "target", False, ("vllm", "served")),
        (HERE, "vllm", "target", False, ("here", "priced")),
        (CLOUD, "vllm", "target", False, ("vllm", "served")),
        (CLOUD + '[pipelines.default]\nstudent = "cloud"\n', "vllm", "target", False, ("vllm", "served")),
        (HERE + '[pipelines.default]\nstudent = "here"\n', "default", "student", False, ("here", "priced")),
        (
            HERE + CLOUD + '[pipelines.default]\nstudent = "here"\nteacher = "cloud"\n',
            *("default", "student", True, ("here", "priced")),
        ),
        (
            HERE + HERE.replace("here", "there"),
            *("vllm", "target", False, ("vllm", "served")),
        ),
    ],
)
def test_a_server_has_the_pipeline_whose_student_it_is_or_one_for_its_records(text, pipeline, role, guides, student):
    own = own_pipeline(load_config(text=text), SECTION, "served")
    assert (own.name, own.role, own.guides) == (pipeline, role, guides)
    assert list(own.config.pipelines) == [pipeline]
    engine = own.config.pipelines[pipeline].student
    assert (engine, own.config.engines[engine].options.model) == student


def test_a_model_s_name_may_have_any_characters():
    name = 'models/"quoted" \\ ünïcode'
    own = own_pipeline(load_config(text=""), SECTION, name)
    assert own.config.engines["vllm"].options.model == name
