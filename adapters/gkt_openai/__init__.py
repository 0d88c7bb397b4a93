"""OpenAI-compatible endpoints as engines: hosted models, vLLM, SGLang, llama.cpp, or this project's own gateway.

Importing this loads no client.
"""
