"""Publish: write the output's files from refs, then commit once. An output is a view of the store.

The content of a part depends on the plan alone: refs are assigned to parts by their segments. So each segment is read
once, and a part that is written again has the same rows. A part takes the memory of one slice of `PART_ROWS` rows.
"""
