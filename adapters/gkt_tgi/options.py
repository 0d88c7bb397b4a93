"""The keys of an ``adapter = "tgi"`` engine."""

from __future__ import annotations

from pydantic import PositiveFloat, PositiveInt

from gkt_plugins.contracts import Options

__all__ = ["TGIOptions"]


class TGIOptions(Options):
    """A text-generation-inference server."""

    base_url: str
    """Where the server listens, e.g. `http://127.0.0.1:8080`."""
    model: str
    """Name of the model, for prices and records."""
    api_key_env: str | None = None
    """Environment variable that holds the key."""
    connect_timeout_s: PositiveFloat = 5.0
    """How long connecting may take."""
    read_timeout_s: PositiveFloat = 120.0
    """How long the server may be silent."""
    concurrency: PositiveInt = 128
    """Calls at a time, at most; TGI itself takes 128 unless told otherwise, and refuses more."""
