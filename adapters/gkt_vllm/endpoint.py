"""Inside vLLM's server: the endpoint plugin that puts our middleware below authentication, and adds ``/gkt/info``."""

from __future__ import annotations

import logging
import os
from argparse import Namespace
from typing import Any

from gkt_plugins.errors import BackendError, GktError
from gkt_vllm import has_section
from gkt_vllm.registering import ended

__all__ = ["GktEndpoint"]


class GktEndpoint:
    """What vLLM asks for once per API server. Without a section it does nothing."""

    name = "gkt"
    required_tasks = ("generate",)

    def attach_router(self, app: Any) -> None:
        """Before the server takes requests."""
        if not has_section(getattr(app.state.args, "additional_config", None)):
            return
        from gkt_vllm.info import ADDRESS, info
        from gkt_vllm.middleware import GktMiddleware

        app.add_middleware(GktMiddleware)
        app.add_route(ADDRESS, info, methods=["GET"], include_in_schema=False)

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:
        """Once the engine is there: open the teacher and the ledger.

        :raises SystemExit: with a sentence: they cannot be opened, or a worker did not load the plugin that reads the
            section.
        """
        if not has_section(args.additional_config) or engine_client is None:
            return
        try:
            await _open(engine_client, state, args)
        except GktError as exc:  # who starts a server reads one sentence, not the way through vLLM
            raise ended(exc) from exc


async def _open(engine_client: Any, state: Any, args: Namespace) -> None:
    import vllm

    from gkt_vllm.info import About, Keys
    from gkt_vllm.serving import open_serving
    from gkt_vllm.started import last_start

    start = last_start()
    if start is None:
        raise BackendError(_NOT_LOADED.format("this server"))
    _log_as_vllm_does()
    vllm_config = engine_client.vllm_config
    runner = "V2" if vllm_config.use_v2_model_runner else "V1"
    in_workers = await _replaced_in_workers(engine_client)
    state.gkt_about = About(vllm.__version__, runner, tuple(start.active), tuple(start.notes), in_workers)
    state.gkt_keys = Keys(args.api_key or [os.environ.get("VLLM_API_KEY", "")])
    state.gkt = await open_serving(
        start.section,
        start.frozen,
        list(args.served_model_name or [args.model]),
        max_tokens=vllm_config.model_config.max_model_len,
        usage_unasked=bool(getattr(args, "enable_force_include_usage", False)),
        request_id_headers=bool(getattr(args, "enable_request_id_headers", False)),
    )


def _log_as_vllm_does() -> None:
    """What the core has to say, such as that a teacher fails, goes where vLLM's own lines go: vLLM gives handlers
    to its own loggers only."""
    core = logging.getLogger("gkt_plugins")
    if not core.handlers:
        core.handlers = list(logging.getLogger("vllm").handlers)
        core.setLevel(logging.INFO)
        core.propagate = False


_NOT_LOADED = "{} did not load gkt-plugins, though its section is there; see the log for why vLLM skipped the plugin"


async def _replaced_in_workers(engine_client: Any) -> dict[str, str]:
    """What each worker says of itself, together.

    :raises BackendError: one of them has nothing to say, because vLLM skips a plugin that cannot be imported.
    """
    try:
        told = await engine_client.collective_rpc("gkt_replaced")
    except Exception as exc:  # vLLM's own, of many kinds
        raise BackendError(_NOT_LOADED.format("a worker of vLLM")) from exc
    return {where: why for one in told for where, why in one.items()}
