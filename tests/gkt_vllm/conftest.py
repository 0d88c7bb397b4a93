"""Stands in for vLLM's first model runner, and for a third party's drafter; and a server that guides."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gkt_plugins.plugins import Plugins
from gkt_plugins.testing.plugins import write_distribution
from gkt_vllm.own_drafter import OwnDrafter

EOS = 2
LONGEST = 64
MOST = 4
PLUGIN = """
import torch
from gkt_plugins.contracts import Factory, Options, Proposal
from gkt_plugins.hookspecs import hookimpl

GKT_CONTRACT = 1
told = []

class Counting:
    \"\"\"Drafts the numbers after a row's last token.\"\"\"
    def __init__(self):
        self.asked, self.kept = [], []
    def propose(self, state, gamma):
        self.asked.append((list(state.rows), list(state.lengths), gamma))
        last = torch.tensor([row[n - 1] for row, n in zip(state.token_ids.tolist(), state.lengths)])
        return Proposal(last[:, None] + 1 + torch.arange(gamma), None)
    def commit(self, kept):
        self.kept.append(kept.tolist())

built = []

def build(options, context):
    built.append(Counting())
    return built[-1]

@hookimpl
def gkt_drafters():
    return {"counting": Factory(build, Options, "counts")}

@hookimpl
def gkt_trace(event):
    told.append(event)
"""


class FakeRequest(SimpleNamespace):
    """vLLM's record of a request; unlike its base, it can be watched by a weak reference."""


class FakeRunner:
    """Runs the steps of vLLM's scheduler and first model runner, with the target's tokens given."""

    def __init__(self, drafter: OwnDrafter) -> None:
        self.drafter = drafter
        self.requests: dict[str, Any] = {}
        self.input_batch = SimpleNamespace(req_ids=[])
        self._drafts: dict[str, list[int]] = {}

    def add(self, name: str, prompt: Sequence[int], **params: Any) -> None:
        """A new request, which is scheduled from now on."""
        self.requests[name] = FakeRequest(
            prompt_token_ids=list(prompt),
            output_token_ids=[],
            num_prompt_tokens=len(prompt),
            sampling_params=sampling_params(**params),
            mm_features=[],
            prompt_embeds=None,
            lora_request=None,
        )
        self.input_batch.req_ids.append(name)

    def step(
        self,
        sampled: Mapping[str, Sequence[int]],
        *,
        finished: Iterable[str] = (),
        verified: Mapping[str, int] | None = None,
        most: int = MOST,
        drafting: bool = True,
    ) -> dict[str, list[int]]:
        """One step.

        :param sampled: the target's tokens of each request that gains some.
        :param finished: who leaves before it.
        :param verified: of whom vLLM verifies fewer tokens than were drafted.
        :param drafting: False: a request is so near to the model's length that vLLM does not ask the drafter.
        :returns: what was drafted.
        """
        gone = set(finished)
        self._drafts = {name: ids for name, ids in self._drafts.items() if ids and name not in gone}
        for name, count in (verified or {}).items():
            self._drafts[name] = self._drafts[name][:count]
        output = SimpleNamespace(
            finished_req_ids=gone,
            scheduled_spec_decode_tokens={name: ids for name, ids in self._drafts.items() if ids},
            total_num_scheduled_tokens=len(sampled),
            num_spec_tokens_to_schedule=most,
        )
        self.drafter.begin(self, output)
        for name in gone:
            del self.requests[name]
        self.input_batch.req_ids = [name for name in self.input_batch.req_ids if name not in gone]
        names = self.input_batch.req_ids
        for name, new in sampled.items():
            self.requests[name].output_token_ids.extend(new)
        if not drafting:
            self._drafts = {}
            return {}
        rows = [self.requests[name].prompt_token_ids + self.requests[name].output_token_ids for name in names]
        ids = np.full((len(names), LONGEST), -1, dtype=np.int32)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = row
        lengths = np.array([len(row) for row in rows], dtype=np.int32)
        drafts = self.drafter.propose([list(sampled.get(name, ())) for name in names], lengths, ids, slot_mappings={})
        self._drafts = dict(zip(names, drafts, strict=True))
        return dict(self._drafts)


def sampling_params(**given: Any) -> Any:
    """vLLM's, as workers get them."""
    defaults = {
        "temperature": 0.0,
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "seed": None,
        "extra_args": None,
        "max_tokens": 32,
        "min_tokens": 0,
        "eos_token_id": EOS,
        "stop_token_ids": [],
        "stop": [],
        "skip_special_tokens": True,
    }
    return SimpleNamespace(**(defaults | given))


@pytest.fixture(name="sampling_params")
def _sampling_params() -> Callable[..., Any]:
    """``sampling_params(max_tokens=8)``: vLLM's, as workers get them."""
    return sampling_params


@pytest.fixture
def third_party(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module that is installed as a plugin: it has a drafter ``counting``, and observes traces."""
    folder = write_distribution(tmp_path / "site", "gkt-counting", "gkt_counting", PLUGIN)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "gkt_counting", raising=False)
    return importlib.import_module("gkt_counting")


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """``closed()``: lets the observers of all plugins that were loaded since then finish."""
    loaded = []
    observer = Plugins.observer

    def watched(self: Plugins, label: str, call: Callable[[Any], object]) -> Callable[[Any], None]:
        loaded.append(self)
        return observer(self, label, call)

    def closed() -> None:
        for plugins in loaded:
            plugins.close()

    monkeypatch.setattr(Plugins, "observer", watched)
    return closed


@pytest.fixture
def open_runner(tmp_path: Path, third_party: Any) -> Callable[..., FakeRunner]:
    """``open_runner(trace=…)``: a runner whose drafter counts; ``trace`` is the section of that name.

    ``engine``: which one of several data-parallel engines of a server.
    """

    def open_runner(trace: Mapping[str, Any] | None = None, engine: int = 0, **settings: Any) -> FakeRunner:
        drafter: dict[str, Any] = {"drafter": "counting", "drafter_options": {}, "base_dir": str(tmp_path)}
        drafter |= {"auto": False, "trace": trace} | settings
        section = {"config": "gkt.toml", "workers": {"drafter": drafter}}
        own = OwnDrafter(
            SimpleNamespace(
                additional_config={"gkt": json.loads(json.dumps(section))},
                device_config=SimpleNamespace(device="cpu"),
                model_config=SimpleNamespace(max_model_len=LONGEST, get_vocab_size=lambda: 100, model="models/target"),
                parallel_config=SimpleNamespace(tensor_parallel_size=1, data_parallel_index=engine),
                speculative_config=SimpleNamespace(num_speculative_tokens=MOST),
            )
        )
        own.load_model(None)
        return FakeRunner(own)

    return open_runner


@pytest.fixture
def runner(open_runner: Callable[..., Any]) -> Any:
    """One with what is usual."""
    return open_runner()


@pytest.fixture
def drafter(runner: Any, third_party: Any) -> Any:
    """The third party's, as ``runner`` built it."""
    return third_party.built[-1]


@pytest.fixture
def guided() -> str:
    """A gkt.toml by which the server guides its own answers."""
    return """
[engines.large]
adapter = "openai"
base_url = "http://127.0.0.1:1/v1"
model = "large"
[engines.here]
adapter = "vllm"
model = "small"
[pipelines.default]
teacher = "large"
student = "here"
"""
