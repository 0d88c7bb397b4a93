"""A vLLM that is not the one that was tried starts where nothing of ours is asked for, and only there."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from types import ModuleType
from typing import Any

import pytest

from gkt_plugins.errors import BackendError, GktError
from gkt_vllm import registering
from gkt_vllm.versions import TRIED

SECTION = {"gkt": {"config": "gkt.toml"}}


class EngineArgs:
    def __init__(self, additional_config: Any = None) -> None:
        self.additional_config = additional_config

    def create_engine_config(self, usage_context: Any = None) -> str:
        return "made"


class WorkerBase:
    def __init__(self, vllm_config: Any) -> None:
        self.vllm_config = vllm_config


class OtherWorker:
    def __init__(self, configuration: Any) -> None:
        self.configuration = configuration


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``installed(engine_args, worker)``: a vLLM with these classes, or without one, in which we were registered."""

    def installed(engine_args: type | None, worker: type | None) -> None:
        names = ("vllm", "vllm.engine", "vllm.engine.arg_utils", "vllm.v1", "vllm.v1.worker", "vllm.usage")
        for name in (*names, "vllm.v1.worker.worker_base", "vllm.usage.usage_lib"):
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
        context = type("UsageContext", (), {"OPENAI_API_SERVER": "server", "OPENAI_BATCH_RUNNER": "batch"})
        for name, member, value in (
            ("vllm.engine.arg_utils", "EngineArgs", engine_args and type("EngineArgs", (engine_args,), {})),
            ("vllm.v1.worker.worker_base", "WorkerBase", worker and type("WorkerBase", (worker,), {})),
            ("vllm.usage.usage_lib", "UsageContext", context),
        ):
            if value is not None:
                setattr(sys.modules[name], member, value)
        monkeypatch.setattr(registering, "_unfit", None)
        registering.register()

    return installed


def made(**options: Any) -> Any:
    args = sys.modules["vllm.engine.arg_utils"].EngineArgs(**options)
    return args.create_engine_config()


@pytest.mark.parametrize("worker", [WorkerBase, OtherWorker, None])
def test_without_a_section_any_vllm_starts(installed, worker, caplog):
    installed(EngineArgs, worker)
    assert made() == "made"
    assert made(additional_config={"other": {}}) == "made"
    assert caplog.records == []


def test_with_a_section_a_vllm_whose_workers_are_others_does_not_start(installed):
    installed(EngineArgs, OtherWorker)
    with pytest.raises(BackendError, match=r"cannot be prepared: .*takes \(self, configuration\) in this vLLM"):
        made(additional_config=SECTION)


@pytest.mark.parametrize("context", ["server", "batch"])
def test_a_command_of_vllms_says_so_in_one_sentence(installed, context):
    installed(EngineArgs, OtherWorker)
    args = sys.modules["vllm.engine.arg_utils"].EngineArgs(SECTION)
    with pytest.raises(SystemExit, match="gkt-plugins: workers of this vLLM cannot be prepared"):
        args.create_engine_config(context)


def test_of_several_sentences_each_says_whose_it_is():
    assert str(registering.ended(GktError("one\ntwo"))) == "gkt-plugins: one\ngkt-plugins: two"


class Refusing(EngineArgs):
    model = "target"
    speculative_config = async_scheduling = None

    def create_engine_config(self, usage_context: Any = None) -> str:
        raise ValueError("no such draft")


def test_what_vllm_refuses_of_what_we_filled_in_is_told_with_the_file_it_comes_from(installed, tmp_path, monkeypatch):
    installed(Refusing, WorkerBase)
    monkeypatch.setattr(sys.modules["vllm"], "__version__", f"{TRIED[-1]}.0", raising=False)
    file = tmp_path / "gkt.toml"
    file.write_text('[speculation]\ndrafter = "model"\ndraft = "owner/nobody"')
    with pytest.raises(ValueError, match="no such draft") as refused:
        made(additional_config={"gkt": {"config": str(file)}})
    [note] = refused.value.__notes__
    assert "'model': 'owner/nobody'" in note
    assert str(file) in note
    file.write_text("")
    with pytest.raises(ValueError, match="no such draft") as refused:
        made(additional_config={"gkt": {"config": str(file)}})
    assert not hasattr(refused.value, "__notes__")


def test_a_configuration_that_is_no_table_goes_to_vllm_as_it_came(installed):
    installed(EngineArgs, WorkerBase)
    assert made(additional_config=object()) == "made"  # a platform's plugin may bring a class of its own


def modules_after(code: str) -> set[str]:
    """Top-level packages, and modules of ours, that a fresh interpreter has loaded."""
    report = "import sys, json; print(json.dumps([*sys.modules]))"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=True)
    names = json.loads(done.stdout)
    return {name if name.startswith("gkt_") else name.partition(".")[0] for name in names}


def test_what_vllm_loads_in_every_process_is_pythons_own_and_a_few_files_of_ours():
    loaded = modules_after("from gkt_vllm.registering import register") - modules_after("")
    ours = {name for name in loaded if name.startswith("gkt_")}
    assert ours == {"gkt_vllm", "gkt_vllm.registering", "gkt_vllm.patching", "gkt_plugins", "gkt_plugins.errors"}
    assert loaded - ours <= set(sys.stdlib_module_names)


def test_the_front_doors_plugin_loads_no_server_of_ours_without_a_section():
    attach = (
        "from types import SimpleNamespace as N\nfrom gkt_vllm.endpoint import GktEndpoint\n"
        "GktEndpoint().attach_router(N(state=N(args=N(additional_config={'other': 1}))))"
    )
    assert not modules_after(attach) & {"sqlalchemy", "pydantic", "gkt_plugins.gateway", "gkt_vllm.serving"}


@pytest.mark.parametrize("engine_args", [None, type("EngineArgs", (), {})])
def test_a_vllm_in_which_no_section_can_be_read_starts_with_a_warning(installed, caplog, engine_args):
    with caplog.at_level(logging.WARNING, logger="vllm.gkt"):
        installed(engine_args, WorkerBase)
    [record] = caplog.records
    assert "a gkt section would have no effect" in record.getMessage()
