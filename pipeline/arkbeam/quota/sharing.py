"""What the engine sees of a quota that is shared with other processes. Used in the engine's loop alone."""

from collections.abc import Callable
from typing import Protocol


class Sharing(Protocol):
    """A process's part in the quota."""

    def refresh(self, now_s: float) -> None:
        """Give the pacer this process's share of this moment. Called just before each request."""

    def wait_s(self, tokens: float, now_s: float) -> float:
        """Return the seconds until this process may send a request of so many tokens, as far as the others go.

        Asked when the pacer has room; 0 is now. It may be infinite, until `on_changed` is called.
        """

    def take(self, tokens: float, now_s: float) -> None:
        """Note that such a request is sent now."""

    def join(self) -> None:
        """Take part from now on: a lane has begun."""

    def leave(self) -> None:
        """Take part no longer than it pays to stay: no lane is under way."""

    async def run(self, on_changed: Callable[[], None], on_unreachable: Callable[[str], None]) -> None:
        """Do the work of sharing until cancelled, then let the others know.

        `on_changed` is called when there may be another answer than before. `on_unreachable` is called once, with what to do about it, when what the quota is shared through can't be reached.
        """


class Unshared:
    """The quota is this process's own."""

    def refresh(self, now_s: float) -> None:
        """The share is always all of it."""

    def wait_s(self, tokens: float, now_s: float) -> float:
        """Never wait for others."""
        return 0.0

    def take(self, tokens: float, now_s: float) -> None:
        """Nobody to tell."""

    def join(self) -> None:
        """Nobody to join."""

    def leave(self) -> None:
        """Nobody to leave."""

    async def run(self, on_changed: Callable[[], None], on_unreachable: Callable[[str], None]) -> None:
        """Nothing to do."""
