"""vLLM: writes a target and its draft as ``vllm serve`` takes them. Importing this loads no engine."""
