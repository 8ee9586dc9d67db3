"""How processes share a quota: by leases on marks in the store, or by permits from Redis."""
