import json
import logging
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from gkt_plugins.accounting.accountant import price_sources
from gkt_plugins.accounting.price_list import PATH, ListPrices, checksum, load_price_list
from gkt_plugins.accounting.price_list_update import reduced
from gkt_plugins.accounting.prices import cost_nano
from gkt_plugins.config import load_config
from gkt_plugins.contracts import Price, Usage
from gkt_plugins.errors import ConfigError
from gkt_plugins.plugins import load_plugins

DOCUMENT = json.loads(PATH.read_text(encoding="utf-8"))
MADE = date.fromisoformat(DOCUMENT["date"])


def write(tmp_path: Path, **fields: Any) -> Path:
    """A list of one model, with ``fields`` in place of the right ones and a checksum that fits."""
    document = {"date": "2026-10-18", "prices": {"m": {"input_per_million": "1", "output_per_million": "2"}}} | fields
    path = tmp_path / "list.json"
    path.write_text(json.dumps({"sha256": checksum(document["prices"])} | document))
    return path


def test_the_list_that_ships_says_where_it_is_from_and_of_when_and_has_its_checksum() -> None:
    assert "LiteLLM" in DOCUMENT["source"]
    assert "MIT" in DOCUMENT["license"]
    assert len(DOCUMENT["source_sha256"]) == 64
    assert DOCUMENT["sha256"] == checksum(DOCUMENT["prices"])
    assert "Berri AI" in PATH.with_name("price_list.LICENSE").read_text()


def test_every_price_of_the_list_that_ships_is_whole_and_not_zero() -> None:
    prices = load_price_list()
    assert len(prices) > 1000
    for model, price in prices.items():
        assert price.input_nano is not None, model
        assert price.output_nano is not None, model
        assert price.input_nano + price.output_nano > 0, model
        assert price.source == f"list {MADE}"
        assert price.currency == "USD"


def test_a_known_model_costs_what_its_provider_says() -> None:
    price = ListPrices(load_price_list()).price("gpt-4o")
    assert price == Price("USD", 2_500_000_000, 10_000_000_000, 1_250_000_000, source=f"list {MADE}")


def test_a_model_that_the_list_does_not_know_has_no_price() -> None:
    assert ListPrices(load_price_list()).price("models/small") is None


def test_a_provider_s_name_is_put_before_the_engine_s() -> None:
    price = Price(input_nano=1, output_nano=2)
    source = ListPrices({"together_ai/meta/llama": price}, provider="together_ai")
    assert source.price("meta/llama") == price
    assert source.price("together_ai/meta/llama") is None


def test_a_prompt_longer_than_the_price_holds_for_costs_something_unknown() -> None:
    price = Price(input_nano=1_000_000, output_nano=1_000_000, max_prompt_tokens=200_000)
    assert cost_nano(Usage(200_000, None, 1), price) == 200_001
    assert cost_nano(Usage(200_001, None, 1), price) is None


def test_a_list_that_was_changed_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, sha256="0" * 64)
    with pytest.raises(ConfigError, match=r"must have the checksum 0{64}, has .*write your own prices into"):
        load_price_list(path)


@pytest.mark.parametrize(
    ("prices", "message"),
    [
        ({"m": {"input_per_million": "-1", "output_per_million": "2"}}, "must be a decimal string .* got '-1'"),
        ({"m": {"input_per_million": "1"}}, "is half a price"),
        ({"m": {"input_per_million": 1, "output_per_million": 2}}, "must be a decimal string"),
        ({"m": {"input_per_token": "1", "output_per_million": "2"}}, "must have keys out of input_per_million"),
        ({"m": "free"}, "must have keys out of input_per_million"),
        (
            {"m": {"input_per_million": "1", "output_per_million": "2", "max_prompt_tokens": 0}},
            "max_prompt_tokens must be a number of at least 1, got 0",
        ),
    ],
    ids=["negative", "half", "float", "other key", "no table", "no prompt"],
)
def test_a_price_that_is_none_is_named_with_its_model(tmp_path: Path, prices: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=rf"list\.json': prices\.m.*{message}"):
        load_price_list(write(tmp_path, prices=prices))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"prices": {}, "sha256": "", "date": "yesterday"}'])
def test_a_list_that_is_damaged_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "list.json").write_text(content)
    with pytest.raises(ConfigError, match=r"list\.json' cannot be read: .*; install gkt-plugins again"):
        load_price_list(tmp_path / "list.json")


def test_an_old_list_is_warned_of_and_used(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        load_price_list(max_age_days=120, today=MADE + timedelta(days=120))
        assert not caplog.records
        assert "gpt-4o" in load_price_list(max_age_days=120, today=MADE + timedelta(days=121))
    assert f"the price list is of {MADE}, 121 days old" in caplog.text


def test_the_list_is_asked_for_what_prices_does_not_give_and_records_name_it(tmp_path: Path) -> None:
    text = (
        '[prices.gpt-4o]\ninput_per_million = "1"\noutput_per_million = "1"\n'
        '[price_sources.public]\nsource = "list"\n'
        '[price_sources.together]\nsource = "list"\nprovider = "together_ai"\n'
    )
    plugins = load_plugins()
    prices = price_sources(load_config(text=text, plugins=plugins), plugins)
    overridden, public = prices.price("gpt-4o"), prices.price("gpt-4o-mini")
    assert overridden is not None
    assert (overridden.input_nano, overridden.source) == (1_000_000_000, "config")
    assert public is not None
    assert (public.input_nano, public.source) == (150_000_000, f"public {MADE}")
    assert prices.price("unheard-of") is None


def test_the_reduction_keeps_what_tokens_alone_can_price_and_nothing_else() -> None:
    def model(**fields: Any) -> dict[str, Any]:
        return {"mode": "chat", "input_cost_per_token": Decimal("2.5e-06"), "output_cost_per_token": 1} | fields

    kept = reduced(
        {
            "whole": model(cache_read_input_token_cost=Decimal("1.25e-7"), input_cost_per_token_above_200k_tokens=3),
            "rounded": model(input_cost_per_token=Decimal("2.4999999999999998e-07")),
            "free input": model(input_cost_per_token=0),
            "free": model(input_cost_per_token=0, output_cost_per_token=0),
            "half": model(output_cost_per_token=None),
            "an image": model(mode="image_generation"),
            "by the second": model(input_cost_per_second=Decimal("0.1")),
            "by the request": model(input_cost_per_request=1),
            "dear thoughts": model(output_cost_per_reasoning_token=2),
            "sample_spec": model(),
        }
    )
    assert kept == {
        "whole": {
            "input_per_million": "2.5",
            "output_per_million": "1000000",
            "cached_input_per_million": "0.125",
            "max_prompt_tokens": 200_000,
        },
        "rounded": {"input_per_million": "0.25", "output_per_million": "1000000"},
        "free input": {"input_per_million": "0", "output_per_million": "1000000"},
    }
