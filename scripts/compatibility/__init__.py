"""Which readers can read an output: it is made here, and read by each reader in an environment of its own."""
