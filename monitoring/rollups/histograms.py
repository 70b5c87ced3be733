"""Histograms of milliseconds with fixed buckets, each 10 % wide, which can be added without loss.

Bucket i counts values above GAMMA^(i-1) and up to GAMMA^i ms, bucket 0 those up to 1 ms, the last one those from about
an hour. A value in bucket i is reported as 2 * GAMMA^i / (GAMMA + 1), which differs from the true value by at most
(GAMMA - 1) / (GAMMA + 1) = 4.8 %. (DDSketch: Masson, Rim, Lee, "A fast and fully-mergeable quantile sketch with
relative-error guarantees", VLDB 2019.)

A histogram is one integer with the count of bucket i in bits 40 * i to 40 * i + 39. Adding histograms is adding
integers, which takes less than a microsecond, so a year of them is cheap to read on any database. A bucket overflows
at 10^12.
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
#: First bytes of a packed histogram other than the number of its first bucket. LISTED: a list of buckets. PLANES + n: n
#: byte planes (see pack).
LISTED, PLANES = 255, 250
#: Up to this many set bits, buckets are read one by one.
FEW = 8
#: Up to this many bytes, plain counts are the fastest form. They also are if a count needs all its bytes.
SHORT = 2 * WIDTH

_LOG_GAMMA = math.log(GAMMA)
#: The lower and higher bytes of a count; the same after the number of its bucket, as in a list.
_COUNT, _ENTRY = Struct("<IB"), Struct("<BIB")
_LOWER = 32  # bits


def one(milliseconds: float) -> int:
    """Return the histogram of one value."""
    return 1 << BITS * bucket_of(milliseconds)


def bucket_of(milliseconds: float) -> int:
    """Return the bucket of a value; negative values and NaN belong in bucket 0."""
    if not milliseconds > 1:
        return 0
    if milliseconds >= LONGEST:
        return BUCKETS - 1
    return math.ceil(math.log(milliseconds) / _LOG_GAMMA)


def value_of(bucket: int) -> float:
    """Return the milliseconds that a bucket stands for."""
    return 2 * GAMMA**bucket / (GAMMA + 1) if bucket else 1.0


def pack(histogram: int) -> bytes:
    """Encode a histogram in few bytes; an empty one in none.

    There are three forms, for the buckets from the first to the last in use. Planes: PLANES + n, the first bucket, the
    lowest byte of every count, the second byte of every count, and so on; n is the number of bytes that the greatest
    count needs. Plain, for one or two buckets or if n is 5: the first bucket, then the counts, 5 bytes each, lowest
    byte first. List, if it is shorter: LISTED, then number and count of each bucket in use.
    """
    if not histogram:
        return b""
    first, size = _extent(histogram)
    # At most as many buckets are in use as bits are set: if those are few, a list is shorter for certain.
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
    """Decode a packed histogram."""
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
    """List (bucket, count) of the buckets in use, in order."""
    if histogram.bit_count() <= FEW:
        return list(_one_by_one(histogram))
    first, size = _extent(histogram)
    read = enumerate(_COUNT.iter_unpack((histogram >> BITS * first).to_bytes(size, "little")), first)
    return [(bucket, lower | higher << _LOWER) for bucket, (lower, higher) in read if lower or higher]


def _one_by_one(histogram: int) -> Iterator[tuple[int, int]]:
    """Yield (bucket, count) of the buckets in use. For many buckets, this takes three times as long as reading all."""
    while histogram:
        bucket = ((histogram & -histogram).bit_length() - 1) // BITS
        count = histogram >> BITS * bucket & MASK
        yield bucket, count
        histogram ^= count << BITS * bucket


def _extent(histogram: int) -> tuple[int, int]:
    """Return the first bucket in use, and the number of bytes from it to the last."""
    first, last = ((histogram & -histogram).bit_length() - 1) // BITS, (histogram.bit_length() - 1) // BITS
    return first, WIDTH * (last - first + 1)


def quantiles(histogram: int, wanted: Sequence[float]) -> list[float] | None:
    """Return quantiles (`wanted`: 0 to 1, ascending) in milliseconds; None if the histogram is empty.

    The quantile q of n values is the value at index floor(q * (n - 1)) in ascending order.
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
