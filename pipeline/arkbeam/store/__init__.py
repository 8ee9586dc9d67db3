"""The store: vectors that were bought once, by content; append-only Parquet."""
