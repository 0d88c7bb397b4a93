"""Loaded into the workers of an engine without our section, by vLLM's own ``worker_extension_cls``.

vLLM's CPU build samples from uninitialised memory where drafts and temperatures meet. The plugin mends that function;
an engine without the plugin is given the same here, or there would be nothing to compare with above temperature 0.
"""

from __future__ import annotations

from gkt_vllm import cpu_empty, cpu_expand

__all__ = ["Mended"]


class Mended:
    """Adds nothing to the worker; importing it is what matters."""


cpu_expand.mend()
cpu_empty.mend()
