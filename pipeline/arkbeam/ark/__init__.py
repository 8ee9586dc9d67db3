"""Volcengine Ark's multimodal embeddings API and nothing else: encode, send, decode, classify, price."""
