"""What docs/tgi.md shows is what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from gkt_plugins.config import load_config
from gkt_plugins.plugins import load_plugins
from gkt_plugins.testing.tgi_contract import ROUTES
from gkt_tgi.options import TGIOptions

PAGE = (Path(__file__).parents[2] / "docs" / "tgi.md").read_text(encoding="utf-8")


def test_the_engine_on_the_page_is_valid_and_shows_every_key_with_its_default():
    shown = re.search(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    assert shown is not None
    config = load_config(text=shown.group(1), env={"TGI_KEY": "x"}, plugins=load_plugins())
    options = config.engines["edge"].options
    assert isinstance(options, TGIOptions)
    assert options.model_fields_set == set(TGIOptions.model_fields)
    for key in ("connect_timeout_s", "read_timeout_s", "concurrency"):
        assert getattr(options, key) == TGIOptions.model_fields[key].default


def test_the_page_names_every_route_that_is_used():
    assert all(f"`{route}`" in PAGE for route in ROUTES)
