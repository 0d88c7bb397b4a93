"""Guidance inside vLLM's server: the endpoint plugin that puts the middleware below authentication."""

from __future__ import annotations

import logging
from argparse import Namespace
from typing import Any

from gkt_vllm.middleware import GuidanceMiddleware
from gkt_vllm.section import read_section

__all__ = ["GktEndpoint"]

_log = logging.getLogger("vllm.gkt")


class GktEndpoint:
    """What vLLM asks for once per API server. Without a section it does nothing."""

    name = "gkt"
    required_tasks = ("generate",)

    def attach_router(self, app: Any) -> None:
        """Before the server takes requests."""
        section = read_section(getattr(app.state.args, "additional_config", None))
        if section is None:
            return
        app.add_middleware(GuidanceMiddleware)

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:
        """Once the engine is there: open the teacher and the ledger."""
        section = read_section(args.additional_config)
        if section is None or engine_client is None:
            return
        from gkt_vllm.serving import open_guidance

        names = list(args.served_model_name or [args.model])
        vllm_config = engine_client.vllm_config
        state.gkt = await open_guidance(read_section(vllm_config.additional_config) or section, names)
