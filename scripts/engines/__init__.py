"""Real engines on this machine: a Flink cluster for `scripts/flink`, and the job servers of the tests."""
