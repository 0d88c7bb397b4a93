"""llama.cpp: writes a target and its draft as ``llama-server`` takes them. Importing this loads no engine."""
