"""A local server with the contract of the embeddings API: for tests, demos and benchmarks without the service."""
