"""The controller of `pipeline.pacing` against models of the service and of its workers, in virtual time."""
