"""The page for operators names every metric, every code and every address that there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gkt_plugins.gateway.metrics import ERROR_CODES, Metrics

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
METRICS, CODES = (PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0] for title in ("Metrics", "Error codes"))
SOURCES = [*(ROOT / "gkt_plugins" / "gateway").glob("*.py"), *(ROOT / "gkt_plugins" / "openai_wire").glob("*.py")]
SOURCES += (ROOT / "adapters" / "gkt_openai").glob("*.py")


def first_column(table: str) -> set[str]:
    """What stands in code in the first column."""
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    return set(re.findall(r"`([a-z_]+)`", " ".join(rows)))


def metrics() -> set[str]:
    """Every metric of ours, by the name that queries use."""
    found = set()
    for family in text_string_to_metric_families(Metrics().page()[0].decode()):
        if family.name.startswith("gkt_") and not family.name.endswith("_created"):
            found.add(family.name + "_total" * (family.type == "counter"))
    return found


def test_the_table_of_metrics_has_each_of_them_and_no_other():
    assert first_column(METRICS) == metrics()


def test_the_table_of_codes_has_each_of_them_and_no_other():
    assert first_column(CODES) == ERROR_CODES


def test_every_code_in_the_sources_counts_by_its_own_name():
    texts = " ".join(path.read_text(encoding="utf-8") for path in SOURCES)
    said = set(re.findall(r'(?:code=|code or |else )"([a-z]+(?:_[a-z]+)+)"', texts))
    assert {"invalid_api_key", "upstream_refused"} <= said
    assert {code for code in said if code.startswith("upstream_") or f'code="{code}"' in texts} <= ERROR_CODES


@pytest.mark.parametrize("name", sorted(set(re.findall(r"gkt_[a-z_]+", PAGE.split("## Alerts")[1].split("## ")[0]))))
def test_alerts_ask_for_metrics_that_there_are(name):
    assert name.removesuffix("_bucket") in metrics()
