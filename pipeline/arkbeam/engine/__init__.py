"""The event loop that sends requests within all limits and writes the results to the store."""
