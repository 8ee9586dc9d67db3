"""A local server with the contract of the embeddings API: for tests, demos and benchmarks without the service.

It is a stand-in: its vectors are made up, and every response says so in a header.

It is a second implementation of the contract. What it shares with the client (`tests/test_layers.py` checks this): the
table of models (`ark.models`, `base.capabilities`), and from `base` the exceptions and the records `Usage` and
`Modality`. It shares no code that encodes or decodes requests and replies, so that an error there can't hide by being
made twice.
"""
