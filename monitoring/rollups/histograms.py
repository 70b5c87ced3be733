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

GAMMA = 1.1
LONGEST = 3_600_000.0  # ms
BUCKETS = math.ceil(math.log(LONGEST, GAMMA)) + 1
BITS = 40
WIDTH = BITS // 8  # bytes
MASK = (1 << BITS) - 1
#: The first byte of a packed histogram that lists its buckets; no bucket has that number.
LISTED = 255

_LOG_GAMMA = math.log(GAMMA)


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

    Either all buckets from the first to the last in use: the number of the first and then the counts, 5 bytes each,
    lowest first. Or, where that is shorter, a list of those in use: LISTED and then a number and a count for each.
    """
    if not histogram:
        return b""
    first, last = ((histogram & -histogram).bit_length() - 1) // BITS, (histogram.bit_length() - 1) // BITS
    size = WIDTH * (last - first + 1)
    # No more buckets are in use than bits are set: where that is few, listing them is shorter for certain.
    if histogram.bit_count() * (WIDTH + 1) < size:
        listed = bytearray([LISTED])
        for bucket, count in counts(histogram):
            listed.append(bucket)
            listed += count.to_bytes(WIDTH, "little")
        return bytes(listed)
    return bytes([first]) + (histogram >> BITS * first).to_bytes(size, "little")


def unpack(packed: bytes) -> int:
    """Read a packed histogram."""
    if not packed:
        return 0
    if packed[0] != LISTED:
        return int.from_bytes(packed[1:], "little") << BITS * packed[0]
    histogram = 0
    for at in range(1, len(packed), WIDTH + 1):
        histogram += int.from_bytes(packed[at + 1 : at + 1 + WIDTH], "little") << BITS * packed[at]
    return histogram


def counts(histogram: int) -> Iterator[tuple[int, int]]:
    """List the buckets in use, in their order, with how many values they hold."""
    while histogram:
        bucket = ((histogram & -histogram).bit_length() - 1) // BITS
        count = histogram >> BITS * bucket & MASK
        yield bucket, count
        histogram ^= count << BITS * bucket


def quantiles(histogram: int, wanted: Sequence[float]) -> list[float] | None:
    """Tell quantiles (0 to 1, in rising order) in milliseconds; None of an empty histogram.

    The quantile q of n values is the one at place floor(q * (n - 1)) in their order, counted from 0.
    """
    filled = list(counts(histogram))
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
