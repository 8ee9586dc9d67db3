"""The controller of `arkbeam.quota` against models of the service and of its workers, in virtual time."""
