"""The only place that waits: requests go out, results go to the store, within every bound."""
