"""Keys of ``[engines.NAME]`` with ``adapter = "transformers"``. Importing this loads no engine."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from gkt_plugins.contracts import Options

__all__ = ["TransformersOptions"]


class TransformersOptions(Options):
    """A model that runs in this process."""

    model: str
    """Folder that ``save_pretrained`` wrote, relative to the configuration file, or a hub id."""
    dtype: str = "auto"
    """``auto`` (as saved), ``float32``, ``float16`` or ``bfloat16``."""
    device: str = "auto"
    """``auto`` takes an accelerator when there is one; otherwise a torch device such as ``cpu`` or ``cuda:1``."""
    max_batch: Annotated[int, Field(ge=1)] = 8
    """Rows decoded together, at most."""
    max_wait_ms: Annotated[float, Field(ge=0)] = 5.0
    """How long the first call of a batch waits for company, in milliseconds."""
    max_context: Annotated[int, Field(ge=2)] | None = None
    """Prompt and answer together, in tokens, when that should be less than what the model can take."""
    threads: Annotated[int, Field(ge=1)] | None = None
    """CPU threads of this process's torch; None leaves its setting alone."""
    trust_remote_code: bool = False
    """Run code that comes with the model."""
    speculation: bool = True
    """Use the ``[speculation]`` section, when there is one; false for an engine that its draft does not fit."""
