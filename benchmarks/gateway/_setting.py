"""The sides: the upstream itself, our gateway and LiteLLM's proxy in front of it, all with the same requests."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gateway._load import Ask
from benchmarks.gateway._processes import Program, free_port, running

__all__ = ["Setting", "Side", "configuration", "gateway", "litellm", "new_key", "upstream"]

GUIDANCE_TOKENS = 10
PROMPT = "Why is the sky blue, and why is it red in the evening?"


@dataclass(frozen=True)
class Setting:
    """One run of the benchmark."""

    quick: bool
    work: Path
    """Configurations, ledgers and logs; thrown away in the end."""
    litellm: Path
    """LiteLLM's command, in an environment of its own."""


@dataclass(frozen=True)
class Side:
    """One way of getting an answer."""

    name: str
    url: str
    """Up to and including the version."""
    program: Program
    headers: Mapping[str, str]

    def ask(self, model: str, tokens: int, *, stream: bool = False) -> Ask:
        """One chat of ``tokens`` tokens."""
        body = {
            "model": model,
            "messages": [{"role": "user", "content": PROMPT}],
            "max_tokens": tokens,
            "stream": stream,
        }
        return Ask(f"{self.url}/chat/completions", body, self.headers)

    def journey(self, behaviour: str, tokens: int, *, guided: bool = False, stream: bool = False) -> list[Ask]:
        """What a client of this side asks for an answer of ``tokens`` tokens from models of this ``behaviour``.

        Where nobody guides, the client of the upstream does so itself: first the teacher, then the student.
        """
        if self.name == "direct":
            parts = [GUIDANCE_TOKENS, tokens - GUIDANCE_TOKENS] if guided else [tokens]
            return [self.ask(behaviour, part, stream=stream) for part in parts]
        if self.name.startswith("litellm"):
            return [self.ask(behaviour, tokens, stream=stream)]
        return [self.ask(f"gkt/{behaviour}{'-guided' if guided else ''}", tokens, stream=stream)]


@contextlib.contextmanager
def upstream(setting: Setting) -> Iterator[Side]:
    """The model server."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.gateway._upstream", "--port", str(port)]
    url = f"http://127.0.0.1:{port}/v1"
    with running(command, f"{url}/models", setting.work / "upstream.log") as program:
        yield Side("direct", url, program, {})


def new_key() -> str:
    """A client's key."""
    return f"gkt-{secrets.token_urlsafe(32)}"


def configuration(setting: Setting, name: str, upstream_url: str, behaviours: Sequence[str], key: str) -> Path:
    """A ``gkt.toml``: every behaviour as a pipeline, and once more as ``…-guided``; prices, a key, a ledger on disk."""
    lines = [
        f'ledger.url = "sqlite:///{name}.db"',
        "[gateway.keys.load]",
        f'sha256 = "{hashlib.sha256(key.encode()).hexdigest()}"',
    ]
    for behaviour in behaviours:
        lines += [
            f"[engines.{behaviour}]",
            'adapter = "openai"',
            f'base_url = "{upstream_url}"',
            f'model = "{behaviour}"',
            'prefix = "continue_final_message"',
            f"[prices.{behaviour}]",
            'input_per_million = "0.25"',
            'output_per_million = "1.00"',
            f"[pipelines.{behaviour}]",
            f'student = "{behaviour}"',
            f"[pipelines.{behaviour}-guided]",
            f'teacher = "{behaviour}"',
            f'student = "{behaviour}"',
            f"[pipelines.{behaviour}-guided.guidance]",
            f"tokens = {GUIDANCE_TOKENS}",
        ]
    path = setting.work / f"{name}.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


@contextlib.contextmanager
def gateway(
    setting: Setting, direct: Side, behaviours: Sequence[str], *, name: str = "gateway", arguments: Sequence[str] = ()
) -> Iterator[Side]:
    """``gkt serve`` in front of the upstream."""
    key = new_key()
    config = configuration(setting, name, direct.url, behaviours, key)
    port = free_port()
    command = [sys.executable, "-m", "gkt_plugins.cli", "serve", "--config", str(config), "--port", str(port)]
    url = f"http://127.0.0.1:{port}"
    with running([*command, *arguments], f"{url}/health", setting.work / f"{name}.log") as program:
        yield Side(name, f"{url}/v1", program, {"authorization": f"Bearer {key}"})


_LITELLM = """\
model_list:
{models}
litellm_settings:
  drop_params: true
general_settings:
  master_key: {key}
"""
_LITELLM_MODEL = """\
  - model_name: {behaviour}
    litellm_params: {{model: openai/{behaviour}, api_base: "{url}", api_key: none}}
"""
_LITELLM_ENV = {"LITELLM_MODE": "PRODUCTION", "LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
"""As its documentation advises for production; and it is not to ask the network for prices."""


@contextlib.contextmanager
def litellm(
    setting: Setting, direct: Side, behaviours: Sequence[str], *, name: str = "litellm", arguments: Sequence[str] = ()
) -> Iterator[Side]:
    """LiteLLM's proxy in front of the upstream: no database, no callbacks, one key."""
    key = f"sk-{secrets.token_urlsafe(32)}"
    models = "".join(_LITELLM_MODEL.format(behaviour=behaviour, url=direct.url) for behaviour in behaviours)
    config = setting.work / f"{name}.yaml"
    config.write_text(_LITELLM.format(models=models, key=key))
    port = free_port()
    command = [str(setting.litellm), "--config", str(config), "--host", "127.0.0.1", "--port", str(port), *arguments]
    url = f"http://127.0.0.1:{port}"
    env = {**_LITELLM_ENV, "PATH": f"{setting.litellm.parent}{os.pathsep}{os.environ['PATH']}"}
    with running(command, f"{url}/health/liveliness", setting.work / f"{name}.log", env=env) as program:
        yield Side(name, f"{url}/v1", program, {"authorization": f"Bearer {key}"})
