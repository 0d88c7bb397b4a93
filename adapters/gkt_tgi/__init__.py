"""text-generation-inference as an engine, by its native routes. Importing this loads no client."""
