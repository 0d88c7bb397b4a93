"""What the plugin costs and brings inside vLLM: off, on, drafts of both kinds, distilled drafts, guided servers."""
