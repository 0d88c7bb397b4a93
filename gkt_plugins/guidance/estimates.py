"""Token counts of calls whose engine did not report them; always marked as estimated."""

from __future__ import annotations

from gkt_plugins.contracts import Call, Usage
from gkt_plugins.errors import EngineError

__all__ = ["estimate_tokens", "estimate_usage"]

_BYTES_PER_TOKEN = 4
"""Common for English text and a vocabulary of 30,000 to 150,000; code and other scripts differ."""


def estimate_tokens(text: str) -> int:
    """Tokens in ``text``, from its size in UTF-8; 0 only for no text."""
    return -(-len(text.encode("utf-8", "surrogatepass")) // _BYTES_PER_TOKEN)


def estimate_usage(call: Call, text: str, error: EngineError | None = None) -> Usage:
    """What ``call`` used when it produced ``text``, perhaps ended with ``error``, and nobody said more."""
    if error is not None and error.refused and not text:
        return Usage(prompt_tokens=0, completion_tokens=0, seconds=0.0)
    asked = call.prompt.text if call.prompt.text is not None else "\n".join(m.content for m in call.prompt.messages)
    return Usage(
        prompt_tokens=estimate_tokens(asked) + estimate_tokens(call.prefix),
        completion_tokens=estimate_tokens(text),
        estimated=True,
    )
