"""Publish: from refs to files, then one commit. Outputs are views of what was bought.

Part k is a function of the plan alone: refs are numbered into parts by their segments, so that every segment is read once,
in order, and a part that is written again has the same rows. What a part holds in memory is one slice of `PART_ROWS`.
"""
