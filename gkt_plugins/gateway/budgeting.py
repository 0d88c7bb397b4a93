"""Budgets before a request: shorten the guidance, then leave the teacher out, then refuse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gkt_plugins.gateway.access import Client
from gkt_plugins.guidance.events import Request
from gkt_plugins.guidance.exchange import Parts

__all__ = ["Admission", "Ladder"]


@dataclass
class Admission:
    """Leave to serve a request, and what is held for it until it is settled."""

    guidance_tokens: int | None
    """What the request is to be served with; None: as it asks and as the pipeline says."""
    note: str = ""
    """What the answer should say; empty where the budget changed nothing."""

    @property
    def degraded(self) -> bool:
        """The budget gave it less guidance than it asked for."""
        return bool(self.note)

    async def settle(self, spent_nano: int | None) -> None:
        """Give back what was held and not spent. To be awaited once, however the request ended.

        ``spent_nano``: None where the cost of a call is unknown; then all that was held counts as spent.
        """
        raise NotImplementedError


class Ladder:
    """Holds every request against the budgets of its client and of all."""

    async def admit(
        self, client: Client, requests: Sequence[Request], parts: Parts, *, forwarded: bool = False
    ) -> Admission:
        """Reserve what ``requests`` (the prompts of one HTTP request) may cost at most.

        ``forwarded``: they go to the student untouched, so no teacher can cost anything.

        :raises RefusedError: 429 ``insufficient_quota``, not even the student alone fits; 503 ``price_unknown``.
        """
        raise NotImplementedError
