"""Measure what this project promises: one module for each measure, one table for all. `scripts/bench` runs it.

Every measured run is a child process, and the emulator runs in another process.
"""
