"""What looking at a medium, or loading it, returned."""

from arkbeam.base.records import Failure


def code_of(outcome: object) -> str:
    """Return the code of a failure; check that it is one, and that its message is short."""
    assert isinstance(outcome, Failure), outcome
    assert len(outcome.message) <= 500
    return outcome.code
