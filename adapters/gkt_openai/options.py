"""The keys of an ``adapter = "openai"`` engine."""

from __future__ import annotations

from gkt_plugins.contracts import Options

__all__ = ["OpenAIOptions"]


class OpenAIOptions(Options):
    """An OpenAI-compatible endpoint."""

    base_url: str
    """Up to and including the version, e.g. `https://models.example/v1`."""
    model: str
    """Name of the model at the endpoint."""
    api_key_env: str | None = None
    """Environment variable that holds the key."""
