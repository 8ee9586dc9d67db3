"""The store: append-only Parquet files of all vectors that were bought, found by fingerprint.

To *buy* a vector is to send its request and pay for the answer. An *attempt* is one sending of a request. It is *paid*
if the service bills it, or may bill it. It is *lost* if it was sent but no answer to it is stored; since it may be
billed, it counts as paid.
"""
