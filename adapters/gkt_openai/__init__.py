"""Any OpenAI-compatible endpoint as an engine: hosted, vLLM, SGLang, llama.cpp, or this project's own gateway. Importing this loads no client."""
