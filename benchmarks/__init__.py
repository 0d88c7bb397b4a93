"""Side-by-side measurements; each module prints one JSON object. Run as ``python -m benchmarks.NAME``."""
