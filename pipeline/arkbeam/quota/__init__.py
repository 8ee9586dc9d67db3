"""When the next request may be sent, and whether a failed one is tried again. Pure: time and chance are arguments."""
