"""What a server tells of itself, for ``gkt doctor``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gkt_plugins.contracts import Finding

__all__ = ["findings"]


def findings(info: Mapping[str, Any], concurrency: int, *, can_template: bool) -> list[Finding]:
    """``info``: the response of ``/info``. ``can_template``: the server applies its chat template for us."""
    room = info["max_concurrent_requests"]
    crowded = concurrency > room
    return [
        Finding("server", f"text-generation-inference {info['version']}, model {info['model_id']}"),
        Finding("prefix route", "raw text, on /generate and /generate_stream", True),
        Finding(
            "chats",
            "continued, by the server's own template" if can_template else "answered, and never continued",
            can_template,
            "" if can_template else "The server has no fast tokenizer: give it raw prompts, or guide another student.",
        ),
        Finding(
            "calls at a time",
            f"{room} taken by the server, {concurrency} sent at most",
            not crowded,
            f"Set concurrency to {room} or less, or the server refuses what is more." if crowded else "",
        ),
        Finding(
            "tokens", f"{info['max_input_tokens']} of a prompt, {info['max_total_tokens']} with its answer, at most"
        ),
    ]
