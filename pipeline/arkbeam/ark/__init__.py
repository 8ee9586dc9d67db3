"""Client of Volcengine Ark's multimodal embeddings API: encode, send, decode, classify errors, estimate tokens."""
