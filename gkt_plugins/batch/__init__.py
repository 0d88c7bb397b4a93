"""Files of requests in the OpenAI batch format: read, answered by pipelines, written, and gone on with after a crash."""
