"""What is done with a finished output: its report and map; it is checked, compared with another one, and searched."""
