"""What vLLM calls in each of its processes. Without a ``gkt`` section both wraps hand everything through."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from gkt_vllm.patching import replace
from gkt_vllm.section import read_section

__all__ = ["register"]


def register() -> None:
    """Entry point ``vllm.general_plugins``; vLLM calls it in the frontend, the engine and every worker.

    :raises BackendError: this vLLM has other functions where ours go; nothing starts.
    """
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.worker.worker_base import WorkerBase

    replace(EngineArgs, "create_engine_config", ("self",), _wrap_create_engine_config, "reading the gkt section")
    replace(WorkerBase, "__init__", ("self", "vllm_config"), _wrap_worker, "preparing workers before they load a model")


def _wrap_create_engine_config(original: Callable[..., Any]) -> Callable[..., Any]:
    def create_engine_config(self: Any, *args: Any, **kwargs: Any) -> Any:
        section = read_section(self.additional_config)
        if section is None:
            return original(self, *args, **kwargs)
        import vllm
        from vllm.usage.usage_lib import UsageContext

        from gkt_vllm.frontend import decide

        start = decide(section, self.model, self.speculative_config, vllm.__version__)
        self.additional_config = start.additional_config(self.additional_config)
        if start.speculative_config is not None:
            self.speculative_config = start.speculative_config
        vllm_config = original(self, *args, **kwargs)
        context = args[0] if args else kwargs.get("usage_context")
        serves = context == UsageContext.OPENAI_API_SERVER
        start.check(vllm_config, serves=serves, named=os.environ.get("VLLM_PLUGINS"))
        start.announce(vllm_config, vllm.__version__)
        return vllm_config

    return create_engine_config


def _wrap_worker(original: Callable[..., Any]) -> Callable[..., Any]:
    def __init__(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807 - it replaces one
        if read_section(vllm_config.additional_config) is not None:
            from gkt_vllm.workers import prepare

            prepare(vllm_config)
        original(self, vllm_config, *args, **kwargs)

    return __init__
