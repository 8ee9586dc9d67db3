"""The sections `quota:` and `limits:` of the config."""

import re
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

from arkbeam.base.errors import ConfigError

_ACCOUNT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class QuotaOptions:
    """The account's limits, the `quota:` section of the config."""

    rpm: int | None = None
    """Requests a minute; default: the model's in the vendor's list."""
    tpm: int | None = None
    """Tokens a minute; default: the model's in the vendor's list."""
    headroom: float = 0.95
    """The share of both that a run uses; refused requests count against the quota too."""
    ramp: bool = False
    """Above 3 million tokens a minute, grow by at most 20 % in 3 minutes, as the vendor's burst rule asks for."""
    lanes: int = 1
    """Elements that the work is dealt over, for work that one process can't hold."""
    account: str = "default"
    """Names the account. Runs that share a store, or a Redis, share the quota of the accounts that they name alike."""
    redis_url: str | None = None
    """A Redis that shares the quota out exactly, `redis://host:6379/0` or `rediss://…`; without one, processes share it
    by marks in the store."""
    redis_password_env: str | None = None
    """The environment variable that holds the password of that Redis."""
    unshared_s_max: float = 60.0
    """How long a run waits, sending nothing, for a store or a Redis that the quota can't be shared through; then it stops."""

    def __post_init__(self) -> None:
        for name in ("rpm", "tpm"):
            limit = getattr(self, name)
            if limit is not None and limit < 1:
                raise ConfigError(
                    f"quota.{name} is {limit}; it must be at least 1, or absent for the model's own limit"
                )
        if not 0 < self.headroom <= 1:
            raise ConfigError(f"quota.headroom is {self.headroom}; it must be above 0 and at most 1")
        if not _ACCOUNT.fullmatch(self.account):
            raise ConfigError(
                "quota.account must be 1 to 64 letters, digits, dots, dashes and underscores, a letter or digit first"
            )
        if not self.unshared_s_max > 0:
            raise ConfigError(f"quota.unshared_s_max is {self.unshared_s_max}; it must be above 0")
        _check_redis(self.redis_url, self.redis_password_env)
        if self.lanes < 1:
            raise ConfigError(f"quota.lanes is {self.lanes}; it must be at least 1")


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


def _check_redis(url: str | None, password_env: str | None) -> None:
    """Refuse an address that can't be one, or that holds a password, without repeating it."""
    if url is None:
        if password_env is not None:
            raise ConfigError("quota.redis_password_env is of no use without quota.redis_url")
        return
    parts = urlsplit(url)
    if parts.scheme not in ("redis", "rediss", "unix"):
        raise ConfigError("quota.redis_url must begin with redis://, rediss:// or unix://")
    if parts.password is not None or "password" in parse_qs(parts.query, keep_blank_values=True):
        raise ConfigError(
            "quota.redis_url holds a password: take it out, put it into an environment variable, and name that in "
            "quota.redis_password_env"
        )
