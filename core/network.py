"""The client address of a request, and the addresses behind host names."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable

from django.conf import settings
from django.http import HttpRequest

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
#: The prefix of IPv4 addresses in IPv6-only networks (RFC 6052).
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
#: Cloud metadata services, which give credentials to a machine, apart from link-local addresses.
METADATA = frozenset(
    map(
        ipaddress.ip_address,
        (
            "100.100.100.200",  # Alibaba Cloud
            "168.63.129.16",  # Azure's WireServer
            "fd00:ec2::254", "fd00:ec2::23",  # AWS: instances, and EKS Pod Identity
            "fd20:ce::254",  # Google Cloud
            "fd00:c1::a9fe:a9fe",  # Oracle Cloud
            "fd00:42::42",  # Scaleway
        ),
    )
)  # fmt: skip


def client_address(request: HttpRequest) -> str:
    """Return the caller's IP address as text.

    Behind TRUSTED_PROXIES proxies (0: none) this is the entry of X-Forwarded-For that the outermost trusted proxy
    added, counted from the right. Entries before it may be forged and are ignored. Without a valid entry there, it is
    the peer's address.
    """
    peer = str(request.META.get("REMOTE_ADDR", ""))
    hops = int(settings.TRUSTED_PROXIES)
    if not hops:
        return peer
    entries = [entry.strip() for entry in str(request.META.get("HTTP_X_FORWARDED_FOR", "")).split(",")]
    candidate = entries[-hops] if len(entries) >= hops else peer
    return candidate if parse_address(candidate) else peer


def parse_address(text: str) -> Address | None:
    """Parse an IP address; an IPv4-mapped IPv6 address becomes IPv4. Return None for invalid text."""
    try:
        return _unmapped(ipaddress.ip_address(text))
    except ValueError:
        return None


def called_address(text: str) -> Address:
    """Return the address that a connection reaches: IPv4-mapped and NAT64 addresses of IPv6 become IPv4."""
    address = _unmapped(ipaddress.ip_address(text.partition("%")[0]))
    return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF) if address in NAT64 else address


def _unmapped(address: Address) -> Address:
    return getattr(address, "ipv4_mapped", None) or address


def addresses_of(host: str) -> list[str]:
    """List a host's addresses in the order in which to try them. Raises OSError or UnicodeError if there are none.

    A link-local IPv6 address includes its interface: `fe80::1%2`.
    """
    found = (entry[4] for entry in socket.getaddrinfo(host, None, proto=socket.IPPROTO_TCP))
    return list(dict.fromkeys(f"{sock[0]}%{sock[3]}" if len(sock) > 3 and sock[3] else str(sock[0]) for sock in found))


def is_within(text: str, networks: Iterable[Network]) -> bool:
    """Return whether an address is in one of the networks; False for invalid text."""
    address = parse_address(text)
    return address is not None and any(address in network for network in networks)


def rate_limit_group_key(group: str, request: HttpRequest) -> str:
    """Return django-ratelimit's key for failed attempts: an IPv4 address, or an IPv6 /64 network (one customer)."""
    address = parse_address(client_address(request))
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)
