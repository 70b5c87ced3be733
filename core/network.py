"""Where a request comes from, as far as it can't be forged; and where a name or an address leads."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable

from django.conf import settings
from django.http import HttpRequest

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
#: IPv4 addresses as networks without IPv4 write them (RFC 6052).
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
#: Where clouds tell a machine its own secrets, apart from link-local addresses.
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

    Behind TRUSTED_PROXIES proxies (0: none) it is the entry of X-Forwarded-For that the outermost trusted one wrote,
    counted from the right: whatever a caller puts in front of it is ignored. Without such an entry it is the peer's.
    """
    peer = str(request.META.get("REMOTE_ADDR", ""))
    hops = int(settings.TRUSTED_PROXIES)
    if not hops:
        return peer
    entries = [entry.strip() for entry in str(request.META.get("HTTP_X_FORWARDED_FOR", "")).split(",")]
    candidate = entries[-hops] if len(entries) >= hops else peer
    return candidate if parse_address(candidate) else peer


def parse_address(text: str) -> Address | None:
    """Parse an address; an IPv4 address mapped into IPv6 becomes plain IPv4. Returns None for anything else."""
    try:
        return _unmapped(ipaddress.ip_address(text))
    except ValueError:
        return None


def called_address(text: str) -> Address:
    """Return where a connection to an address leads: one of IPv4 in the clothes of IPv6, mapped or NAT64, as itself."""
    address = _unmapped(ipaddress.ip_address(text.partition("%")[0]))
    return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF) if address in NAT64 else address


def _unmapped(address: Address) -> Address:
    return getattr(address, "ipv4_mapped", None) or address


def addresses_of(host: str) -> list[str]:
    """List the addresses of a name, in the order in which to try them. Raises OSError or UnicodeError for none.

    One of IPv6 that means a neighbour names the network where that is: `fe80::1%2`.
    """
    found = (entry[4] for entry in socket.getaddrinfo(host, None, proto=socket.IPPROTO_TCP))
    return list(dict.fromkeys(f"{told[0]}%{told[3]}" if len(told) > 3 and told[3] else str(told[0]) for told in found))


def is_within(text: str, networks: Iterable[Network]) -> bool:
    """Say whether an address lies in one of the networks; what is no address lies in none."""
    address = parse_address(text)
    return address is not None and any(address in network for network in networks)


def rate_limit_group_key(group: str, request: HttpRequest) -> str:
    """Name the counter of failed attempts for django-ratelimit: IPv4 by address, IPv6 by /64 (one customer's line)."""
    address = parse_address(client_address(request))
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)
