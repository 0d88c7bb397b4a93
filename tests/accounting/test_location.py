from pathlib import Path

import pytest

from gkt_plugins.accounting.location import Location
from gkt_plugins.errors import ConfigError


def test_a_relative_file_starts_at_the_folder_that_is_given_and_an_absolute_one_does_not() -> None:
    assert Location.of("sqlite:///gkt.db", Path("/books")).path == Path("/books/gkt.db")
    assert Location.of("sqlite:////var/gkt.db", Path("/books")).path == Path("/var/gkt.db")
    assert Location.of(Path("gkt.db"), Path("/books")).path == Path("gkt.db")


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_a_postgresql_url_is_taken_with_its_password_and_shown_without_it(scheme: str) -> None:
    location = Location.of(f"{scheme}://anna:secret@db:5433/books?sslmode=require&password=secret")
    assert location.url is not None
    assert location.url.password == "secret"
    assert str(location) == "postgresql://anna:***@db:5433/books?sslmode=require"


def test_a_location_shows_no_password_whichever_way_it_is_printed() -> None:
    location = Location.of("postgresql://anna:secret@db/books")
    assert "secret" not in f"{location} {location!r} {[location]}"


@pytest.mark.parametrize(
    "url", ["secretbooks", "postgresql://anna:secret@db:port/books", "mysql://anna:secret@db/books", "sqlite://", ""]
)
def test_a_url_that_is_none_is_refused_without_showing_what_may_be_a_password(url: str) -> None:
    with pytest.raises(ConfigError, match=r"ledger\.url must") as caught:
        Location.of(url)
    assert "secret" not in str(caught.value).replace("'secretbo'", "")
