"""The store: append-only Parquet files of all vectors that were bought, found by fingerprint."""
