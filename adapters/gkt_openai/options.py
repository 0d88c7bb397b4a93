"""The keys of an ``adapter = "openai"`` engine. Importing this loads no client."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias
from urllib.parse import urlsplit

from pydantic import AfterValidator, PositiveFloat, PositiveInt

from gkt_plugins.contracts import Options

__all__ = ["ChatRoute", "OpenAIOptions"]

ChatRoute: TypeAlias = Literal["completion", "continue_final_message", "prefix", "partial", "trailing", "hint"]
"""How a chat's answer goes on from a given beginning, best first.

``completion``: as a raw prompt, by the model's own ``chat_template``; ``continue_final_message``: by that flag of the
request; ``prefix`` or ``partial``: by that flag of the last message; ``trailing``: a last message of the assistant is
continued without a flag; ``hint``: the beginning is told in the user's turn, which is another method.
"""


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


def _headers(value: Mapping[str, str]) -> Mapping[str, str]:
    for name, text in value.items():
        if not _HEADER.fullmatch(name) or not text.isprintable():
            raise ValueError(f"must hold names and values of HTTP headers, got {name!r}")
        if name.lower() in ("host", "content-length", "transfer-encoding", "connection"):
            raise ValueError(f"must not hold {name!r}, which is set for each request")
    return value


def _body(value: Mapping[str, Any]) -> Mapping[str, Any]:
    if taken := sorted(set(value) & _OURS):
        raise ValueError(f"must not hold {taken[0]!r}, which each call sets for itself")
    return value


_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_OURS = frozenset({"model", "messages", "prompt", "stream", "stream_options", "n", "max_tokens",
                   "max_completion_tokens", "continue_final_message", "add_generation_prompt", "echo"})  # fmt: skip


class OpenAIOptions(Options):
    """An OpenAI-compatible endpoint."""

    base_url: Annotated[str, AfterValidator(_base_url)]
    """Up to and including the version, e.g. `https://models.example/v1`."""
    model: str
    """Name of the model at the endpoint."""
    api_key_env: str | None = None
    """Environment variable that holds the key."""
    prefix: ChatRoute | Literal["auto"] = "auto"
    """How a chat goes on from a given beginning of its answer; `auto` asks the endpoint, `gkt doctor` says."""
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
    headers: Annotated[Mapping[str, str], AfterValidator(_headers)] = {}
    """Sent with every request; never a key."""
    body: Annotated[Mapping[str, Any], AfterValidator(_body)] = {}
    """Fields of every request's body, such as `chat_template_kwargs = { enable_thinking = false }`."""
    proxy: str | None = None
    """HTTP proxy to go through, e.g. `http://proxy.example:3128`; the environment's is not used."""
    ca_file: str | None = None
    """PEM file of the authorities to trust instead of the system's."""
