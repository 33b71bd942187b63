"""Running models: loading, quantisation, the KV cache, sampling and the one decode generator."""
