"""The `media.http:` section of the config: how web servers are asked for media that are read here."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from arkbeam.base.errors import ConfigError
from arkbeam.base.redaction import is_secret_name
from arkbeam.media.weburl import WebUrl, match_host, parse_host

PER_HOST_MAX = 64
WAIT_S_MAX = 3_600.0
EVERY_HOST = "*"
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
# Headers on which reading depends.
_OURS = frozenset(
    {"accept-encoding", "connection", "content-length", "content-type", "expect", "host", "if-match", "if-range"}
    | {"keep-alive", "range", "te", "trailer", "transfer-encoding", "upgrade"}
)


@dataclass(frozen=True, slots=True)
class FromEnvironment:
    """A value that is in an environment variable, so that the config does not hold it."""

    env: str
    """Name of the variable."""


@dataclass(frozen=True, slots=True)
class HttpOptions:
    """How web servers are asked for media that are read here (`inline`)."""

    per_host: int = 8
    """Maximum number of requests to one host and port at the same time, in each process."""
    wait_s: float = 60.0
    """Maximum number of seconds that reading one medium waits between tries, because its server asks for it
    (`Retry-After`) or does not answer properly. A row whose server asks for more fails at once. This time does not
    count for `media.http_timeout_s`."""
    headers: Mapping[str, Mapping[str, str | FromEnvironment]] = field(default_factory=dict, hash=False)
    """Headers to send, by host (`host`, `host:port`, or `*` for every host), such as `User-Agent` and `Referer`. A
    secret is written as `{env: NAME}`, the name of an environment variable."""

    def __post_init__(self) -> None:
        """Raise ConfigError for impossible values."""
        if not 1 <= self.per_host <= PER_HOST_MAX:
            raise ConfigError(f"media.http.per_host is {self.per_host}; it must be from 1 to {PER_HOST_MAX}")
        if not 0 <= self.wait_s <= WAIT_S_MAX:
            raise ConfigError(f"media.http.wait_s is {self.wait_s}; it must be from 0 to {WAIT_S_MAX:g}")
        for host, headers in self.headers.items():
            key = f"media.http.headers.{host}"
            if host != EVERY_HOST:
                try:
                    parse_host(host)
                except ValueError as error:
                    raise ConfigError(f"{key}: {host!r} can't match: {error}") from None
            for name, value in headers.items():
                _check_header(f"{key}.{name}", name, value, everywhere=host == EVERY_HOST)

    def headers_for(self, url: WebUrl) -> dict[str, str]:
        """Return the configured headers for a URL; those of `host:port` replace those of `host`, and these those of `*`.

        Raise ConfigError if the environment has no value for one of them.
        """
        by_host = {parse_host(host): headers for host, headers in self.headers.items() if host != EVERY_HOST}
        found = [self.headers.get(EVERY_HOST, {}), *(by_host[entry] for entry in match_host(url, by_host))]
        merged = {name.lower(): (name, value) for headers in found for name, value in headers.items()}
        return {name: _read_value(name, value) for name, value in merged.values()}


def _check_header(key: str, name: str, value: str | FromEnvironment, *, everywhere: bool) -> None:
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{key}: this can't be the name of a header")
    if name.lower() in _OURS:
        raise ConfigError(f"{key}: this header can't be set, reading depends on it")
    if isinstance(value, FromEnvironment):
        if everywhere:
            raise ConfigError(f"{key}: a secret can't be sent to every host; name the host instead of *")
    elif is_secret_name(name) or name.lower() in ("cookie", "proxy-authorization"):
        raise ConfigError(f"{key}: this is a secret; write {{env: NAME}}, the name of an environment variable with it")
    elif not _VALUE.fullmatch(value):
        raise ConfigError(f"{key}: the value has characters that a header can't have")


def _read_value(name: str, value: str | FromEnvironment) -> str:
    if isinstance(value, str):
        return value
    found = os.environ.get(value.env, "").strip()
    if not found:
        raise ConfigError(
            f"the environment variable {value.env} is not set; media.http.headers needs it for the header {name}"
        )
    if not _VALUE.fullmatch(found):
        raise ConfigError(
            f"the environment variable {value.env} has characters that a header can't have (media.http.headers)"
        )
    return found
