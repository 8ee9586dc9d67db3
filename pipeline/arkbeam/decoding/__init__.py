"""Decode pictures and films in worker processes that can be killed, because any bytes may take a decoder for ever.

`workers.ask` gives a job to a worker process; `child` is the program of that process. It imports little, so that a
process starts fast and stays small.
"""
