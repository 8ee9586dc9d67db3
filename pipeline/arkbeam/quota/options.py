"""The sections `quota:` and `limits:` of the config."""

import re
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

from arkbeam.base.capabilities import Capabilities
from arkbeam.base.errors import ConfigError

SECOND_PASS_S_MAX = 3600.0

_ACCOUNT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class RateLimits(NamedTuple):
    """Requests and tokens a minute that a run may send, before `headroom`."""

    rpm: int
    tpm: int


@dataclass(frozen=True, slots=True)
class QuotaOptions:
    """The account's quota and how processes share it. The `quota:` section of the config."""

    rpm: int | None = None
    """Requests a minute that the account may send. Default: the limit that the vendor lists for the model."""
    tpm: int | None = None
    """Tokens a minute that the account may use. Default: the limit that the vendor lists for the model."""
    headroom: float = 0.98
    """Share of `rpm` and `tpm` that a run uses: above 0, at most 1. A reserve is useful because refused requests also
    count against the quota."""
    ramp: bool = False
    """If true, usage above 3 million tokens a minute grows by at most 20 % in 3 minutes, as the vendor's burst rule
    asks."""
    lanes: int = 1
    """Has no effect: the runner spreads the work over its workers. Accepted so that earlier configs stay valid."""
    account: str = "default"
    """Name of the account. Runs that use the same store (or the same Redis) and the same name share one quota."""
    redis_url: str | None = None
    """URL of a Redis through which processes share the quota exactly: `redis://host:6379/0`, `rediss://…` or
    `unix://…`. Without it, processes share the quota by small files in the store."""
    redis_password_env: str | None = None
    """Name of the environment variable that holds the password of this Redis."""
    unshared_s_max: float = 180.0
    """Seconds that a run waits, without sending, while the coordinating store or Redis is unreachable. After that the
    run stops."""

    def __post_init__(self) -> None:
        for name in ("rpm", "tpm"):
            limit = getattr(self, name)
            if limit is not None and limit < 1:
                raise ConfigError(
                    f"quota.{name} is {limit}; it must be at least 1, or absent to use the limit of the model"
                )
        if not 0 < self.headroom <= 1:
            raise ConfigError(f"quota.headroom is {self.headroom}; it must be above 0 and at most 1")
        if not _ACCOUNT.fullmatch(self.account):
            raise ConfigError(
                "quota.account must have 1 to 64 letters, digits, dots, dashes or underscores and begin with a letter or digit"
            )
        if not self.unshared_s_max > 0:
            raise ConfigError(f"quota.unshared_s_max is {self.unshared_s_max}; it must be above 0")
        _check_redis(self.redis_url, self.redis_password_env)
        if self.lanes < 1:
            raise ConfigError(f"quota.lanes is {self.lanes}; it must be at least 1")

    def rate_limits(self, capabilities: Capabilities) -> RateLimits:
        """Return the limits in force: the configured ones, or the model's own where none is configured."""
        return RateLimits(self.rpm or capabilities.rpm, self.tpm or capabilities.tpm)


@dataclass(frozen=True, slots=True)
class LimitsOptions:
    """Bounds on requests in flight, on tries of a row, on failures and on rows. The `limits:` section of the config."""

    requests_in_flight: int = 256
    """Maximum number of requests that a process has in flight. The actual number is what the quota needs at the
    measured latency."""
    bytes_in_flight: int = 256 * 1024 * 1024
    """Maximum bytes of requests that a process holds in memory: encoded requests, and media that are being read and
    encoded."""
    failures_allowed: int | str = 0
    """Failed rows with which a run still ends with exit code 0: a number of rows, or a share such as 1%."""
    attempts_max: int = 6
    """Maximum tries of one row, whatever their errors. Refusals (429) are not counted here. The second pass may add one
    try."""
    attempts_500: int = 6
    """Maximum tries of one row that end with status 500: some invalid requests get it each time. Other errors are not
    counted here. The second pass may add one try."""
    refusals_max: int = 60
    """Maximum refusals (429) of one row."""
    retries_paid: int = 2
    """Maximum further tries of a row after replies that were billed but have no usable vector."""
    retries_lost: int = 2
    """Maximum further tries of a row after requests that were sent but got no reply (time-out, lost connection): they
    may be billed."""
    elapsed_s_max: float = 900.0
    """Maximum seconds from the first to the last try of a row. The second pass counts its own seconds."""
    second_pass_s: float = 30.0
    """At the end of a run, a row that failed for a passing reason (status 500, lost connection, time-out, refusals) is
    tried once more, at least so many seconds after its last try. `retries_paid` and `retries_lost` bound both passes
    together. 0: no second pass."""
    rows_failed_in_a_row_max: int = 50
    """The run stops when so many rows in a row failed after all their tries."""
    rows_rejected_first_max: int = 50
    """The run stops when the service rejected so many rows at the start of a run, all with the same code, before the
    first vector: the config is then likely wrong. The rejections are not stored."""
    rows_min: int = 1
    """Fewest rows that all manifests must have together; with fewer, the run ends with exit code 2 before it sends or
    publishes anything. 0 allows empty manifests. Without effect on a run over failure tables."""
    drain_s: float = 60.0
    """Seconds that a stopping run waits for the requests in flight."""

    def __post_init__(self) -> None:
        for name in (
            "requests_in_flight",
            "bytes_in_flight",
            "attempts_max",
            "attempts_500",
            "rows_failed_in_a_row_max",
            "rows_rejected_first_max",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"limits.{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("refusals_max", "retries_paid", "retries_lost", "elapsed_s_max", "rows_min", "drain_s"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"limits.{name} is {getattr(self, name)}; it must be at least 0")
        if not 0 <= self.second_pass_s <= SECOND_PASS_S_MAX:
            raise ConfigError(
                f"limits.second_pass_s is {self.second_pass_s}; it must be from 0 to {SECOND_PASS_S_MAX:g}"
            )
        self.count_failures_allowed(0)

    def count_failures_allowed(self, rows: int) -> int:
        """Return how many of `rows` rows may fail.

        Raise ConfigError if `failures_allowed` is neither a number nor a share.
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
    """Raise ConfigError if the URL of the Redis is not valid. No message repeats it, since it may hold a password."""
    if url is None:
        if password_env is not None:
            raise ConfigError("quota.redis_password_env needs quota.redis_url")
        return
    parts = urlsplit(url)
    if parts.scheme not in ("redis", "rediss", "unix"):
        raise ConfigError("quota.redis_url must begin with redis://, rediss:// or unix://")
    if parts.password is not None or "password" in parse_qs(parts.query, keep_blank_values=True):
        raise ConfigError(
            "quota.redis_url contains a password: put the password into an environment variable and name the variable in "
            "quota.redis_password_env"
        )
