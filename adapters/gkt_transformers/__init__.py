"""Hugging Face transformers: an engine, a target and a drafter, and three ways into ``generate``."""
