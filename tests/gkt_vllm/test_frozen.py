"""One server's processes go by the same text, also when the file is edited while they start."""

from __future__ import annotations

import multiprocessing
import random
from pathlib import Path

import pytest

from gkt_plugins.errors import ConfigError
from gkt_vllm.frozen import FrozenFile, freeze

TEXT = '[vllm]\nmax_leniency = 0.5  # "quoted", and ünïcode\n'


def in_a_child(path: Path) -> tuple[str, bool]:
    found = freeze(path)
    return found.text, found.inherited


def asked_in_a_child(path: Path) -> tuple[str, bool]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(in_a_child, (path,))


@pytest.fixture
def file(tmp_path, monkeypatch) -> Path:
    monkeypatch.delenv("GKT_VLLM_FROZEN", raising=False)
    path = tmp_path / "gkt.toml"
    path.write_text(TEXT)
    return path


def test_an_api_server_goes_by_what_its_frontend_read_whatever_became_of_the_file(file, monkeypatch):
    frozen = freeze(file)
    env = {}
    frozen.hand_down(env)
    monkeypatch.setenv(*env.popitem())
    file.write_text("[vllm]\n")
    assert asked_in_a_child(file) == (TEXT, True)
    file.unlink()
    assert asked_in_a_child(file) == (TEXT, True)


def test_a_server_that_starts_anew_reads_the_file_anew_though_it_has_the_variable(file, monkeypatch):
    env = {}
    freeze(file).hand_down(env)
    monkeypatch.setenv(*env.popitem())
    file.write_text("[vllm]\n")
    assert freeze(file).text == "[vllm]\n"
    assert not freeze(file).inherited
    file.with_name("other.toml").write_text("")
    assert asked_in_a_child(file.with_name("other.toml")) == ("", False)


def test_the_digest_is_of_the_text_and_the_configuration_is_what_it_says(file):
    frozen = freeze(file)
    assert frozen.digest == FrozenFile(file, TEXT).digest != FrozenFile(file, TEXT + " ").digest
    file.write_text("[vllm]\n")
    assert frozen.config().vllm.max_leniency == 0.5
    assert frozen.config().base_dir == file.parent


def test_a_file_that_no_environment_holds_is_refused_and_a_large_one_is_not(file):
    FrozenFile(file, "# a price\n" * 100_000).hand_down({})
    noise = random.Random(0).randbytes(100_000).hex()
    with pytest.raises(ConfigError, match="must be at most 100,000 characters when it is compressed"):
        FrozenFile(file, f"# {noise}").hand_down({})


def test_a_file_that_is_not_there_is_named(file):
    file.unlink()
    with pytest.raises(ConfigError, match="must name a file, and there is none at"):
        freeze(file)
