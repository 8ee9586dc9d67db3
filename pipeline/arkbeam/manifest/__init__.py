"""Manifests: from the URIs in the config to staged rows.

`shards` finds the manifests and cuts them into shards; `read` turns a shard into tables. The other modules do one step
each. `csv_rows`, `jsonl_rows` and `parquet_rows` read rows from a file in batches (`batches`). Text files become UTF-8
(`text`) and are cut into `lines` or, if they are a `json_array`, into elements; `csv_dialect` and `csv_header` know how
CSV files differ. `rows` turns a row into a request, with the row's own settings (`overrides`). `fingerprint` computes
the request's identity, `staging` its JSON, and `kept` the columns that are copied to the output: `numbers` reads the
JSON numbers that are rounded otherwise, `int96` old timestamps of Parquet, `kinds` says what the values of a column are,
`common_type` which type holds them all, and `widening` and `texts` turn values into that type. `failures` reads failure
tables that are given as manifests. A bad row becomes a failure row; it never raises an exception to the caller.
"""
