"""Files of requests in the OpenAI batch format: read, answered by pipelines, written, resumed after a crash."""
