"""The `quota:` section of the config."""

import re
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

from arkbeam.base.capabilities import Capabilities
from arkbeam.base.errors import ConfigError

_ACCOUNT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class RateLimits(NamedTuple):
    """Requests and tokens a minute that a run may send, before `headroom`."""

    rpm: int
    tpm: int


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

    def rate_limits(self, capabilities: Capabilities) -> RateLimits:
        """Return the limits in force: the configured ones, or the model's own where none is configured."""
        return RateLimits(self.rpm or capabilities.rpm, self.tpm or capabilities.tpm)


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
