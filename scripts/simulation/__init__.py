"""Run the pacing code of `arkbeam.quota` against models of the service and of its worker processes, in virtual time."""
