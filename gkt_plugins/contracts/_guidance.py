"""Guidance: how much of it, and where it is cut."""

from __future__ import annotations

from typing import Protocol

from gkt_plugins.contracts._engines import Prompt

__all__ = ["CuttingPolicy", "LengthPolicy"]


class LengthPolicy(Protocol):
    """How much guidance does this prompt get?"""

    def guidance_tokens(self, prompt: Prompt) -> int:
        """Teacher tokens to ask for, at least 0; 0 means that the student answers alone."""
        ...


class CuttingPolicy(Protocol):
    """How much of the teacher's text is certain to be handed over?"""

    def releasable(self, text: str, *, finished: bool) -> int:
        """Length in characters of the prefix of ``text`` that no later text can take back.

        ``finished``: the teacher's part is complete. Never shrinks as ``text`` grows.
        """
        ...
