"""Who gets in: keys, admins, and what only this machine may do where there are no keys."""

from __future__ import annotations

import base64
from hashlib import sha256

import pytest

from gkt_plugins.cli.keys import new_key
from gkt_plugins.config import load_config
from gkt_plugins.errors import ConfigError
from gkt_plugins.gateway.access import Access, is_loopback, require_keys_beyond_loopback
from gkt_plugins.gateway.refusals import RefusedError

TEAM = new_key()
ADMIN = new_key()


def digest(key: str) -> str:
    return sha256(key.encode()).hexdigest()


def access_of(*sections: str) -> Access:
    engine = '[engines.e]\nadapter = "transformers"\nmodel = "m"\n[pipelines.default]\nstudent = "e"\n'
    return Access.from_config(load_config(text=engine + "\n".join(sections)))


@pytest.fixture
def keyed() -> Access:
    return access_of(
        f'[gateway.keys.team]\nsha256 = "{digest(TEAM)}"\npipelines = ["default"]\nbudget_per_day = "2.50"',
        f'[gateway.keys.boss]\nsha256 = "{digest(ADMIN)}"\nadmin = true',
    )


def scope(**headers: str) -> dict[str, object]:
    return {"headers": [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]}


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


# ---------------------------------------------------------------------------------------------------------------- keys


def test_the_bearer_of_a_key_is_known_by_name_with_its_rights_and_limits(keyed):
    client = keyed.authenticate(scope(authorization=f"Bearer {TEAM}"))
    assert (client.name, client.admin, client.budget_nano) == ("team", False, 2_500_000_000)
    assert client.may_use("default")
    assert not client.may_use("other")


def test_a_key_without_a_list_of_pipelines_may_use_all(keyed):
    assert keyed.authenticate(scope(authorization=f"Bearer {ADMIN}")).may_use("whatever")


def test_the_scheme_is_read_in_any_case_and_extra_spaces_do_no_harm(keyed):
    assert keyed.authenticate(scope(authorization=f"bearer   {TEAM} ")).name == "team"


@pytest.mark.parametrize(
    "sent",
    [
        {},
        {"authorization": ""},
        {"authorization": "Bearer"},
        {"authorization": "Bearer "},
        {"authorization": f"Bearer {TEAM[:-1]}"},
        {"authorization": f"Bearer {TEAM}x"},
        {"authorization": f"Bearer {TEAM.upper()}"},
        {"authorization": f"Bearer {digest(TEAM)}"},
        {"authorization": TEAM},
        {"authorization": f"Token {TEAM}"},
        {"authorization": "Bearer ÿþ\x00"},
        {"authorization": "Bearer " + "x" * 100_000},
        {"x_api_key": TEAM},
    ],
    ids=lambda sent: repr(sent)[:40],
)
def test_everybody_else_is_told_401_and_not_what_was_sent(keyed, sent):
    with pytest.raises(RefusedError) as refused:
        keyed.authenticate(scope(**sent))
    assert (refused.value.status, refused.value.code) == (401, "invalid_api_key")
    assert refused.value.headers == {"www-authenticate": "Bearer"}
    assert TEAM[4:-1] not in str(refused.value)


def test_a_short_key_never_opens_even_where_the_file_has_its_digest():
    weak = access_of(f'[gateway.keys.weak]\nsha256 = "{digest("sk-1234")}"')
    with pytest.raises(RefusedError):
        weak.authenticate(scope(authorization="Bearer sk-1234"))


def test_what_is_kept_of_a_key_does_not_show_it(keyed):
    assert TEAM not in repr(vars(keyed))


def test_two_names_with_one_key_are_refused_by_name():
    section = f'sha256 = "{digest(TEAM)}"\n'
    with pytest.raises(ConfigError, match=r"keys\.b\.sha256 is the same key as gateway\.keys\.a.*gkt keys new b"):
        access_of(f"[gateway.keys.a]\n{section}[gateway.keys.b]\n{section}")


def test_a_key_for_a_pipeline_that_does_not_exist_is_refused_with_the_nearest_that_does():
    with pytest.raises(ConfigError, match=r"a\.pipelines must name pipelines, got 'defualt'.*mean 'default'"):
        access_of(f'[gateway.keys.a]\nsha256 = "{digest(TEAM)}"\npipelines = ["defualt"]')


def test_a_key_written_in_place_of_its_digest_is_refused_and_not_repeated():
    with pytest.raises(ConfigError, match="must be 64 digits of lower-case hex") as refused:
        access_of(f'[gateway.keys.a]\nsha256 = "{TEAM}"')
    assert TEAM not in str(refused.value)


# -------------------------------------------------------------------------------------------------------------- admins


@pytest.mark.parametrize("authorization", [f"Bearer {ADMIN}", basic("anybody", ADMIN), basic("", ADMIN)])
def test_an_admin_s_key_opens_pages_as_bearer_or_as_a_browser_s_password(keyed, authorization):
    assert keyed.authenticate_admin(scope(authorization=authorization)).name == "boss"


@pytest.mark.parametrize("authorization", [f"Bearer {TEAM}", basic("team", TEAM)])
def test_a_key_without_the_right_is_told_403(keyed, authorization):
    with pytest.raises(RefusedError, match=r"gateway\.keys\.team\.admin") as refused:
        keyed.authenticate_admin(scope(authorization=authorization))
    assert (refused.value.status, refused.value.code) == (403, "admin_required")


@pytest.mark.parametrize("authorization", ["", "Basic", "Basic !!!", "Basic " + "A" * 41, basic("boss", "no")])
def test_a_browser_without_a_key_is_asked_for_one(keyed, authorization):
    with pytest.raises(RefusedError) as refused:
        keyed.authenticate_admin(scope(authorization=authorization))
    assert refused.value.status == 401
    assert refused.value.headers["www-authenticate"].startswith("Basic ")


def test_a_browser_s_password_does_not_pay_for_requests(keyed):
    with pytest.raises(RefusedError):
        keyed.authenticate(scope(authorization=basic("boss", ADMIN)))


# --------------------------------------------------------------------------------------------------------- without keys


@pytest.mark.parametrize(
    "host",
    ["localhost", "localhost:8400", "LOCALHOST:8400", "127.0.0.1:8400", "127.1.2.3", "[::1]:8400", "a.localhost"],
)
def test_without_keys_this_machine_is_let_in(host):
    client = access_of().authenticate(scope(host=host))
    assert client.name == ""
    assert client.admin


@pytest.mark.parametrize(
    "host",
    ["", "evil.example", "evil.example:8400", "127.0.0.1.evil.example", "localhost.evil.example", "10.0.0.1", "[::2]",
     "localhost@evil.example", "localhost:8400:1", "127.0.0.1 ", "0.0.0.0:8400", "2130706433", "[::1", "\x00"],
)  # fmt: skip
def test_a_name_that_is_not_this_machine_s_is_refused(host):
    with pytest.raises(RefusedError) as refused:
        access_of().authenticate(scope(host=host))
    assert (refused.value.status, refused.value.code) == (403, "host_not_allowed")


def test_a_request_without_any_host_is_refused():
    with pytest.raises(RefusedError):
        access_of().authenticate(scope())


@pytest.mark.parametrize("origin", ["http://localhost:3000", "http://127.0.0.1:8400", "http://[::1]:1"])
def test_a_page_of_this_machine_may_ask(origin):
    assert access_of().authenticate(scope(host="localhost", origin=origin)).admin


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1.evil.example", "http://[", "x"])
def test_a_page_from_elsewhere_may_not(origin):
    with pytest.raises(RefusedError) as refused:
        access_of().authenticate_admin(scope(host="localhost:8400", origin=origin))
    assert (refused.value.status, refused.value.code) == (403, "origin_not_allowed")


def test_with_keys_any_name_and_origin_will_do(keyed):
    sent = scope(host="models.example", origin="https://app.example", authorization=f"Bearer {TEAM}")
    assert keyed.authenticate(sent).name == "team"


# ------------------------------------------------------------------------------------------------------------ listening


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.1.5", "gateway.example", "localhost.example"])
def test_without_keys_nothing_listens_beyond_loopback(host, keyed):
    with pytest.raises(ConfigError, match="gkt keys new NAME"):
        require_keys_beyond_loopback(host, access_of())
    require_keys_beyond_loopback(host, keyed)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "[::1]", "127.0.0.2"])
def test_loopback_needs_no_keys(host):
    assert is_loopback(host)
    require_keys_beyond_loopback(host, access_of())
