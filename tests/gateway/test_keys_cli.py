"""``gkt keys new``."""

from __future__ import annotations

from hashlib import sha256

import pytest
from typer.testing import CliRunner

from gkt_plugins.cli import app
from gkt_plugins.cli.keys import new_key
from gkt_plugins.config import load_config
from gkt_plugins.errors import ConfigError
from gkt_plugins.gateway.access import MIN_KEY_CHARACTERS, Access

BASE = '[engines.e]\nadapter = "transformers"\nmodel = "m"\n\n[pipelines.default]\nstudent = "e"'


def run(*arguments):
    result = CliRunner().invoke(app, ["keys", "new", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def holder(key: str, text: str):
    scope = {"headers": [(b"authorization", b"Bearer " + key.encode())]}
    return Access.from_config(load_config(text=text)).authenticate(scope)


def test_keys_are_long_random_and_never_the_same():
    made = {new_key() for _ in range(100)}
    assert len(made) == 100
    assert all(key.startswith("gkt-") and len(key) >= MIN_KEY_CHARACTERS for key in made)


def test_the_key_alone_is_on_stdout_and_its_section_on_stderr():
    result = run("team-a")
    key = result.stdout.strip()
    assert key.startswith("gkt-")
    assert f'[gateway.keys.team-a]\nsha256 = "{sha256(key.encode()).hexdigest()}"\n' in result.stderr
    assert key not in result.stderr


@pytest.mark.parametrize("end", ["", "\n", "\n\n"])
def test_the_section_is_added_to_the_file_and_lets_the_key_in(tmp_path, end):
    file = tmp_path / "gkt.toml"
    file.write_text(BASE + end)
    limits = ["--requests-per-minute", 60, "--budget-per-day", "2.50"]
    key = run("team-a", "--config", file, "--admin", "--pipeline", "default", *limits).stdout.strip()
    assert file.read_text().startswith(BASE + "\n\n[gateway.keys.team-a]\n")
    client = holder(key, file.read_text())
    assert (client.name, client.admin, client.pipelines) == ("team-a", True, frozenset({"default"}))
    assert (client.requests_per_minute, client.budget_nano) == (60, 2_500_000_000)


def test_a_second_key_of_the_same_name_is_refused_and_the_file_left_alone(tmp_path):
    file = tmp_path / "gkt.toml"
    file.write_text(BASE)
    run("team-a", "--config", file)
    before = file.read_text()
    with pytest.raises(ConfigError, match="has a key 'team-a' already"):
        run("team-a", "--config", file)
    assert file.read_text() == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["team a"], "letters, digits, - and _"),
        (["x" * 65], "1 to 64"),
        (["a", "--budget-per-day", "-1"], "budget_per_day"),
        (["a", "--budget-per-day", "0.5e3"], "decimal string"),
        (["a", "--pipeline", "other"], "got 'other'"),
    ],
)
def test_what_is_not_allowed_is_said_and_changes_nothing(tmp_path, arguments, said):
    file = tmp_path / "gkt.toml"
    file.write_text(BASE)
    with pytest.raises(ConfigError, match=said):
        run(*arguments, "--config", file)
    assert file.read_text() == BASE


def test_a_limit_that_is_no_limit_is_refused_by_the_command_line():
    assert run("a", "--requests-per-minute", 0).exit_code == 2
