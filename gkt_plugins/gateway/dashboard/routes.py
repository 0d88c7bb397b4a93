"""The page, its files and its figures over HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from starlette.routing import Route

from gkt_plugins.gateway.access import Access

if TYPE_CHECKING:
    from gkt_plugins.config import Config
    from gkt_plugins.plugins import Plugins

__all__ = ["DashboardState", "routes"]


class DashboardState(Protocol):
    """What the dashboard needs of the gateway's state."""

    @property
    def config(self) -> Config: ...
    @property
    def plugins(self) -> Plugins: ...
    @property
    def env(self) -> Mapping[str, str]: ...
    @property
    def access(self) -> Access: ...


def routes(state: DashboardState) -> list[Route]:
    """``/dashboard``, ``/dashboard/figures`` and the page's files.

    The ledger is opened for reading when the first figures are asked for.
    """
    raise NotImplementedError
