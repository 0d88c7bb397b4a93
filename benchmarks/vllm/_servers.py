"""vLLM servers, each a process of its own: plain ones, and students that are guided."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field

from benchmarks.gateway._processes import free_port, running
from benchmarks.vllm._setting import ENVIRONMENT, NOT_INSTALLED, Setting
from gkt_plugins.demo.models import model_dir

__all__ = ["GUIDANCE_TOKENS", "PRICES", "ServerSettings", "guided", "plain", "ports", "start"]

GUIDANCE_TOKENS = 24
"""What ``gkt demo`` shows."""
PRICES: Mapping[str, tuple[str, str]] = {"teacher": ("1.00", "4.00"), "student": ("0.10", "0.40")}
"""Per million tokens read, and written; those of ``gkt demo``."""
_OPTIONS = ("--host", "127.0.0.1", "--dtype", "float32", "--enforce-eager", "--max-model-len", "640",
            "--max-num-seqs", "16", "--no-enable-prefix-caching", "--disable-uvicorn-access-log")  # fmt: skip
"""Without prefix caching: whoever comes second in a turn would find the prompts of the first."""
_OFFLINE = {**ENVIRONMENT, "HF_HUB_OFFLINE": "1"}
_PATIENCE_S = 300.0


@dataclass(frozen=True)
class ServerSettings:
    """One server."""

    name: str
    command: Sequence[str]
    """Without its port."""
    environment: Mapping[str, str] = field(default_factory=dict)


def plain(name: str, model: str) -> ServerSettings:
    """vLLM alone."""
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", model, *_OPTIONS]
    return ServerSettings(name, [*command, "--served-model-name", name], {**_OFFLINE, **NOT_INSTALLED})


def guided(name: str, setting: Setting, teacher_url: str, teacher: str, *, tokens: int = GUIDANCE_TOKENS,
           cut: str = "word") -> ServerSettings:  # fmt: skip
    """The student's server, guided by the model ``teacher`` at ``teacher_url``."""
    config = setting.work / f"{name}.toml"
    prices = (
        f'[prices.{model}]\ninput_per_million = "{price[0]}"\noutput_per_million = "{price[1]}"\n'
        for model, price in ((teacher, PRICES["teacher"]), ("student", PRICES["student"]))
    )
    config.write_text(
        f'ledger.url = "sqlite:///{name}.db"\n'
        f'[engines.teacher]\nadapter = "openai"\nbase_url = "{teacher_url}"\nmodel = "{teacher}"\n'
        'prefix = "continue_final_message"\n'
        '[engines.here]\nadapter = "vllm"\nmodel = "student"\n'
        f"{''.join(prices)}"
        '[pipelines.default]\nteacher = "teacher"\nstudent = "here"\n'
        f'[pipelines.default.guidance]\ntokens = {tokens}\ncut = "{cut}"\n'
    )
    command = [sys.executable, "-m", "gkt_plugins.cli", "vllm", "serve", str(model_dir("student")), *_OPTIONS]
    return ServerSettings(name, [*command, "--served-model-name", "student", "--gkt", str(config)], _OFFLINE)


def start(stack: ExitStack, setting: Setting, servers: Mapping[str, tuple[ServerSettings, int]]) -> None:
    """Start all of them, two at a time; they end with ``stack``. ``servers``: settings and port, by name."""

    def begin(server: tuple[ServerSettings, int]) -> None:
        settings, port = server
        stack.enter_context(
            running(
                [*settings.command, "--port", str(port)],
                f"http://127.0.0.1:{port}/health",
                setting.work / f"{settings.name}.log",
                env=settings.environment,
                patience_s=_PATIENCE_S,
            )
        )

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(begin, servers.values()))


def ports(names: Sequence[str]) -> dict[str, int]:
    """A free one for each."""
    return {name: free_port() for name in names}
