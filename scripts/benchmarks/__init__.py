"""What this project promises, measured: one module a measure, one table for all. Run by `scripts/bench`.

Every run that is measured is a child process of its own, beside an emulator in another one.
"""
