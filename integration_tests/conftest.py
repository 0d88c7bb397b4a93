"""Which tests this environment runs: those below ``vllm/`` need the one that holds vLLM."""

from importlib.util import find_spec

collect_ignore = ["vllm"] if find_spec("vllm") is None else []
