"""What bounds a run: the `limits:` section of the config."""

from dataclasses import dataclass

from arkbeam.base.errors import ConfigError
from arkbeam.quota.retry import RetryPolicy


@dataclass(frozen=True, slots=True)
class LimitsOptions:
    """Bounds on what is under way at once, on tries, and on failures."""

    requests_in_flight: int = 256
    """The most requests that a process has open at once; within it, as many as the quota needs at the latency that is seen."""
    bytes_in_flight: int = 256 * 1024 * 1024
    """Encoded bodies a process holds: those that wait and, with their bytes beside them, those whose media are being read."""
    failures_allowed: int | str = 0
    """Failure rows that still end with exit code 0: a number, or a share such as 1%."""
    attempts_max: int = 6
    """Tries of one row, refusals by the rate limit not counted."""
    refusals_max: int = 60
    """Refusals by the rate limit that one row may meet."""
    retries_paid: int = 2
    """Further tries of a row after a paid reply whose vector can't be used."""
    retries_lost: int = 2
    """Further tries of a row after one that went out and was never answered (time-out, lost connection): it may be billed."""
    elapsed_s_max: float = 900.0
    """From a row's first try to its last."""
    rows_failed_in_a_row_max: int = 50
    """Rows with all tries spent, one after the other, that stop the run."""
    rows_rejected_first_max: int = 50
    """First rows of a run that the service may reject for one reason, none being bought: then the run stops, since the
    config is likely wrong, and the rejections are not remembered."""
    drain_s: float = 60.0
    """How long a run that stops waits for open requests."""

    def __post_init__(self) -> None:
        for name in (
            "requests_in_flight",
            "bytes_in_flight",
            "attempts_max",
            "rows_failed_in_a_row_max",
            "rows_rejected_first_max",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"limits.{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("refusals_max", "retries_paid", "retries_lost", "elapsed_s_max", "drain_s"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"limits.{name} is {getattr(self, name)}; it must be at least 0")
        self.count_failures_allowed(0)

    @property
    def retry_policy(self) -> RetryPolicy:
        """The bounds on the tries of one item."""
        return RetryPolicy(
            attempts_max=self.attempts_max,
            refusals_max=self.refusals_max,
            elapsed_s_max=self.elapsed_s_max,
            retries_paid_max=self.retries_paid,
            retries_lost_max=self.retries_lost,
        )

    def count_failures_allowed(self, rows: int) -> int:
        """Return how many of so many rows may fail.

        Raises: ConfigError when `failures_allowed` is neither a number nor a share.
        """
        allowed = self.failures_allowed
        try:
            if isinstance(allowed, str) and allowed.strip().endswith("%"):
                percent = float(allowed.strip()[:-1])
                if 0 <= percent <= 100:
                    return int(round(rows * percent / 100, 6))  # 29% of 100 is 28.999999999999996
            elif int(allowed) >= 0:
                return int(allowed)
        except ValueError:
            pass
        raise ConfigError(f"limits.failures_allowed is {allowed!r}; it must be a number of rows or a share such as 1%")
