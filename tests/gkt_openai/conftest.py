"""An engine for an upstream that does as it is told."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from gkt_openai.engine import OpenAIEngine
from gkt_openai.options import OpenAIOptions
from gkt_plugins.contracts import BuildContext
from gkt_plugins.testing.openai_upstream import Upstream


@pytest.fixture
async def engine_of(tmp_path) -> AsyncIterator[Callable[..., OpenAIEngine]]:
    """``engine_of(upstream, **options)``; what it learns is kept in the test's own folder."""
    async with AsyncExitStack() as stack:

        def engine_of(upstream: Upstream, *, env: dict[str, str] | None = None, **options: Any) -> OpenAIEngine:
            options = {"base_url": upstream.url, "model": upstream.model} | options
            context = BuildContext(name="cloud", base_dir=tmp_path, env={"GKT_CACHE_DIR": str(tmp_path), **(env or {})})
            engine = OpenAIEngine(OpenAIOptions(**options), context)
            stack.push_async_callback(engine.aclose)
            return engine

        yield engine_of
