"""Publish: write the output's files from refs, then commit once. An output is a view of the store.

Refs are assigned to parts by their segments. So each segment is read once, the content of a part depends only on the
plan, and a part that is written again has the same rows. Writing a part holds at most one slice of `PART_ROWS` rows in
memory.
"""
