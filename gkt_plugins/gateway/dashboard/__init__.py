"""``/dashboard``: what was spent, saved, answered and how fast, on one page.

``routes`` gives the page (static files, no data in them) and ``/dashboard/figures`` (JSON, for admins). ``figures``
answers for any time range from slices that are counted once; ``_queries`` asks the ledger, which does the adding up.
"""

from __future__ import annotations

from gkt_plugins.gateway.dashboard._http import DashboardState, routes

__all__ = ["DashboardState", "routes"]
