"""Histograms of milliseconds that add up without losing anything: fixed buckets, of which each is 10 % wide.

Bucket i holds what is above GAMMA^(i-1) and at most GAMMA^i ms, bucket 0 all up to 1 ms, the last all from about an
hour. A value is told as 2 * GAMMA^i / (GAMMA + 1), which is off by at most (GAMMA - 1) / (GAMMA + 1) = 4.8 % of what it
really was. (DDSketch: Masson, Rim, Lee, "A fast and fully-mergeable quantile sketch with relative-error guarantees",
VLDB 2019.)

A histogram is one integer, with the count of bucket i in its bits 40 * i to 40 * i + 39: adding and subtracting
histograms is adding and subtracting integers, which takes less than a microsecond. That is what makes it cheap to read
a year of them, on any database. A bucket overflows at 10^12.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from struct import Struct

GAMMA = 1.1
LONGEST = 3_600_000.0  # ms
BUCKETS = math.ceil(math.log(LONGEST, GAMMA)) + 1
BITS = 40
WIDTH = BITS // 8  # bytes
MASK = (1 << BITS) - 1
#: How a packed histogram begins, instead of with the number of its first bucket: LISTED says that it lists its buckets,
#: PLANES and a number of bytes that it has so many of each count, apart from one another.
LISTED, PLANES = 255, 250
#: Bits that are set in few buckets.
FEW = 8
#: Up to so many bytes, counts as they are take the least time. They do where a count needs all its bytes, too.
SHORT = 2 * WIDTH

_LOG_GAMMA = math.log(GAMMA)
#: A count's lower and higher bytes; and what a list has of a bucket, its number before them.
_COUNT, _ENTRY = Struct("<IB"), Struct("<BIB")
_LOWER = 32  # bits


def one(milliseconds: float) -> int:
    """Make the histogram of one value."""
    return 1 << BITS * bucket_of(milliseconds)


def bucket_of(milliseconds: float) -> int:
    """Say in which bucket a value belongs; whatever is no time at all belongs in the first."""
    if not milliseconds > 1:
        return 0
    if milliseconds >= LONGEST:
        return BUCKETS - 1
    return math.ceil(math.log(milliseconds) / _LOG_GAMMA)


def value_of(bucket: int) -> float:
    """Say which milliseconds a bucket stands for."""
    return 2 * GAMMA**bucket / (GAMMA + 1) if bucket else 1.0


def pack(histogram: int) -> bytes:
    """Write a histogram in few bytes, none if it is empty.

    Of the buckets from the first to the last in use, as many bytes of each count as the greatest needs: PLANES + that
    number, the first bucket, the lowest byte of every count, the second of every count, and so on. Of one or two
    buckets, the number of the first and then the counts, 5 bytes each, lowest first. Where it is shorter, a list of
    those in use: LISTED and then a number and a count for each.
    """
    if not histogram:
        return b""
    first, size = _extent(histogram)
    # No more buckets are in use than bits are set: where that is few, listing them is shorter for certain.
    if histogram.bit_count() * (WIDTH + 1) < size // WIDTH:
        listed = bytearray([LISTED])
        for bucket, count in _one_by_one(histogram):
            listed.append(bucket)
            listed += count.to_bytes(WIDTH, "little")
        return bytes(listed)
    filled = (histogram >> BITS * first).to_bytes(size, "little")
    planes = [filled[byte::WIDTH] for byte in range(WIDTH)] if size > SHORT else []
    while planes and not planes[-1].strip(b"\0"):
        planes.pop()
    if len(planes) in (0, WIDTH):
        return bytes([first]) + filled
    return bytes([PLANES + len(planes), first]) + b"".join(planes)


def unpack(packed: bytes) -> int:
    """Read a packed histogram."""
    if not packed:
        return 0
    if packed[0] < PLANES:
        return int.from_bytes(packed[1:], "little") << BITS * packed[0]
    if packed[0] != LISTED:
        return _unpack_planes(packed, packed[0] - PLANES)
    histogram = 0
    for bucket, lower, higher in _ENTRY.iter_unpack(packed[1:]):
        histogram += (lower | higher << _LOWER) << BITS * bucket
    return histogram


def _unpack_planes(packed: bytes, planes: int) -> int:
    size = (len(packed) - 2) // planes
    filled = bytearray(WIDTH * size)
    for byte in range(planes):
        filled[byte::WIDTH] = packed[2 + byte * size : 2 + (byte + 1) * size]
    return int.from_bytes(filled, "little") << BITS * packed[1]


def counts(histogram: int) -> list[tuple[int, int]]:
    """List the buckets in use, in their order, with how many values they hold."""
    if histogram.bit_count() <= FEW:
        return list(_one_by_one(histogram))
    first, size = _extent(histogram)
    read = enumerate(_COUNT.iter_unpack((histogram >> BITS * first).to_bytes(size, "little")), first)
    return [(bucket, lower | higher << _LOWER) for bucket, (lower, higher) in read if lower or higher]


def _one_by_one(histogram: int) -> Iterator[tuple[int, int]]:
    """Take the buckets in use out of the integer: of many, three times as long as reading all there are."""
    while histogram:
        bucket = ((histogram & -histogram).bit_length() - 1) // BITS
        count = histogram >> BITS * bucket & MASK
        yield bucket, count
        histogram ^= count << BITS * bucket


def _extent(histogram: int) -> tuple[int, int]:
    """Say which is the first bucket in use, and how many bytes there are from it to the last."""
    first, last = ((histogram & -histogram).bit_length() - 1) // BITS, (histogram.bit_length() - 1) // BITS
    return first, WIDTH * (last - first + 1)


def quantiles(histogram: int, wanted: Sequence[float]) -> list[float] | None:
    """Tell quantiles (0 to 1, in rising order) in milliseconds; None of an empty histogram.

    The quantile q of n values is the one at place floor(q * (n - 1)) in their order, counted from 0.
    """
    filled = counts(histogram)
    total = sum(count for _, count in filled)
    if not total:
        return None
    places = [math.floor(q * (total - 1)) for q in wanted]
    found: list[float] = []
    seen = 0
    for bucket, count in filled:
        seen += count
        while len(found) < len(places) and places[len(found)] < seen:
            found.append(value_of(bucket))
    return found
