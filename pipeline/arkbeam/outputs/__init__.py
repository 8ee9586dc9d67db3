"""What is done with a finished output: it is checked, compared with another one, and searched."""
