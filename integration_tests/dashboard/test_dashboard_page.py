"""The dashboard in a real browser, served by a real gateway."""

from __future__ import annotations

import hashlib
import re
import time
from calendar import timegm
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from gkt_plugins.accounting.requests import RequestRecord
from gkt_plugins.contracts import Usage, UsageRecord
from gkt_plugins.testing.gateway_process import GatewayProcess
from gkt_plugins.testing.ledgers import invented_traffic, write_traffic
from gkt_plugins.testing.openai_upstream import Upstream

AXE = Path(__file__).parents[1] / "node" / "node_modules" / "axe-core" / "axe.min.js"
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
ADMIN, GUEST = "an admin's key of more than 32 characters", "a guest's key of more than 32 characters, too"
NOW = time.time()

CONFIG = """
[engines.cloud]
adapter = "openai"
base_url = "http://127.0.0.1:9/v1"
model = "large"
[engines.edge]
adapter = "openai"
base_url = "http://127.0.0.1:9/v1"
model = "small"
[prices.large]
input_per_million = "2.50"
output_per_million = "10.00"
[prices.small]
input_per_million = "0.25"
output_per_million = "1.00"
[pipelines.default]
teacher = "cloud"
student = "edge"
[pipelines.support]
teacher = "cloud"
student = "edge"
"""


def key(name: str, text: str, *, admin: bool) -> str:
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f'[gateway.keys.{name}]\nsha256 = "{digest}"\nadmin = {str(admin).lower()}\n'


KEYS = key("boss", ADMIN, admin=True) + key("guest", GUEST, admin=False)


def request(name: str, **changes: Any) -> RequestRecord:
    made = RequestRecord(name, "default", "", NOW - 90, "guided", "ok", guidance_tokens=40)
    return replace(made, first_token_s=0.2, total_s=1.0, teacher_s=0.3, student_s=0.69, overhead_s=0.01, **changes)


def call(name: str, **changes: Any) -> UsageRecord:
    usage = Usage(prompt_tokens=100, completion_tokens=40)
    made = UsageRecord(name, 0, "teacher", 0, "cloud", "large", "final", usage, started_at=NOW - 90, pipeline="default")
    return replace(made, **({"cost_nano": 650_000, "price_source": "config"} | changes))


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """With a week of traffic that never was."""
    folder = tmp_path_factory.mktemp("gateway")
    write_traffic(f"sqlite:///{folder}/gkt.db", invented_traffic(6000, since=NOW - 7 * 86_400, until=NOW))
    with GatewayProcess(CONFIG, folder) as running:
        yield running


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with GatewayProcess(CONFIG + KEYS, tmp_path_factory.mktemp("guarded")) as running:
        yield running


def violations(page: Page) -> list[str]:
    """What axe-core finds."""
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate("rules => axe.run(document, {runOnly: rules}).then(result => result.violations)", RULES)
    return [f"{each['id']}: {node['html']}" for each in found for node in each["nodes"]]


def figures(gateway: GatewayProcess, query: str = "since=-86400") -> Any:
    return gateway.get(f"/dashboard/figures?{query}").json()


# --------------------------------------------------------------------------------------------------------- reading it


def test_the_page_says_what_was_saved_against_what_and_what_that_assumes(visitor, gateway):
    page = visitor.open(gateway)
    money = page.locator("#money")
    expect(money).to_contain_text("Saved, compared with the teacher “large” alone (estimate)")
    expect(money).to_contain_text(re.compile(r"4\d % less"))
    saved = figures(gateway)["money"]["teacher_alone"]["by_currency"][0]["saved"]
    expect(money.locator(".amount")).to_have_attribute("title", re.compile(f"USD {saved[:3]}"))
    expect(money.get_by_text("an answer of the same length")).to_be_hidden()
    money.get_by_text("What the estimate assumes").click()
    expect(money.get_by_text("an answer of the same length")).to_be_visible()


def test_an_empty_ledger_says_so_and_how_to_come_in(visitor, tmp_path):
    with GatewayProcess(CONFIG, tmp_path) as empty:
        page = visitor.open(empty)
        expect(page.locator("#money")).to_contain_text("No requests")
        expect(page.locator("#money")).to_contain_text(f"{empty.url}/v1")
        expect(page.locator("#more")).to_be_hidden()
        assert "USD" not in page.inner_text("body")


def test_what_is_unknown_reads_unknown_and_text_of_the_ledger_is_never_markup(visitor, tmp_path):
    nameless = call("a", model="<img src=x onerror=alert(1)>", cost_nano=None, price_source=None)
    write_traffic(f"sqlite:///{tmp_path}/gkt.db", [(request("a"), [nameless])])
    with GatewayProcess(CONFIG, tmp_path) as running:
        page = visitor.open(running)
        expect(page.locator("#money .amount")).to_have_text("Unknown")
        expect(page.locator("#money")).to_contain_text("1 call of unknown cost")
        expect(page.locator("#money")).to_contain_text("<img src=x onerror=alert(1)>: price unknown (1)")
        assert page.locator("img").count() == 0
        assert "0.00" not in page.inner_text("#money")


def test_currencies_stand_side_by_side(visitor, tmp_path):
    euro = call("b", role="student", model="small", currency="EUR", cost_nano=12_000_000)
    traffic = [(request("a"), [call("a")]), (request("b", guidance_tokens=0, route="student"), [euro])]
    write_traffic(f"sqlite:///{tmp_path}/gkt.db", traffic)
    with GatewayProcess(CONFIG, tmp_path) as running:
        page = visitor.open(running)
        expect(page.locator("#money .block")).to_have_count(2)
        expect(page.locator("#money .block").nth(1)).to_contain_text("EUR0.012")
        expect(page.locator("#pipelines")).to_contain_text("EUR 0.012 + USD 0.00065")
        expect(page.get_by_role("img", name="Money, USD")).to_be_visible()
        expect(page.get_by_role("img", name="Money, EUR. EUR 0.012 in all.")).to_be_visible()


@pytest.mark.parametrize(
    ("call", "reads"),
    [
        ("amount('0')", "0.00"),
        ("amount('0.000745')", "0.000745"),
        ("amount('0.0123456')", "0.0123"),
        ("amount('-0.5')", "-0.50"),
        ("amount('12.345')", "12.35"),
        ("amount('1234567.89')", "1,234,568"),
        ("share(null)", "unknown"),
        ("share(0)", "0 %"),
        ("share(0.0004)", "< 0.1 %"),
        ("share(0.0213)", "2.1 %"),
        ("share(0.4567)", "46 %"),
        ("share(0.9996)", "> 99.9 %"),
        ("share(1)", "100 %"),
        ("duration(null)", "unknown"),
        ("duration(0.00123)", "1.2 ms"),
        ("duration(0.2049)", "205 ms"),
        ("duration(1.084)", "1.08 s"),
        ("duration(72)", "72.0 s"),
    ],
)
def test_numbers_are_rounded_to_what_says_something_and_never_to_a_zero_that_is_none(visitor, gateway, call, reads):
    page = visitor.open(gateway)
    assert page.evaluate(f"import('/dashboard/format.js').then(({{ amount, share, duration }}) => {call})") == reads


def test_the_table_behind_a_chart_has_the_chart_s_numbers(visitor, gateway):
    page = visitor.open(gateway, "range=7d")
    chart = page.locator("#chart-requests")
    chart.get_by_text("As a table").click()
    told = figures(gateway, "since=-604800")
    rows = chart.locator("tbody tr")
    guided = [int(text.replace(",", "")) for text in rows.locator("td:nth-child(2)").all_inner_texts()]
    assert guided == [n for n in told["series"]["guided"] if n][::-1]


def test_a_chart_is_read_with_the_arrow_keys(visitor, gateway):
    page = visitor.open(gateway, "range=7d")
    chart = page.locator("#chart-guidance")
    chart.locator("[role=img]").focus()
    page.keyboard.press("End")
    last = figures(gateway, "since=-604800")["guidance"]["bins"][-1]
    expect(chart.locator(".readout")).to_contain_text(f"{last['from']} to {last['to']} tokens: {last['requests']}")
    page.keyboard.press("ArrowLeft")
    expect(chart.locator(".readout")).to_contain_text(f"{last['from'] - 1} tokens: ")


def test_requests_through_the_gateway_are_on_the_page_when_they_are_answered(visitor, tmp_path):
    said = "The cat sat on the mat and looked at the fire."
    with Upstream(said, model="large") as teacher, Upstream(said, model="small") as student:
        ports = CONFIG.replace("http://127.0.0.1:9/v1", teacher.url, 1).replace("http://127.0.0.1:9/v1", student.url)
        guided = ports.replace("[pipelines.support]", "[pipelines.default.guidance]\ntokens = 4\n[pipelines.support]")
        with GatewayProcess(guided, tmp_path) as running:
            for _ in range(3):
                asked = {"model": "gkt/default", "messages": [{"role": "user", "content": "Why?"}], "max_tokens": 20}
                assert running.post("/v1/chat/completions", asked).status == 200
            page = visitor.open(running, "range=1h")
            expect(page.locator("#numbers")).to_contain_text("3")
            expect(page.locator("#money")).to_contain_text("On 3 requests that can be compared.")
            told = figures(running, "since=-3600")
    assert told["requests"]["guided"] == told["requests"]["ok"] == 3
    assert told["guidance"]["median"] == 4
    parts = told["latency"]["mean_s"]
    assert parts["teacher"] + parts["student"] + parts["overhead"] == pytest.approx(parts["total"], rel=0.01)
    assert told["money"]["unknown_calls"] == told["money"]["open_calls"] == 0


# --------------------------------------------------------------------------------------------------------- choosing


def test_range_and_pipeline_are_chosen_by_keyboard_and_kept_in_the_address(visitor, gateway):
    page = visitor.open(gateway)
    expect(page.locator("#numbers")).to_contain_text("Requests")
    page.locator("input[name=range][value='24h']").focus()
    page.keyboard.press("ArrowRight")
    week = f"{figures(gateway, 'since=-604800')['requests']['total']:,}"
    expect(page.locator("#numbers dd").first).to_have_text(week)
    page.select_option("#pipeline", "support")
    support = figures(gateway, "since=-604800&pipeline=support")["requests"]["total"]
    expect(page.locator("#numbers dd").first).to_have_text(f"{support:,}")
    assert page.url.endswith("#range=7d&pipeline=support")
    page.reload()
    expect(page.locator("#numbers dd").first).to_have_text(f"{support:,}")
    expect(page.locator("#pipeline")).to_have_value("support")


def test_any_two_dates_make_a_range(visitor, gateway):
    page = visitor.open(gateway, "range=custom", timezone_id="UTC")
    since, until = (time.strftime("%Y-%m-%dT%H:%M", time.gmtime(NOW - days * 86_400)) for days in (5, 3))
    page.fill("input[name=from]", since)
    page.fill("input[name=to]", until)
    page.locator("input[name=to]").blur()
    seconds = [timegm(time.strptime(text, "%Y-%m-%dT%H:%M")) for text in (since, until)]
    told = figures(gateway, f"since={seconds[0]}&until={seconds[1]}")["requests"]["total"]
    expect(page.locator("#numbers dd").first).to_have_text(f"{told:,}")


def test_a_pipeline_of_the_table_is_chosen_by_its_name(visitor, gateway):
    page = visitor.open(gateway, "range=7d")
    page.get_by_role("button", name="drafts").click()
    expect(page.locator("#pipeline")).to_have_value("drafts")
    expect(page.locator("#numbers")).to_contain_text("0 %")


# --------------------------------------------------------------------------------------------------------- refreshing


def test_new_requests_appear_by_themselves_and_what_is_open_stays_open(visitor, tmp_path):
    url = f"sqlite:///{tmp_path}/gkt.db"
    write_traffic(url, [(request("a"), [call("a")])])
    with GatewayProcess(CONFIG, tmp_path) as running:
        page = visitor.open(running)
        expect(page.locator("#numbers dd").first).to_have_text("1")
        page.get_by_text("What the estimate assumes").click()
        page.get_by_role("button", name="default").focus()
        write_traffic(url, [(request("b"), [call("b")])])
        expect(page.locator("#numbers dd").first).to_have_text("2", timeout=30_000)
        expect(page.get_by_text("an answer of the same length")).to_be_visible()
        expect(page.get_by_role("button", name="default")).to_be_focused()


def test_a_page_that_is_not_live_asks_once(visitor, gateway):
    page = visitor.open(gateway)
    expect(page.locator("#updated")).to_contain_text("again every 5 seconds")
    page.locator("input[name=live]").uncheck(force=True)
    expect(page.locator("#updated")).not_to_contain_text("again every")
    before = len(visitor.addresses)
    page.wait_for_timeout(7000)
    assert len(visitor.addresses) == before


def test_a_gateway_that_is_gone_is_told_of_and_asked_again_until_it_is_back(visitor, gateway):
    page = visitor.open(gateway)
    expect(page.locator("#numbers")).to_contain_text("Requests")
    page.route("**/dashboard/figures*", lambda route: route.abort())
    notice = page.get_by_role("alert")
    expect(notice).to_contain_text("No new figures: the gateway cannot be reached.", timeout=30_000)
    expect(notice).to_contain_text("These figures are of")
    expect(page.locator("#numbers")).to_be_visible()
    page.unroute("**/dashboard/figures*")
    expect(notice).to_be_hidden(timeout=30_000)


def test_a_ledger_that_cannot_be_read_is_told_in_the_gateway_s_words(visitor, gateway):
    page = visitor.open(gateway)
    expect(page.locator("#numbers")).to_contain_text("Requests")
    said = {"error": {"message": "the ledger could not be read: disk I/O error; see that its database is there"}}
    page.route("**/dashboard/figures*", lambda route: route.fulfill(status=503, json=said))
    expect(page.get_by_role("alert")).to_contain_text("disk I/O error", timeout=30_000)
    page.unroute("**/dashboard/figures*")
    page.get_by_role("button", name="Try now").click()
    expect(page.get_by_role("alert")).to_be_hidden()


# --------------------------------------------------------------------------------------------------------- keys


def test_with_keys_the_page_asks_for_an_admin_s_and_keeps_it_in_this_tab_alone(visitor, guarded):
    page = visitor.open(guarded)
    field = page.get_by_label("Admin key")
    expect(field).to_be_focused()
    assert violations(page) == []
    field.fill("schlüssel")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("only the characters of ASCII")
    field.fill("sk-of-nobody")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("Not let in")
    field.fill(GUEST)
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("may not see this page")
    expect(page.locator("#content")).to_be_hidden()
    field.fill(ADMIN)
    page.keyboard.press("Enter")
    expect(page.locator("#money")).to_contain_text("No requests")
    assert page.evaluate("Object.values(sessionStorage)") == [ADMIN]
    assert ADMIN not in page.evaluate("JSON.stringify(localStorage) + document.cookie + location.href")
    page.reload()
    expect(page.locator("#money")).to_contain_text("No requests")
    other = visitor.tab(page.context, guarded)
    expect(other.get_by_label("Admin key")).to_be_visible()
    page.get_by_role("button", name="Forget key").click()
    expect(field).to_be_visible()
    assert page.evaluate("sessionStorage.length") == 0


# ------------------------------------------------------------------------------------------------------ for everybody


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_axe_finds_nothing_to_complain_of(visitor, gateway, scheme, width):
    page = visitor.open(gateway, "range=7d", width=width, color_scheme=scheme)
    expect(page.locator("#pipelines")).to_contain_text("default")
    for summary in page.locator("summary").all():
        summary.click()
    assert violations(page) == []


@pytest.mark.parametrize("width", [320, 390, 768])
def test_a_narrow_page_never_scrolls_sideways(visitor, gateway, width):
    page = visitor.open(gateway, "range=custom", width=width)
    expect(page.locator("#pipelines")).to_contain_text("default")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_colours_follow_the_system_until_they_are_chosen(visitor, gateway):
    page = visitor.open(gateway, color_scheme="dark")
    paper = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(paper)
    page.get_by_role("button", name="Switch to the light colours").click()
    light = page.evaluate(paper)
    assert light != dark
    page.reload()
    assert page.evaluate(paper) == light
    assert visitor.open(gateway, color_scheme="light").evaluate(paper) == light


def test_nothing_moves_for_who_does_not_want_it(visitor, gateway):
    page = visitor.open(gateway, reduced_motion="reduce")
    moving = "[...document.querySelectorAll('*')].some(e => getComputedStyle(e).transitionDuration !== '0s')"
    assert not page.evaluate(moving)
    assert visitor.open(gateway, reduced_motion="no-preference").evaluate(moving)
