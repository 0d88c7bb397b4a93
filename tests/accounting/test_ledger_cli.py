import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gkt_plugins.accounting.accountant import open_accountant
from gkt_plugins.accounting.ledger import Ledger
from gkt_plugins.accounting.requests import RequestRecord
from gkt_plugins.cli import app
from gkt_plugins.config import load_config
from gkt_plugins.contracts import Usage, UsageRecord
from gkt_plugins.errors import BackendError, ConfigError, GktError
from gkt_plugins.plugins import load_plugins

CONFIG = """
[prices.large]
input_per_million = "2.50"
output_per_million = "10.00"
[price_sources.shared]
source = "file"
path = "prices.toml"
[ledger]
url = "sqlite:///books/gkt.db"
"""
PRICE_LIST = '[small]\ninput_per_million = "0.25"\noutput_per_million = "1"\n[large]\nper_hour = "9"\n'


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration whose ledger holds one guided request and one call of an unpriced model."""
    (tmp_path / "gkt.toml").write_text(CONFIG)
    (tmp_path / "prices.toml").write_text(PRICE_LIST)
    (tmp_path / "books").mkdir()
    asyncio.run(_fill(tmp_path / "gkt.toml"))
    return tmp_path / "gkt.toml"


async def _fill(config: Path) -> None:
    accountant = open_accountant(load_config(config), load_plugins())
    for request_id, role, model, usage in (
        ("a", "teacher", "large", Usage(100, None, 40)),
        ("a", "student", "small", Usage(140, None, 60)),
        ("b", "student", "unpriced", Usage(1, None, 1)),
    ):
        opening = UsageRecord(request_id, 0, role, 0, "e", model, "open", started_at=1_795_248_000.0)  # type: ignore[arg-type]
        await accountant.opened(opening)
        await accountant.closed(replace(opening, status="final", usage=usage))
    await accountant.aclose()


def gkt(*arguments: object) -> str:
    result = CliRunner(env={"COLUMNS": "160"}).invoke(app, ["ledger", *map(str, arguments)])
    if isinstance(result.exception, GktError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_report_prices_from_the_configuration_first_and_then_from_its_sources(config: Path) -> None:
    shown = gkt("report", "--config", config)
    assert "USD 0.00065" in shown
    assert "USD 0.000095" in shown
    assert "1 unknown" in shown
    assert "USD 0.00125" in shown  # the teacher alone


def test_the_report_as_json_is_one_object(config: Path) -> None:
    report = json.loads(gkt("report", "--config", config, "--json", "--by", "role", "--by", "model"))
    assert report["by"] == ["model", "role"]
    assert [(group["model"], group["cost"]) for group in report["groups"]] == [
        ("large", {"USD": "0.00065"}),
        ("small", {"USD": "0.000095"}),
        ("unpriced", {}),
    ]
    assert report["groups"][2]["unknown_cost_calls"] == 1
    [comparison] = report["teacher_alone"]["comparisons"]
    assert (comparison["actual"], comparison["estimate"]) == ("0.000745", "0.00125")


def test_a_measured_ratio_may_be_given(config: Path) -> None:
    report = json.loads(gkt("report", "--config", config, "--json", "--ratio", "large,small=1.25"))
    [comparison] = report["teacher_alone"]["comparisons"]
    assert comparison["estimate"] == "0.0014"
    assert comparison["token_ratios"] == {"small": {"ratio": 1.25, "measured": True}}


def test_since_leaves_out_what_came_before(config: Path) -> None:
    url = f"sqlite:///{config.parent}/books/gkt.db"
    assert "no calls" in gkt("report", "--url", url, "--since", "2026-11-22")
    assert json.loads(gkt("report", "--url", url, "--since", "2026-11-21T08:00", "--json"))["total"]["calls"] == 3


def test_the_export_is_one_line_of_json_a_record(config: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in gkt("export", "--config", config).splitlines()]
    assert [(line["request_id"], line["role"], line["cost"]) for line in lines] == [
        ("a", "student", "0.000095"),
        ("a", "teacher", "0.00065"),
        ("b", "student", None),
    ]
    assert [line["price_source"] for line in lines] == ["shared", "config", None]
    gkt("export", "--config", config, "--jsonl", tmp_path / "out.jsonl")
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()] == lines


def test_the_export_of_requests_is_one_line_of_json_a_request(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "gkt.db")
    request = RequestRecord("r", "default", "anna", 1_795_305_600.25, "guided", "ok", total_s=1.5, guidance_tokens=40)
    asyncio.run(ledger.request(request))
    ledger.close()
    [line] = gkt("export", "--requests", "--url", f"sqlite:///{tmp_path}/gkt.db").splitlines()
    exported = json.loads(line)
    assert exported["started_at"] == "2026-11-22T00:00:00.250000+00:00"
    assert (exported["key"], exported["route"], exported["guidance_tokens"]) == ("anna", "guided", 40)
    assert (exported["total_s"], exported["first_token_s"]) == (1.5, None)


def test_recover_says_how_many_calls_it_marked(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "gkt.db")
    record = UsageRecord("r", 0, "student", 0, "e", "m", "open", started_at=1.0)
    asyncio.run(ledger.opened(record))
    url = f"sqlite:///{ledger.location.path}"
    assert gkt("recover", "--url", url) == "0 calls marked interrupted.\n"  # its writer lives
    ledger._store._mark.release()  # as the kernel does when the process is killed
    assert gkt("recover", "--url", url) == "1 calls marked interrupted.\n"
    ledger.close()


@pytest.mark.parametrize("verb", ["report", "export", "recover"])
def test_a_ledger_that_does_not_exist_is_not_made_by_looking(tmp_path: Path, verb: str) -> None:
    with pytest.raises(BackendError, match="there is no ledger at"):
        gkt(verb, "--url", f"sqlite:///{tmp_path}/gkt.db")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--since", "yesterday"], "--since must be a day or a time, such as .*, got 'yesterday'"),
        (["--ratio", "large=2"], "--ratio must be TEACHER,STUDENT=R .*, got 'large=2'"),
        (["--ratio", "large,small=0"], "--ratio must be TEACHER,STUDENT=R with R above 0"),
        (["--url", "mysql://db/gkt"], "no ledger is kept in 'mysql'"),
    ],
)
def test_a_wrong_option_is_one_sentence(config: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        gkt("report", "--config", config, *arguments)


@pytest.mark.parametrize(
    ("price_list", "message"),
    [
        ("small = 1", "must hold one table a model, got small = 1"),
        ("[small]\nper_hour = 1", r"prices\.toml': prices\.small\.per_hour must be a decimal string"),
        ("[small", "cannot be read as TOML"),
        (None, "cannot be read as TOML: .*No such file"),
    ],
)
def test_a_price_list_that_cannot_be_used_is_named(config: Path, price_list: str | None, message: str) -> None:
    path = config.parent / "prices.toml"
    if price_list is None:
        path.unlink()
    else:
        path.write_text(price_list)
    with pytest.raises(ConfigError, match=message):
        gkt("report", "--config", config)
