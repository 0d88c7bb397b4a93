"""The keys of an ``adapter = "openai"`` engine. Importing this loads no client."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias
from urllib.parse import urlsplit

from pydantic import AfterValidator, PositiveFloat, PositiveInt

from gkt_plugins.contracts import Options

__all__ = ["ChatRoute", "OpenAIOptions"]

ChatRoute: TypeAlias = Literal["completion", "continue_final_message", "prefix", "partial", "trailing", "hint"]
"""Ways of having an endpoint go on from a given beginning of its answer, best first; see ``prefix`` below."""


def _base_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"must be an address such as 'https://models.example/v1', got {value!r}")
    if parts.query or parts.fragment:
        raise ValueError("must end with the path, and has a '?' or '#'; set what follows it in headers or body")
    if parts.username or parts.password:
        raise ValueError("must carry no user or password; put the key into an environment variable, see api_key_env")
    for route in ("/chat/completions", "/completions", "/models"):
        if parts.path.rstrip("/").endswith(route):
            raise ValueError(f"must end before {route!r}, for example with '/v1', got {value!r}")
    return value.rstrip("/")


class OpenAIOptions(Options):
    """An OpenAI-compatible endpoint."""

    base_url: Annotated[str, AfterValidator(_base_url)]
    """Up to and including the version, e.g. `https://models.example/v1`."""
    model: str
    """Name of the model at the endpoint."""
    api_key_env: str | None = None
    """Environment variable that holds the key."""
    prefix: ChatRoute | Literal["auto"] = "auto"
    """How it goes on from a given beginning of an answer in a chat: `completion` (a raw prompt, with `chat_template`),
    `continue_final_message`, `prefix` or `partial` (flags of the last message), `trailing` (the last message alone),
    `hint` (it is told, which is another method). `auto` asks the endpoint; `gkt doctor` says what it found."""
    chat_template: str | None = None
    """Folder with the model's tokenizer files, or its `.jinja` file: chats can be sent as raw prompts then."""
    connect_timeout_s: PositiveFloat = 10.0
    """To open a connection."""
    read_timeout_s: PositiveFloat = 120.0
    """The longest silence, before the first token and between two."""
    concurrency: PositiveInt = 4096
    """Calls under way at once, at most; more wait."""
    batch_concurrency: PositiveInt = 32
    """Of one batch's calls, so many at once."""
    headers: Mapping[str, str] = {}
    """Sent with every request; never a key."""
    body: Mapping[str, Any] = {}
    """Fields of every request's body, such as `chat_template_kwargs = { enable_thinking = false }`."""
    proxy: str | None = None
    """HTTP proxy to go through, e.g. `http://proxy.example:3128`; the environment's is not used."""
    ca_file: str | None = None
    """PEM file of the authorities to trust instead of the system's."""
