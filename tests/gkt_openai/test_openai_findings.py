"""Where what is known of an endpoint is kept."""

from __future__ import annotations

import pwd

import pytest

from gkt_openai.findings import Findings, FindingsFile

FOUND = Findings(chat=True, completions=True, chat_route="continue_final_message", stream_usage="asked")


@pytest.mark.parametrize(
    ("env", "folder"),
    [
        ({"GKT_CACHE_DIR": "/a", "XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/a"),
        ({"XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/b/gkt"),
        ({"HOME": "/c"}, "/c/.cache/gkt"),
    ],
)
def test_the_environment_says_where(env, folder):
    assert FindingsFile("http://x", "m", env).path.is_relative_to(folder)


def test_a_user_without_a_home_keeps_it_among_temporary_files(monkeypatch, tmp_path):
    def unknown(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    file = FindingsFile("http://x", "m", {})
    assert file.path.is_relative_to(tmp_path)
    file.write(FOUND)
    assert file.read() == FOUND


def test_a_folder_that_cannot_be_written_is_worth_a_warning_and_no_more(tmp_path, caplog):
    (tmp_path / "taken").write_text("a file")
    file = FindingsFile("http://x", "m", {"GKT_CACHE_DIR": str(tmp_path / "taken")})
    file.write(FOUND)
    assert "cannot be kept" in caplog.text
    assert file.read() is None
