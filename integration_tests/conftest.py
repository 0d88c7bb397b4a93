"""What integration tests share. Those below ``vllm/`` run in the environment that holds vLLM, and only there."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec
from pathlib import Path

import httpx2
import pytest

collect_ignore = ["vllm"] if find_spec("vllm") is None else []


@pytest.fixture(scope="session")
def transformers_serve() -> Callable[[Path], AbstractContextManager[str]]:
    """``with transformers_serve(folder) as url``: a running ``transformers serve``; its address, without ``/v1``."""

    @contextmanager
    def transformers_serve(model: Path) -> Iterator[str]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(model), "--port", str(port)]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        server = subprocess.Popen([*command, "--device", "cpu", "--dtype", "float32"], env=environment)
        url = f"http://127.0.0.1:{port}"
        try:
            deadline = time.monotonic() + 120
            while not answers(f"{url}/health"):
                assert server.poll() is None, f"the server ended with exit code {server.returncode}"
                assert time.monotonic() < deadline, f"{url} did not answer"
                time.sleep(0.5)
            yield url
        finally:
            server.terminate()
            server.wait(timeout=30)

    return transformers_serve


def answers(url: str) -> bool:
    try:
        return httpx2.get(url, timeout=2).status_code == 200
    except httpx2.HTTPError:
        return False
