"""Greedy token ids of a model folder, from vLLM's CPU build. Run by the environment that holds vLLM.

Reads ``{"model": DIR, "prompts": [[token ids], …], "max_tokens": N, "speculative_config": {…} or null}`` on standard
input; the last line of standard output is ``{"token_ids": [[…], …], "drafted": N, "accepted": N}``.
"""

from __future__ import annotations

import json
import os
import sys

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")


def main() -> None:
    from vllm import LLM, SamplingParams

    job = json.load(sys.stdin)
    llm = LLM(
        model=job["model"],
        dtype="float32",
        enforce_eager=True,
        max_model_len=512,
        max_num_seqs=8,
        disable_log_stats=False,
        speculative_config=job.get("speculative_config"),
    )
    sampling = SamplingParams(temperature=0.0, max_tokens=job["max_tokens"])
    prompts = [{"prompt_token_ids": ids} for ids in job["prompts"]]
    answers = llm.generate(prompts, sampling, use_tqdm=False)
    counters = {metric.name: metric.value for metric in llm.get_metrics() if hasattr(metric, "value")}
    print(
        json.dumps(
            {
                "token_ids": [list(answer.outputs[0].token_ids) for answer in answers],
                "drafted": counters.get("vllm:spec_decode_num_draft_tokens", 0),
                "accepted": counters.get("vllm:spec_decode_num_accepted_tokens", 0),
            }
        )
    )


if __name__ == "__main__":
    main()
