"""What is done with a finished output: its report, its map."""
