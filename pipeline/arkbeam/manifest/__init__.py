"""Manifests: from URIs to staged rows.

`shards` finds manifests and cuts them, `read` turns a shard into tables, and the modules between them do one step each:
`lines` and `formats` give rows as they stand in a file, `rows` the request a row asks for, `fingerprint` its identity,
`staging` its JSON, `kept` the columns carried along. A bad row is a row of the failures, never an exception.
"""
