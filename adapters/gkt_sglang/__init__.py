"""SGLang: writes a target and its draft as ``sglang serve`` takes them. Importing this loads no engine."""
