"""A configuration with two scripted engines, and ``gkt run`` on it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gkt_plugins import plugins as plugins_module
from gkt_plugins.cli import main
from gkt_plugins.contracts import BuildContext, Call, Engine, Factory, Options
from gkt_plugins.errors import EngineError
from gkt_plugins.hookspecs import hookimpl
from gkt_plugins.testing.engines import Script, ScriptedEngine
from gkt_plugins.testing.plugins import plugins_from

TOML = """
[engines.cloud]
adapter = "fake"
[engines.edge]
adapter = "fake"
[prices.cloud-model]
input_per_million = "2.00"
output_per_million = "10.00"
[prices.edge-model]
input_per_million = "0.20"
output_per_million = "1.00"
[pipelines.default]
teacher = "cloud"
student = "edge"
guidance.tokens = 3
[pipelines.alone]
student = "edge"
[retries]
attempts = 1
"""


class Fakes:
    """Engines that answer ``So it is. Truly NAME.``; they fail on ``fail``, and once each on ``once``."""

    GKT_CONTRACT = 1

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.calls: list[Call] = []
        self._failed_once: set[str] = set()

    @hookimpl
    def gkt_engines(self) -> dict[str, Factory[Engine]]:
        def build(options: Options, context: BuildContext) -> Engine:
            def script(call: Call) -> Script:
                question = call.prompt.text or call.prompt.messages[-1].content
                self.asked.append(question)
                self.calls.append(call)
                if "fail" in question or (context.name == "edge" and self._fails_once(question)):
                    return Script("", fails_after=0, error=EngineError("out of order", retryable="once" in question))
                return Script(f"So it is. Truly {context.name}.".removeprefix(call.prefix))

            return ScriptedEngine(script, name=context.name, model=f"{context.name}-model")

        return {"fake": Factory(build)}

    def _fails_once(self, question: str) -> bool:
        first = "once" in question and question not in self._failed_once
        self._failed_once.add(question)
        return first


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Fakes:
    made = Fakes()
    given = plugins_from(made)
    monkeypatch.setattr(plugins_module, "load_plugins", lambda **_: given)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gkt.toml").write_text(TOML)
    return made


@pytest.fixture
def gkt_run() -> Callable[..., int]:
    """``gkt run -i in.jsonl -o out.jsonl …``; its exit code."""

    def run(*arguments: str) -> int:
        given = (() if "-i" in arguments else ("-i", "in.jsonl")) + (() if "-o" in arguments else ("-o", "out.jsonl"))
        with pytest.raises(SystemExit) as ended:
            main(["run", *given, *arguments])
        assert isinstance(ended.value.code, int)
        return ended.value.code

    return run


@pytest.fixture
def chat() -> Callable[..., dict[str, Any]]:
    """A line that asks for a chat."""

    def line(custom_id: str | None, question: str = "Why?", /, **body: Any) -> dict[str, Any]:
        asked = {"model": "gkt/default", "temperature": 0, "messages": [{"role": "user", "content": question}], **body}
        made = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": asked}
        return made if custom_id is not None else {key: made[key] for key in ("method", "url", "body")}

    return line


@pytest.fixture
def write() -> Callable[..., None]:
    """Lines into ``in.jsonl``: objects, or texts as they are."""

    def to_file(*lines: Any, path: str = "in.jsonl") -> None:
        texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
        Path(path).write_text("".join(text + "\n" for text in texts), encoding="utf-8")

    return to_file


@pytest.fixture
def rows() -> Callable[..., dict[str, dict[str, Any]]]:
    """The rows of an output by custom id."""

    def read(path: str = "out.jsonl") -> dict[str, dict[str, Any]]:
        text = Path(path).read_text(encoding="utf-8")
        return {row["custom_id"]: row for row in map(json.loads, text.split("\n")[:-1])}

    return read
