"""A browser, and who looks at the dashboard with it."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from gkt_plugins.testing.gateway_process import GatewayProcess


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    assert chromium, "there is no chromium; install Debian's package, or name the program in CHROMIUM"
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


class Visitor:
    """Opens pages that complain about nothing and load nothing from elsewhere."""

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        self._contexts: list[BrowserContext] = []
        self.complaints: list[str] = []
        self.addresses: list[str] = []

    def open(self, gateway: GatewayProcess, view: str = "", *, width: int = 1280, **options: Any) -> Page:
        context = self._browser.new_context(viewport={"width": width, "height": 900}, locale="en-GB", **options)
        self._contexts.append(context)
        return self.tab(context, gateway, view)

    def tab(self, context: BrowserContext, gateway: GatewayProcess, view: str = "") -> Page:
        page = context.new_page()
        page.on("console", lambda message: self._complain(message.type, message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda sent: self.addresses.append(sent.url))
        page.goto(f"{gateway.url}/dashboard#{view}")
        return page

    def _complain(self, kind: str, text: str) -> None:
        if kind in ("error", "warning") and "Failed to load resource" not in text:  # what a refused request reads as
            self.complaints.append(text)

    def leave(self) -> None:
        for context in self._contexts:
            context.close()


@pytest.fixture
def visitor(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Visitor]:
    visiting = Visitor(browser)
    yield visiting
    visiting.leave()
    assert visiting.complaints == []
    assert {re.match(r"(\w+:(//127\.0\.0\.1)?)", address)[1] for address in visiting.addresses} == {"http://127.0.0.1"}  # type: ignore[index]
