"""Greedy token ids of a model folder, from vLLM's CPU build. Run by the environment that holds vLLM.

Reads ``{"model": DIR, "prompts": [[token ids], …], "max_tokens": N}`` on standard input; the last line of standard
output is ``{"token_ids": [[…], …]}``.
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
        disable_log_stats=True,
    )
    sampling = SamplingParams(temperature=0.0, max_tokens=job["max_tokens"])
    prompts = [{"prompt_token_ids": ids} for ids in job["prompts"]]
    answers = llm.generate(prompts, sampling, use_tqdm=False)
    print(json.dumps({"token_ids": [list(answer.outputs[0].token_ids) for answer in answers]}))


if __name__ == "__main__":
    main()
