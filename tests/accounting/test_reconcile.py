import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from gkt_plugins.accounting.bill import BillLine, read_bill
from gkt_plugins.accounting.ledger import Ledger
from gkt_plugins.accounting.reconcile import Difference, period, reconcile
from gkt_plugins.cli import app
from gkt_plugins.contracts import GUIDANCE_CACHE, Usage, UsageRecord
from gkt_plugins.errors import BackendError, ConfigError, GktError

NOON = 1_795_348_800.0  # 2026-11-22, 12:00 UTC


def call(request_id: str = "r", **fields: Any) -> UsageRecord:
    usage = Usage(prompt_tokens=1_000, cached_tokens=0, completion_tokens=100)
    record = UsageRecord(
        request_id, 0, "teacher", 0, "cloud", "large", "final", usage, "USD", 3_500_000, "config", NOON
    )
    return replace(record, **fields)


def verdicts(lines: Sequence[BillLine], calls: Sequence[UsageRecord], **options: Any) -> dict[tuple[str, str], str]:
    found = reconcile(lines, calls, **({"tolerance": Decimal("0.01")} | options)).differences
    return {(difference.model, difference.quantity): difference.verdict for difference in found}


def test_tokens_and_money_of_a_model_are_added_up_on_both_sides() -> None:
    lines = [BillLine("large", None, 600, 60, 2_000_000), BillLine("large", None, 1_400, 140, 5_000_000)]
    result = reconcile(lines, [call("a"), call("b")], tolerance=Decimal(0))
    assert result.agrees
    assert result.calls == 2
    assert [(d.quantity, d.billed, d.booked, d.difference) for d in result.differences] == [
        ("prompt_tokens", 2_000, 2_000, 0),
        ("completion_tokens", 200, 200, 0),
        ("cost", 7_000_000, 7_000_000, 0),
    ]


@pytest.mark.parametrize(
    ("billed", "verdict"),
    [(989, "differs"), (991, "agrees"), (1_000, "agrees"), (1_010, "agrees"), (1_011, "differs")],
)
def test_both_sides_may_differ_by_the_tolerance_as_a_fraction_of_the_bill(billed: int, verdict: str) -> None:
    assert verdicts([BillLine("large", prompt_tokens=billed)], [call()]) == {("large", "prompt_tokens"): verdict}


def test_a_cost_may_differ_by_what_the_bill_rounds_and_no_further() -> None:
    rounded = BillLine("large", cost_nano=0, rounding_nano=5_000_000)  # $0.00 in cents, for $0.0035
    assert verdicts([rounded], [call()], tolerance=Decimal(0)) == {("large", "cost"): "agrees"}
    assert verdicts([rounded], [call("a"), call("b")], tolerance=Decimal(0)) == {("large", "cost"): "differs"}


def test_calls_of_unknown_amount_may_be_what_is_missing_but_never_excuse_too_much() -> None:
    unknown = call("u", usage=Usage(), cost_nano=None)
    more, less = BillLine("large", cost_nano=7_000_000), BillLine("large", cost_nano=2_000_000)
    assert verdicts([more], [call(), unknown]) == {("large", "cost"): "unknown"}
    assert verdicts([more], [call()]) == {("large", "cost"): "differs"}
    assert verdicts([less], [call(), unknown]) == {("large", "cost"): "differs"}
    assert verdicts([BillLine("large", cost_nano=0)], [unknown]) == {("large", "cost"): "unknown"}


def test_guidance_from_the_cache_is_on_no_bill() -> None:
    cached = call("c", cost_nano=0, price_source=GUIDANCE_CACHE)
    assert verdicts([BillLine("large", prompt_tokens=1_000)], [call(), cached]) == {
        ("large", "prompt_tokens"): "agrees"
    }


def test_a_model_that_the_ledger_does_not_have_is_named() -> None:
    assert verdicts([BillLine("other", cost_nano=1)], [call()]) == {("other", "cost"): "not in the ledger"}
    assert verdicts([BillLine("other", cost_nano=0)], [call()]) == {("other", "cost"): "agrees"}


def test_with_an_engine_named_its_models_must_be_billed_and_those_of_others_need_not() -> None:
    lines = [BillLine("large", cost_nano=3_500_000)]
    calls = [call(), call("m", model="mini"), call("s", engine="edge", model="small")]
    assert verdicts(lines, calls) == {("large", "cost"): "agrees"}
    assert verdicts(lines, calls, engines=["cloud"]) == {("large", "cost"): "agrees", ("mini", "cost"): "not billed"}


def test_a_model_may_be_billed_under_another_name() -> None:
    lines = [BillLine("large-2026-11", prompt_tokens=400), BillLine("LARGE", prompt_tokens=600)]
    names = {"large-2026-11": "large", "LARGE": "large"}
    assert verdicts(lines, [call()], names=names) == {("large", "prompt_tokens"): "agrees"}


def test_a_cost_in_another_currency_is_unknown_on_this_bill() -> None:
    [difference] = reconcile(
        [BillLine("large", cost_nano=3_500_000)], [call(currency="EUR")], tolerance=Decimal(0)
    ).differences
    assert (difference.booked, difference.unknown_calls, difference.verdict) == (None, 1, "unknown")


def test_what_a_bill_does_not_say_of_a_model_is_not_compared() -> None:
    lines = [BillLine("large", cost_nano=3_500_000), BillLine("mini", prompt_tokens=1_000)]
    calls = [call(), call("m", model="mini")]
    assert verdicts(lines, calls) == {("large", "cost"): "agrees", ("mini", "prompt_tokens"): "agrees"}


def test_the_period_of_a_bill_is_from_its_first_day_to_the_end_of_its_last() -> None:
    lines = [BillLine("m", "2026-11-22"), BillLine("m", "2026-11-20"), BillLine("m")]
    assert period(lines) == (NOON - 2.5 * 86_400, NOON + 0.5 * 86_400)
    assert period([BillLine("m")]) == (None, None)


def test_json_has_money_as_exact_decimals() -> None:
    difference = Difference("m", "cost", 7_000_000, 3_500_000, 1, 2, "unknown")
    assert difference.as_json() == {
        "model": "m",
        "quantity": "cost",
        "billed": "0.007",
        "booked": "0.0035",
        "difference": "-0.0035",
        "relative": -0.5,
        "unknown_calls": 1,
        "estimated_calls": 2,
        "verdict": "unknown",
    }


def test_a_bill_is_read_by_its_headings_whatever_their_order_and_spelling(tmp_path: Path) -> None:
    path = tmp_path / "bill.csv"
    path.write_text(
        "\ufeffAmount,Date,Project,MODEL,Input Tokens,output-tokens\n"
        '"12.34",2026-11-22,x,large,1000,\n'
        "\n"
        "$0.5,2026-11-22T23:30:00-02:00,x,large,,7\n"
        "-1e-3,1795348800,x,large,0,0\n",
        encoding="utf-8",
    )
    assert read_bill(path) == [
        BillLine("large", "2026-11-22", 1_000, None, 12_340_000_000, 5_000_000),
        BillLine("large", "2026-11-23", None, 7, 500_000_000, 50_000_000),
        BillLine("large", "2026-11-22", 0, 0, -1_000_000, 500_000),
    ]


def test_a_column_of_another_name_may_be_named(tmp_path: Path) -> None:
    (tmp_path / "bill.csv").write_text("sku,eur\nlarge,1\n")
    columns = {"model": "SKU", "cost": "EUR"}
    assert read_bill(tmp_path / "bill.csv", columns) == [BillLine("large", cost_nano=10**9, rounding_nano=5 * 10**8)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "must have columns for the model and for tokens or cost, has none"),
        ("model,day\nm,2026-11-22\n", "must have columns for the model and for tokens or cost, has model, day"),
        ("model,cost\nm\n", "line 2, must have 2 cells as its heading has, got 1"),
        ("model,cost\n,1\n", "line 2: the model is missing"),
        ('model,cost\nm,"1,50"\n', "line 2: cost must be a decimal number such as 12.34, got '1,50'"),
        ("model,cost\nm,nan\n", "line 2: cost must be a decimal number"),
        ("model,input_tokens\nm,1.5\n", "line 2: prompt_tokens must be a whole number of at least 0, got '1.5'"),
        ("model,input_tokens\nm,-1\n", "line 2: prompt_tokens must be a whole number"),
        (
            "model,day,cost\nm,22/11/2026,1\n",
            "line 2: day must be a day or a time such as 2026-11-22, got '22/11",
        ),
    ],
)
def test_a_bill_that_cannot_be_understood_names_the_line_and_what_was_expected(
    tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "bill.csv").write_text(content)
    with pytest.raises(ConfigError) as caught:
        read_bill(tmp_path / "bill.csv")
    assert message in str(caught.value)


def test_a_bill_that_is_no_text_or_not_there_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "bill.csv").write_bytes(b"\xff\xfe\x00")
    for name in ("bill.csv", "missing.csv"):
        with pytest.raises(BackendError, match=r"cannot be read as CSV in UTF-8: .*; export it again"):
            read_bill(tmp_path / name)


# ---------------------------------------------------------------------------------------------------------- the command


@pytest.fixture
def books(tmp_path: Path) -> Path:
    """A ledger of two days, and the bill of the second one."""

    async def fill() -> None:
        ledger = Ledger(tmp_path / "gkt.db")
        await ledger.closed(call("before", started_at=NOON - 86_400))
        await ledger.closed(call("a"))
        await ledger.closed(call("b", usage=Usage(500, 0, 50, estimated=True), cost_nano=1_750_000))
        await ledger.aclose()

    asyncio.run(fill())
    (tmp_path / "bill.csv").write_text(
        "date,model,input_tokens,output_tokens,cost\n2026-11-22,large,1500,150,0.00525\n"
    )
    return tmp_path


def gkt(books: Path, *arguments: str) -> Result:
    command = ["ledger", "reconcile", str(books / "bill.csv"), "--url", f"sqlite:///{books}/gkt.db", *arguments]
    result = CliRunner(env={"COLUMNS": "120"}).invoke(app, command)
    if isinstance(result.exception, GktError):
        raise result.exception
    return result


def test_a_bill_that_agrees_ends_with_zero_and_says_within_what(books: Path) -> None:
    done = gkt(books)
    assert done.exit_code == 0, done.output
    assert "Everything agrees within 0.01 of the bill, over 2 calls." in done.stdout
    assert "USD 0.00525" in done.stdout
    assert "1 call is estimated" in done.stdout


def test_a_bill_that_does_not_agree_ends_with_one_and_says_where(books: Path) -> None:
    (books / "bill.csv").write_text("date,model,input_tokens,cost\n2026-11-22,large,1500,0.0063\n")
    done = gkt(books, "--json")
    assert done.exit_code == 1
    answer = json.loads(done.stdout)
    assert (answer["agrees"], answer["tolerance"], answer["calls"]) == (False, "0.01", 2)
    assert [(d["quantity"], d["verdict"]) for d in answer["differences"]] == [
        ("prompt_tokens", "agrees"),
        ("cost", "differs"),
    ]
    assert gkt(books, "--tolerance", "0.2").exit_code == 0


def test_the_period_may_be_given_where_the_bill_has_no_days(books: Path) -> None:
    (books / "bill.csv").write_text("model,input_tokens\nlarge,1000\n")
    assert gkt(books).exit_code == 1  # all three calls
    assert gkt(books, "--until", "2026-11-22").exit_code == 0


def test_columns_names_and_engines_may_be_given(books: Path) -> None:
    (books / "bill.csv").write_text("Item,Cost in USD\nLarge (text),0.00875\n")
    arguments = ["--column", "model=item", "--column", "cost=cost in usd", "--model", "Large (text)=large"]
    assert gkt(books, *arguments, "--engine", "cloud").exit_code == 0
    assert gkt(books, *arguments, "--engine", "elsewhere").exit_code == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tolerance", "1%"], r"--tolerance must be a fraction in \[0, 1\), such as 0.01, got '1%'"),
        (["--tolerance", "-0.1"], r"--tolerance must be a fraction in \[0, 1\)"),
        (["--tolerance", "nan"], r"--tolerance must be a fraction in \[0, 1\)"),
        (["--column", "price=Amount"], r"--column must be FIELD=HEADING, with a field out of model, .*'price=Amount'"),
        (["--column", "cost=Amount"], r"has no column 'Amount'; it has date, model"),
        (["--model", "large"], "--model must be BILLED=LEDGER, got 'large'"),
        (["--until", "soon"], "--until must be a day or a time"),
    ],
)
def test_a_wrong_option_is_one_sentence(books: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        gkt(books, *arguments)
