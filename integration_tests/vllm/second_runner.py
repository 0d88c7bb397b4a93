"""Answers questions with vLLM's second model runner on a CPU, whose Triton kernels run under Triton's interpreter.

Reads ``{"engines": {NAME: ENGINE, …}, "configurations": {NAME: ENGINE, …}, "chats": […], "verify": {…}}`` on standard
input. An engine has ``config``, a file, ``options`` of vLLM's, and ``jobs``; configurations are made, and not run. Jobs
have ``questions``, how many of the chats, ``temperature``, ``max_tokens``, ``extra_args``, a list that requests take in
turn, and may have a ``regex``. The last line of standard output has the same names, with what came of each. Run on its
own, because the interpreter has to be chosen before Triton is imported; it says nothing about speed.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from typing import Any

os.environ.update(TRITON_INTERPRET="1", VLLM_USE_V2_MODEL_RUNNER="1", VLLM_ENABLE_V1_MULTIPROCESSING="0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

import numpy as np
import torch
import triton
import triton.language as tl
import triton.language.extra.libdevice as libdevice
from triton.backends import Backend, backends
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


class CpuDriver:
    """As much of a device as vLLM asks for; the interpreter needs none."""

    @staticmethod
    def is_active() -> bool:
        return True

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_device_interface(self) -> Any:
        return torch.cpu

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cpu", 0, 32)


@triton.jit
def log1p(x):  # type: ignore[no-untyped-def]
    return tl.log(1.0 + x)


def prepare() -> None:
    """Tell vLLM that there is a backend, and mend what the interpreter cannot do."""
    backends["cpu"] = Backend(None, CpuDriver)
    driver.set_active(CpuDriver())
    libdevice.log1p = log1p  # no body under the interpreter
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

    def boolean(mask: Any) -> Any:  # numpy wants masks of booleans, kernels may give integers
        wrong = mask is not None and mask.data.dtype != np.bool_
        return TensorHandle(mask.data.astype(np.bool_), tl.int1) if wrong else mask

    InterpreterBuilder.create_masked_load = lambda self, pointers, mask, *rest: load(
        self, pointers, boolean(mask), *rest
    )
    InterpreterBuilder.create_masked_store = lambda self, pointers, value, mask, *rest: store(
        self, pointers, value, boolean(mask), *rest
    )


def counters(llm: Any) -> dict[str, Any]:
    """vLLM's own, of speculation and preemption."""
    named = {metric.name: metric for metric in llm.get_metrics()}
    values: dict[str, Any] = {
        name: named[f"vllm:spec_decode_num_{name}"].value for name in ("drafts", "draft_tokens", "accepted_tokens")
    }
    values["preemptions"] = named["vllm:num_preemptions"].value
    return values | {"per_position": named["vllm:spec_decode_num_accepted_tokens_per_pos"].values}


def answer(llm: Any, chats: list[Any], job: dict[str, Any]) -> dict[str, Any]:
    """What came of one job."""
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    from gkt_vllm.counters import drafts_of

    grammar = {"structured_outputs": StructuredOutputsParams(regex=job["regex"])} if "regex" in job else {}
    extra = job["extra_args"]
    params = [
        SamplingParams(
            temperature=job["temperature"], max_tokens=job["max_tokens"], ignore_eos="regex" not in job,
            extra_args=extra[i % len(extra)], **grammar,
        )
        for i in range(len(chats))
    ]  # fmt: skip
    before = counters(llm)
    finished = llm.chat(chats, params, use_tqdm=False)
    answers = [one.outputs[0] for one in finished]
    after = counters(llm)
    gained: dict[str, Any] = {name: after[name] - before[name] for name in before if name != "per_position"}
    gained["per_position"] = [new - old for old, new in zip(before["per_position"], after["per_position"], strict=True)]
    return {
        "prompts": [list(one.prompt_token_ids) for one in finished],
        "token_ids": [list(one.token_ids) for one in answers],
        "texts": [one.text for one in answers],
        "drafted": [drafts_of(one)[0] for one in answers],
        "counters": gained,
    }


def engine_options(engine: dict[str, Any]) -> dict[str, Any]:
    """How vLLM's arguments are given, offline."""
    from gkt_plugins.demo.models import model_dir

    section = {"gkt": {"config": engine["config"]}}
    fixed = {"model": str(model_dir("teacher")), "dtype": "float32", "enforce_eager": True, "max_model_len": 256}
    return fixed | {"max_num_seqs": 16, "additional_config": section} | engine["options"]


def configure(engine: dict[str, Any]) -> dict[str, Any]:
    """What vLLM makes of the arguments, or the sentence that they are refused with; nothing is loaded."""
    from vllm.engine.arg_utils import EngineArgs

    from gkt_plugins.errors import ConfigError

    try:
        made = EngineArgs(**engine_options(engine)).create_engine_config()
    except ConfigError as exc:
        return {"refused": str(exc)}
    assert made.use_v2_model_runner
    return {"method": made.speculative_config.method, "asynchronous": made.scheduler_config.async_scheduling}


def run(engine: dict[str, Any], chats: list[Any]) -> list[dict[str, Any]]:
    """What came of the jobs of one engine."""
    from vllm import LLM

    llm = LLM(disable_log_stats=False, **engine_options(engine))
    try:
        assert llm.llm_engine.vllm_config.use_v2_model_runner
        return [answer(llm, chats[: job["questions"]], job) for job in engine["jobs"]]
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()
        gc.freeze()  # what is left was imported; vLLM looks through all of it a dozen times while an engine starts


def main() -> None:
    prepare()
    from second_runner_verify import verify

    work = json.load(sys.stdin)
    found: dict[str, Any] = {"engines": {name: run(engine, work["chats"]) for name, engine in work["engines"].items()}}
    found["configurations"] = {name: configure(engine) for name, engine in work["configurations"].items()}
    found["verify"] = verify(**work["verify"])
    print(json.dumps(found))


if __name__ == "__main__":
    main()
