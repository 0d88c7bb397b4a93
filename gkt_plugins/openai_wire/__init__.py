"""The OpenAI API as data: requests read, replies written. No server and no client; all who speak it share this."""
