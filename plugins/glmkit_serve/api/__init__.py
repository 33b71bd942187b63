"""The API: what ``glmkit serve`` answers over HTTP, as OpenAI's clients expect it."""
