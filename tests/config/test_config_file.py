"""Where a configuration is found, and how errors name their place in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from gkt_plugins.config import load_config
from gkt_plugins.errors import ConfigError


def test_the_file_is_found_by_path_by_environment_and_by_its_usual_name(tmp_path, monkeypatch, plugins):
    for name in ("a.toml", "b.toml", "gkt.toml"):
        (tmp_path / name).write_text(f'[gateway]\nhost = "{name}"')
    monkeypatch.chdir(tmp_path)
    env = {"GKT_CONFIG": str(tmp_path / "b.toml")}
    assert load_config(tmp_path / "a.toml", env=env, plugins=plugins).gateway.host == "a.toml"
    assert load_config(env=env, plugins=plugins).gateway.host == "b.toml"
    found = load_config(env={}, plugins=plugins)
    assert (found.gateway.host, found.base_dir, found.source) == ("gkt.toml", tmp_path, Path("gkt.toml"))


def test_a_missing_file_says_where_it_was_looked_for(tmp_path, plugins):
    with pytest.raises(ConfigError, match=r"no configuration at '.*none\.toml'; write one there"):
        load_config(tmp_path / "none.toml", plugins=plugins)


@pytest.mark.parametrize(
    ("content", "why"), [(b"\xff\xfe", "as UTF-8 text"), (None, "Is a directory")], ids=["not UTF-8", "a folder"]
)
def test_a_file_that_cannot_be_read_says_why(tmp_path, plugins, content, why):
    path = tmp_path / "gkt.toml"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"cannot be read.*{why}"):
        load_config(path, plugins=plugins)


def test_a_byte_order_mark_does_not_matter(tmp_path, plugins):
    path = tmp_path / "gkt.toml"
    path.write_bytes(b'\xef\xbb\xbf[gateway]\nhost = "h"')
    assert load_config(path, plugins=plugins).gateway.host == "h"


def test_what_is_not_toml_is_said_with_its_line(refusal):
    assert refusal("[gateway]\nhost = = 1") == ["the text is not TOML: Invalid value (at line 2, column 8)"]


def test_an_error_in_a_file_names_the_file_and_the_line(tmp_path, plugins):
    path = tmp_path / "gkt.toml"
    path.write_text("[vllm]\n\nmax_leniency = 3")
    with pytest.raises(ConfigError) as caught:
        load_config(path, plugins=plugins)
    assert str(caught.value) == (
        f"vllm.max_leniency must be in (0, 1], got 3 ({path}, line 3); 1 is lossless, smaller accepts more draft tokens"
    )
