"""What the gateway costs: latency, throughput beside LiteLLM's proxy, streams held, ledger rows."""
