"""Runs vLLM with the plugin installed and no section, and tells what of ours is there.

The engine is in a process of its own, as it is in a server. The file that the command line names becomes ``{"loaded":
{VALUE OF VLLM_PLUGINS: {GROUP: [NAMES]}}, "frontend": FOUND, "worker": FOUND, "drafts": bool}``, where FOUND is
``{"replaced": [names], "modules": [names]}``.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import FunctionType
from typing import Any

os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="1", VLLM_ALLOW_INSECURE_SERIALIZATION="1")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

CASES = (None, "gkt", "other,gkt", "other", "")


def found(worker: Any = None) -> dict[str, list[str]]:
    """What of vLLM is ours in this process, and which modules of ours are loaded."""
    replaced = set()
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] != "vllm":
            continue
        for key, value in list(vars(module).items()):
            if isinstance(value, type):
                where = f"{value.__module__}.{value.__qualname__}"
                replaced |= {f"{where}.{key}" for key, member in vars(value).items() if is_ours(member)}
            if is_ours(value):
                replaced.add(f"{name}.{key}")
    return {
        "replaced": sorted(replaced),
        "modules": sorted(name for name in sys.modules if name.startswith("gkt_vllm.")),
    }


def is_ours(value: Any) -> bool:
    return isinstance(value, type | FunctionType) and (value.__module__ or "").split(".")[0].startswith("gkt_")


def loaded() -> dict[str, dict[str, list[str]]]:
    """Ours among the plugins that vLLM loads, for each value of its variable."""
    from vllm.plugins import load_endpoint_plugins, load_plugins_by_group

    def ours(names: Any) -> list[str]:
        return [name for name in names if name == "gkt"]

    results = {}
    for value in CASES:
        os.environ.pop("VLLM_PLUGINS", None)
        if value is not None:
            os.environ["VLLM_PLUGINS"] = value
        results[str(value)] = {
            "general": ours(load_plugins_by_group("vllm.general_plugins")),
            "stat_logger": ours(load_plugins_by_group("vllm.stat_logger_plugins")),
            "endpoint": ours(plugin.name for plugin in load_endpoint_plugins(("generate",))),
        }
    os.environ.pop("VLLM_PLUGINS", None)
    return results


def main() -> None:
    from vllm import LLM, SamplingParams

    from gkt_plugins.demo.models import model_dir

    llm = LLM(model=str(model_dir("teacher")), dtype="float32", enforce_eager=True, max_model_len=128, max_num_seqs=2)
    llm.generate(["How many"], SamplingParams(max_tokens=4), use_tqdm=False)
    worker: dict[str, Any]
    [worker] = llm.collective_rpc(found)
    result = {"frontend": found(), "worker": worker, "loaded": loaded()}
    result["drafts"] = llm.llm_engine.vllm_config.speculative_config is not None
    Path(sys.argv[1]).write_text(json.dumps(result))
    llm.llm_engine.engine_core.shutdown()


if __name__ == "__main__":
    main()
