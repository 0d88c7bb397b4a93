"""Makes the price list that ships, from LiteLLM's model map. For maintainers::

    python -m gkt_plugins.accounting.price_list_update model_prices_and_context_window_backup.json 1.106.0 2026-10-18

Kept are models that answer with text and have a price for input and for output. Left out, so that their cost is unknown
instead of wrong: models whose prices are both 0, and models that also charge by the second, the request or the
character, or differently for reasoning. Where a longer prompt has another price, the list holds the first price and how
far it goes.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from gkt_plugins.accounting.price_list import PATH, checksum

__all__ = ["reduced"]

_MODES = ("chat", "completion", "responses")
_OTHER_CHARGES = re.compile(r"cost_per_(second|request|character)")
_LONGER = re.compile(r"_above_(\d+)k_tokens$")
_MILLION = 1_000_000


def reduced(models: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The models that can be priced by tokens alone. ``models``: LiteLLM's map, its numbers as :class:`Decimal`."""
    kept = {}
    for name in sorted(models):
        model = models[name]
        read, written = model.get("input_cost_per_token"), model.get("output_cost_per_token")
        if name == "sample_spec" or model.get("mode") not in _MODES:
            continue
        if read is None or written is None or not (read or written):
            continue
        if any(value for key, value in model.items() if _OTHER_CHARGES.search(key)):
            continue
        if model.get("output_cost_per_reasoning_token") not in (None, written):
            continue
        fields: dict[str, Any] = {
            "input_per_million": _per_million(read),
            "output_per_million": _per_million(written),
        }
        cached = model.get("cache_read_input_token_cost")
        if cached is not None:
            fields["cached_input_per_million"] = _per_million(cached)
        thresholds = [int(match.group(1)) for key in model if (match := _LONGER.search(key))]
        if thresholds:
            fields["max_prompt_tokens"] = min(thresholds) * 1000
        kept[name] = fields
    return kept


def _per_million(cost: Decimal | int) -> str:
    """A decimal string, rounded to 9 digits after the point: the list's own floats hold rounding errors."""
    amount = round(Decimal(cost) * _MILLION, 9)
    text = f"{amount:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def main(source: Path, version: str, date: str) -> None:
    """Write the list. ``version``, ``date``: of the LiteLLM release that holds ``source``."""
    content = source.read_bytes()
    prices = reduced(json.loads(content, parse_float=Decimal))
    document = {
        "source": "LiteLLM, model_prices_and_context_window_backup.json, reduced",
        "license": "MIT, Copyright (c) 2023 Berri AI; see price_list.LICENSE",
        "version": version,
        "date": date,
        "source_sha256": hashlib.sha256(content).hexdigest(),
        "sha256": checksum(prices),
        "currency": "USD",
    }
    head = json.dumps(document, indent=1)[:-2]
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(fields)}" for name, fields in prices.items())
    PATH.write_text(f'{head},\n "prices": {{\n{lines}\n }}\n}}\n', encoding="utf-8")
    print(f"{len(prices)} models")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
