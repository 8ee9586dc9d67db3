"""Publish: write the output's files from refs, then commit once. An output is a view of the store.

Refs are assigned to parts in the order of the segments (`cuts`), so each segment is read for few parts. The content of a
part depends only on the plan. A part whose inputs have not changed is kept (`earlier`, `digests`).
Writing a part holds at most one slice of `PART_ROWS` rows in memory.
"""
