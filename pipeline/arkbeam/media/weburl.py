"""Parse http(s) URLs as browsers do (the WHATWG URL standard), and check which hosts may be read although they are private.

One parser serves the URLs that are passed on, those that are read here, and redirects. So an address has one form,
however it is written: `169.254.169.254.`, `169%2e254%2e169%2e254`, `0xa9fea9fe` and full-width digits are the same host.
"""

import base64
import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from urllib.parse import unquote_to_bytes

import ada_url

from arkbeam.base.bad_rows import fail_row
from arkbeam.base.errors import ConfigError

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_PORTS = {"http": 80, "https": 443}
_AUTHORITY = re.compile(r"[^:]*://([^/?#]*)")
_HOST_AND_PORT = re.compile(r"(.+?)(?::([0-9]+))?")
_WHITE = re.compile(r"[\s\x00-\x20\x7f]")
_CHARACTERS = {" ": "a blank", "\t": "a tab", "\n": "a line break", "\r": "a line break"}
_NOT_IN_HOSTS = {"://": "a scheme", "/": "a path", "@": "a user", "*": "a wildcard"} | {
    "\\": "a backslash", "?": "a query", "#": "a fragment", "%": "a percent sign",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class WebUrl:
    """An http(s) URL in its normal form."""

    href: str
    """What is requested: without fragment, user and password; non-ASCII characters and blanks are percent-encoded."""
    scheme: str
    host: str
    """A name in ASCII, or an address without brackets; no dot at its end."""
    port: int
    authorization: str | None = None
    """The header made of the URL's user and password, if it has any."""

    @property
    def origin(self) -> tuple[str, str, int]:
        """Scheme, host and port."""
        return self.scheme, self.host, self.port

    @property
    def address(self) -> str | None:
        """The host, if it is an IP address; None for a name."""
        if not (self.host[-1:].isdigit() or ":" in self.host):
            return None
        try:
            return str(ipaddress.ip_address(self.host))
        except ValueError:
            return None

    def with_login_of(self, origin: "WebUrl") -> "WebUrl":
        """Return this URL, the target of a redirect, with the user and password of `origin` if they may go along.

        They stay on the same host and port. From http to https of the same host, both with their usual ports, they stay
        too; to another host they are not sent.
        """
        upgraded = (origin.scheme, origin.port, self.scheme, self.port) == ("http", 80, "https", 443)
        same = self.origin == origin.origin or (upgraded and self.host == origin.host)
        return replace(self, authorization=origin.authorization) if same and self.authorization is None else self


def check_url(url: str, chars_max: int) -> WebUrl:
    """Parse the http(s) URL of a manifest. It is not fetched. Raise BadRow (`media_bad_uri`) for a malformed one.

    White space, which browsers drop or encode, is refused here: the service may read it in another way.
    """
    if len(url) > chars_max:
        fail_row("media_bad_uri", f"the URL has {len(url)} characters; at most {chars_max} are allowed")
    white = _WHITE.search(url)
    if white is not None:
        place = _place(white.start(), len(url))
        fail_row("media_bad_uri", f"malformed URL: {_describe(white[0])} {place}")
    found = _AUTHORITY.match(url)
    if found is None or not found[1]:
        fail_row("media_bad_uri", "malformed URL: it has no host")
    if "\\" in found[1]:
        fail_row(
            "media_bad_uri", "malformed URL: its host has a backslash in it, which programs read in different ways"
        )
    try:
        return parse_url(url)
    except ValueError:
        fail_row("media_bad_uri", "malformed URL: its host or port is not valid")


def _describe(character: str) -> str:
    name = _CHARACTERS.get(character, f"the character U+{ord(character):04X}")
    return f"{name} (write it as %20)" if character == " " else name


def _place(at: int, length: int) -> str:
    return "at its start" if at == 0 else "at its end" if at == length - 1 else f"at character {at + 1}"


def parse_url(url: str, base: str | None = None) -> WebUrl:
    """Parse a URL, or a reference relative to `base`. Raise ValueError if it is malformed, or not http(s)."""
    parsed = ada_url.URL(url, base)
    scheme = parsed.protocol.rstrip(":")
    if scheme not in _PORTS:
        raise OtherScheme(scheme)
    user, password = parsed.username, parsed.password
    authorization = None
    if user or password:
        pair = unquote_to_bytes(user) + b":" + unquote_to_bytes(password)
        authorization = "Basic " + base64.b64encode(pair).decode()
        parsed.username = parsed.password = ""
    parsed.hash = ""
    host = parsed.hostname.strip("[]").removesuffix(".")
    return WebUrl(parsed.href, scheme, host, int(parsed.port or _PORTS[scheme]), authorization)


class OtherScheme(ValueError):
    """A URL that is not http(s). Its argument is the scheme."""


def parse_redirect(location: bytes, base: WebUrl) -> WebUrl:
    """Parse the value of a `Location` header as it was sent. Raise ValueError if it is malformed, or not http(s).

    Bytes that are not ASCII are percent-encoded one by one, as browsers and curl do, so that none is lost.
    """
    ascii_only = "".join(chr(byte) if byte < 0x80 else f"%{byte:02X}" for byte in location)
    return parse_url(ascii_only, base.href)


@dataclass(frozen=True, slots=True)
class AllowedHosts:
    """The parsed `media.allowed_hosts`: what may be read although its address is private."""

    hosts: frozenset[tuple[str, int | None]]
    """Host and port; None: every port."""
    networks: tuple[_Network, ...]

    def has_host(self, url: WebUrl) -> bool:
        """Return True if the URL's host is listed by its name, or by its address if the URL has it."""
        return (url.host, None) in self.hosts or (url.host, url.port) in self.hosts

    def has_address(self, address: str) -> bool:
        """Return True if an address is in a listed network."""
        if not self.networks:
            return False
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return False
        return any(parsed in network for network in self.networks)


@lru_cache(maxsize=64)
def parse_allowed_hosts(entries: tuple[str, ...]) -> AllowedHosts:
    """Parse `media.allowed_hosts`. Raise ConfigError for an entry that can't match any URL."""
    hosts, networks = set(), []
    for entry in entries:
        try:
            if re.fullmatch(r"[0-9a-fA-F.:]+/[0-9]+", entry):
                networks.append(_parse_network(entry))
            else:
                hosts.add(parse_host(entry))
        except ValueError as error:
            raise ConfigError(f"media.allowed_hosts: {entry!r} can't match: {error}") from None
    return AllowedHosts(frozenset(hosts), tuple(networks))


def _parse_network(entry: str) -> _Network:
    network = ipaddress.ip_network(entry, strict=False)
    if str(network.network_address) != str(ipaddress.ip_address(entry.partition("/")[0])):
        raise ValueError(f"the network that it is in is written {network}")
    return network


def parse_host(entry: str) -> tuple[str, int | None]:
    """Return host and port of `host` or `host:port`, in the form of `WebUrl`. Raise ValueError that says what is wrong."""
    try:
        if "%" not in entry:  # no zone, which a URL can't have
            return ipaddress.IPv6Address(entry).compressed, None
    except ValueError:
        pass
    for part, what in _NOT_IN_HOSTS.items():
        if part in entry:
            raise ValueError(f"it has {what} in it; write a host, host:port, or a network such as 10.0.0.0/8")
    found = _HOST_AND_PORT.fullmatch(entry)
    if found is None or any(character.isspace() for character in entry):
        raise ValueError("it is empty or has white space in it")
    if found[2] and not 1 <= int(found[2][:9]) <= 65_535:
        raise ValueError("a port is a number from 1 to 65535")
    try:
        url = parse_url(f"http://{found[1]}/")
    except ValueError:
        raise ValueError("it is not a valid host") from None
    return url.host, int(found[2]) if found[2] else None


def match_host(url: WebUrl, entries: Iterable[tuple[str, int | None]]) -> list[tuple[str, int | None]]:
    """Return those entries that name the URL's host, the one without a port first."""
    return [entry for entry in ((url.host, None), (url.host, url.port)) if entry in set(entries)]
