"""A local server with the contract of the embeddings API: for tests, demos and benchmarks without the service.

It is a stand-in: its vectors are made up, and every response says so in a header.

It is a second implementation of the contract. It shares with the client only the table of models (`ark.models`,
`base.capabilities`), the exceptions, and the records `Usage` and `Modality`; `tests/test_layers.py` checks this. It
shares no code that encodes or decodes requests and replies: an error in shared code would be on both sides, where tests
do not see it.
"""
