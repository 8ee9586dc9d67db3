"""How the engine uses a quota that it may share with other processes. All calls come from the engine's event loop.

A process needs its share while it has sessions: each sends what one bundle of Beam holds.
"""

from collections.abc import Callable
from typing import Protocol


class Sharing(Protocol):
    """The share of one process in a quota."""

    def refresh(self, now_s: float) -> None:
        """Set the pacer's share to the share of this process at `now_s`. Called just before each request."""

    def wait_s(self, tokens: float, now_s: float) -> float:
        """Return the seconds until the other processes leave room for a request of so many tokens; 0 means now.

        Called only when the pacer itself has room. The result may be infinite: then `on_changed` is called later.
        """

    def take(self, tokens: float, now_s: float) -> None:
        """Note that a request of so many tokens is sent now."""

    def join(self) -> None:
        """Start to use the quota: a session has begun."""

    def leave(self) -> None:
        """Note that a session has ended. With the last one the process gives up its share, at once or a little later."""

    async def run(self, on_changed: Callable[[], None], on_unreachable: Callable[[str], None]) -> None:
        """Keep this process's share until cancelled, then give it up.

        `on_changed` is called when the result of `wait_s` may have changed. `on_unreachable` is called once, with a
        message that says what to do, when the coordinating store or Redis could not be reached for too long.
        """


class Unshared:
    """A quota that only this process uses."""

    def refresh(self, now_s: float) -> None:
        """Do nothing: the share is always 1."""

    def wait_s(self, tokens: float, now_s: float) -> float:
        """Return 0: there is no other process to wait for."""
        return 0.0

    def take(self, tokens: float, now_s: float) -> None:
        """Do nothing."""

    def join(self) -> None:
        """Do nothing."""

    def leave(self) -> None:
        """Do nothing."""

    async def run(self, on_changed: Callable[[], None], on_unreachable: Callable[[str], None]) -> None:
        """Return at once."""
