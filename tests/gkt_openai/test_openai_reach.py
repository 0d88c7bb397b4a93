"""Whether an endpoint answers, asked at no cost."""

from __future__ import annotations

import pytest

from gkt_plugins.contracts import Reachable
from gkt_plugins.errors import EngineError
from gkt_plugins.testing.openai_upstream import Upstream


@pytest.mark.parametrize("status", [200, 404, 500])
async def test_an_endpoint_that_answers_is_reached_without_asking_it_for_text(engine_of, status):
    with Upstream("text", models_status=status) as upstream:
        engine = engine_of(upstream)
        assert isinstance(engine, Reachable)
        await engine.reach()
    assert not upstream.received


@pytest.mark.parametrize("status", [401, 403, 502, 503, 504])
async def test_one_that_refuses_us_or_stands_before_nothing_is_not_reached(engine_of, status):
    with Upstream("text", models_status=status) as upstream, pytest.raises(EngineError):
        await engine_of(upstream).reach()


async def test_one_that_is_not_there_is_not_reached(engine_of):
    with Upstream("text") as upstream:
        engine = engine_of(upstream)
    with pytest.raises(EngineError, match="cannot be reached"):
        await engine.reach()
