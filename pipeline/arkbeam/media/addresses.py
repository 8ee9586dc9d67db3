"""Which network addresses are anybody's: the rest belongs to this machine, its network or its cloud. No network here."""

import ipaddress
import socket

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# What Python's registry does not, or not in every version, count as special: addresses of the protocol's own (Oracle's metadata
# service had one), of sites, and Azure's agent, which only machines of that cloud see and which hands out certificates and keys.
# The other clouds' metadata services have link-local, shared or unique local addresses.
_SPECIAL = tuple(map(ipaddress.ip_network, ("192.0.0.0/24", "fec0::/10", "168.63.129.16/32")))
# Prefixes whose addresses end up at an IPv4 address that is written in them (RFC 6052, 8215).
_NAT64 = tuple(map(ipaddress.IPv6Network, ("64:ff9b::/96", "64:ff9b:1::/48")))


def is_public(address: str) -> bool:
    """Tell whether an address, as the system resolves it, is one of the public Internet.

    It is not when it is private, loopback, link-local, multicast, shared, reserved or unspecified, nor when an IPv4
    address inside it is, nor when it can't be read. Source: the IANA registries of special-purpose addresses.
    """
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    embedded = _embedded(parsed)
    if embedded is not None:
        return is_public(str(embedded))
    special = parsed.is_multicast or parsed.is_reserved or any(parsed in network for network in _SPECIAL)
    return parsed.is_global and not special


def _embedded(address: Address) -> ipaddress.IPv4Address | None:
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if any(address in network for network in _NAT64):
        return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)


def literal_address(host: str) -> str | None:
    """Return the address that a host is, None for a name: `127.1`, `2130706433` and `0x7f000001` are 127.0.0.1."""
    try:
        return str(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        pass
    try:
        return socket.inet_ntoa(socket.inet_aton(host))
    except (OSError, ValueError):
        return None
