"""What vLLM calls in each of its processes. Without a ``gkt`` section both wraps hand everything through."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

from gkt_plugins.errors import BackendError, GktError
from gkt_vllm import has_section
from gkt_vllm.patching import replace, replaced

__all__ = ["ended", "register"]

_log = logging.getLogger("vllm.gkt")

_unfit: str | None = None
"""Why workers of this vLLM cannot be prepared, for whoever configures a section."""


def register() -> None:
    """Entry point ``vllm.general_plugins``; vLLM calls it in the frontend, the engine and every worker.

    A vLLM that has other functions where ours go starts as if nothing of ours were installed; with a section it does
    not start.
    """
    global _unfit
    try:
        from vllm.engine.arg_utils import EngineArgs

        replace(EngineArgs, "create_engine_config", ("self",), _wrap_create_engine_config, "reading the gkt section")
    except (ImportError, BackendError) as exc:
        _log.warning("gkt-plugins cannot work in this vLLM, and a gkt section would have no effect: %s", exc)
        return
    try:
        from vllm.v1.worker.worker_base import WorkerBase

        replace(
            WorkerBase, "__init__", ("self", "vllm_config"), _wrap_worker, "preparing workers before they load a model"
        )
    except (ImportError, BackendError) as exc:
        _unfit = f"{exc}"


def ended(error: GktError) -> SystemExit:
    """What a process of vLLM's ends with; each sentence says whose it is."""
    return SystemExit("\n".join(f"gkt-plugins: {line}" for line in str(error).splitlines()))


def _wrap_create_engine_config(original: Callable[..., Any]) -> Callable[..., Any]:
    def create_engine_config(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not has_section(self.additional_config):
            return original(self, *args, **kwargs)
        from vllm.usage.usage_lib import UsageContext

        context = args[0] if args else kwargs.get("usage_context")
        headless = args[1] if len(args) > 1 else kwargs.get("headless", False)  # of several nodes, one without a server
        serves = context == UsageContext.OPENAI_API_SERVER and not headless
        try:
            if _unfit is not None:
                raise BackendError(f"workers of this vLLM cannot be prepared: {_unfit}")
            return _with_section(self, serves, lambda: original(self, *args, **kwargs))
        except GktError as exc:
            # Who starts a command of vLLM's reads one sentence, not the way through vLLM.
            if context in (UsageContext.OPENAI_API_SERVER, UsageContext.OPENAI_BATCH_RUNNER):
                raise ended(exc) from exc
            raise

    return create_engine_config


def _with_section(engine_args: Any, serves: bool, create: Callable[[], Any]) -> Any:
    """vLLM's configuration, with what the section's file adds; ``engine_args`` are left as they were."""
    import vllm

    from gkt_vllm.frontend import decide
    from gkt_vllm.launch import unloaded
    from gkt_vllm.section import read_section
    from gkt_vllm.started import remember

    section = read_section(engine_args.additional_config)
    assert section is not None
    given = engine_args.additional_config, engine_args.speculative_config, engine_args.async_scheduling
    start = decide(section, engine_args.model, engine_args.speculative_config, vllm.__version__)
    if serves:
        start.frozen.hand_down()
    engine_args.additional_config = start.additional_config(engine_args.additional_config)
    if start.speculative_config is not None:
        engine_args.speculative_config = start.speculative_config
    engine_args.async_scheduling = start.async_scheduling(engine_args.async_scheduling)
    try:
        vllm_config = create()
    except Exception as exc:
        if start.speculative_config is not None:  # vLLM complains of an argument that nobody typed
            exc.add_note(f"gkt-plugins wrote speculative_config = {start.speculative_config}, from {section.config}")
        raise
    finally:
        engine_args.additional_config, engine_args.speculative_config, engine_args.async_scheduling = given
    start.check(vllm_config, serves=serves, env=os.environ)
    start.count_requests(vllm_config)
    if not start.frozen.inherited:  # else the frontend has done and said it
        if serves and unloaded(os.environ) is None:
            from gkt_vllm.rehearsal import rehearse

            rehearse(start, vllm_config.model_config.served_model_name)
        start.announce(vllm_config, vllm.__version__)
    remember(start)
    return vllm_config


def _wrap_worker(original: Callable[..., Any]) -> Callable[..., Any]:
    def __init__(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807 - it replaces one
        if has_section(vllm_config.additional_config):
            from gkt_vllm.workers import prepare

            prepare(vllm_config)
            self.gkt_replaced = replaced  # for an API server to ask: that it is there says that this plugin is
        original(self, vllm_config, *args, **kwargs)

    return __init__
