"""Answers questions with vLLM's second model runner on a CPU, whose Triton kernels run under Triton's interpreter.

Reads ``{"config": FILE, "chats": […], "jobs": [{"temperature": T, "max_tokens": N, "epsilon": E}, …]}`` on standard
input. The last line of standard output is ``[{"token_ids": […], "counters": {…}}, …]``, one for each job. Run on its
own, because the interpreter has to be chosen before Triton is imported; it says nothing about speed.
"""

from __future__ import annotations

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
    """vLLM's own, of speculation."""
    named = {metric.name: metric for metric in llm.get_metrics()}
    values: dict[str, Any] = {
        name: named[f"vllm:spec_decode_num_{name}"].value for name in ("drafts", "draft_tokens", "accepted_tokens")
    }
    return values | {"per_position": named["vllm:spec_decode_num_accepted_tokens_per_pos"].values}


def main() -> None:
    prepare()
    from vllm import LLM, SamplingParams

    from gkt_plugins.demo.models import model_dir

    job = json.load(sys.stdin)
    llm = LLM(
        model=str(model_dir("teacher")), dtype="float32", enforce_eager=True, max_model_len=256, max_num_seqs=16,
        disable_log_stats=False, additional_config={"gkt": {"config": job["config"]}},
    )  # fmt: skip
    assert llm.llm_engine.vllm_config.use_v2_model_runner
    results = []
    for wanted in job["jobs"]:
        before = counters(llm)
        params = SamplingParams(
            temperature=wanted["temperature"], max_tokens=wanted["max_tokens"], ignore_eos=True,
            extra_args={"gkt_epsilon": wanted["epsilon"]},
        )  # fmt: skip
        answers = llm.chat(job["chats"], params, use_tqdm=False)
        after = counters(llm)
        gained: dict[str, Any] = {name: after[name] - before[name] for name in before if name != "per_position"}
        pairs = zip(before["per_position"], after["per_position"], strict=True)
        gained["per_position"] = [new - old for old, new in pairs]
        results.append({"token_ids": [list(one.outputs[0].token_ids) for one in answers], "counters": gained})
    print(json.dumps(results))


if __name__ == "__main__":
    main()
