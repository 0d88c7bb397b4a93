"""A gateway in a process of its own, over real sockets::

with GatewayProcess(toml, folder) as gateway:
    reply = gateway.post("/v1/chat/completions", {"model": "gkt/default", "messages": […]})
"""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

__all__ = ["GatewayProcess", "GatewayReply"]

_SERVING = re.compile(r"Serving .* at (http://\S+)/v1")
_START_S = 60.0
_STOP_S = 40.0


@dataclass(frozen=True, slots=True)
class GatewayReply:
    """A whole response; names of headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)


class GatewayProcess:
    """``gkt serve``. Use it as a ``with`` block; leaving it sends SIGTERM and waits."""

    def __init__(
        self,
        toml: str,
        folder: Path,
        *,
        env: Mapping[str, str] | None = None,
        arguments: tuple[str, ...] = (),
        wrapper: tuple[str, ...] = (),
    ) -> None:
        """``toml`` is written to ``folder/gkt.toml``; the process runs in ``folder``, so its ledger is there.

        ``env``: on top of the environment. ``arguments``: of ``gkt serve``. ``wrapper``: a command that runs it, such
        as one that sets limits first.
        """
        self.folder = folder
        self._file = folder / "gkt.toml"
        self._file.write_text(toml, encoding="utf-8")
        self._command = [
            *wrapper, sys.executable, "-m", "gkt_plugins.cli", "serve", "--config", str(self._file), "--port", "0",
            *arguments,
        ]  # fmt: skip
        self._env = {**os.environ, **(env or {})}
        self._lines: list[str] = []
        self._started = threading.Event()
        self.url = ""
        """Without the ``/v1``."""

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(
            self._command, cwd=self.folder, env=self._env, stderr=subprocess.PIPE, text=True, errors="replace"
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if not self._started.wait(_START_S) or not self.url:
            self.stop()
            raise RuntimeError(f"the gateway did not start; it said: {self.log!r}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def log(self) -> str:
        """What the process said so far."""
        return "".join(self._lines)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End the process, by default politely; its exit code. Safe to call twice."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            code = self.process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        self._reader.join()
        return code

    def get(self, path: str, *, headers: Mapping[str, str] | None = None) -> GatewayReply:
        """``GET path``."""
        return self.send("GET", path, headers=headers)

    def post(self, path: str, body: object, *, headers: Mapping[str, str] | None = None) -> GatewayReply:
        """``POST path``. ``body``: bytes as they are, anything else as JSON."""
        return self.send("POST", path, body, headers=headers)

    def send(
        self, method: str, path: str, body: object = None, *, headers: Mapping[str, str] | None = None
    ) -> GatewayReply:
        """Any request, on a connection of its own."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        sent = {"content-type": "application/json"} if data is not None else {}
        address = self.url.removeprefix("http://")
        connection = http.client.HTTPConnection(address, timeout=60)
        try:
            connection.request(method, path, data, {**sent, **(headers or {})})
            response = connection.getresponse()
            names = {name.lower(): value for name, value in response.getheaders()}
            return GatewayReply(response.status, names, response.read())
        finally:
            connection.close()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._lines.append(line)
            if found := _SERVING.search(line):
                self.url = found.group(1)
                self._started.set()
        self._started.set()
