"""Histograms of milliseconds with fixed buckets, each 10 % wide, which can be added without loss.

Bucket i counts values above GAMMA^(i-1) and up to GAMMA^i ms, bucket 0 those up to 1 ms, the last one those from about
an hour. A value in bucket i is reported as 2 * GAMMA^i / (GAMMA + 1), which differs from the true value by at most
(GAMMA - 1) / (GAMMA + 1) = 4.8 %. (DDSketch: Masson, Rim, Lee, "A fast and fully-mergeable quantile sketch with
relative-error guarantees", VLDB 2019.)

A histogram is one integer with the count of bucket i in bits 64 * i to 64 * i + 63: adding histograms is adding
integers, and its bytes are the counts. In the database it is a text with number and count of each bucket in
use, `57:2 63:1`. The texts of several histograms, joined by spaces, are the text of their sum, so the database can add
up many rows by joining them.
"""

from __future__ import annotations

import math
import struct
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any

from django.db.models import Aggregate, TextField

GAMMA = 1.1
LONGEST = 3_600_000.0  # ms
BUCKETS = math.ceil(math.log(LONGEST, GAMMA)) + 1
BITS = 64
MOST = 2**BITS - 1

_LOG_GAMMA = math.log(GAMMA)


class Joined(Aggregate):
    """Joins texts by spaces: those of histograms make the text of their sum."""

    function = "STRING_AGG"
    template = "%(function)s(%(expressions)s, ' ')"
    output_field = TextField()

    def as_sqlite(self, compiler: Any, connection: Any, **extra: Any) -> Any:
        """SQLite's name for it."""
        return super().as_sql(compiler, connection, function="GROUP_CONCAT", **extra)


def one(milliseconds: float) -> int:
    """Return the histogram of one value."""
    return 1 << BITS * bucket_of(milliseconds)


def of_texts(texts: str) -> int:
    """Return the histogram of values that are written as texts, joined by spaces."""
    return sum(count << BITS * bucket for bucket, count in Counter(map(bucket_of, map(float, texts.split()))).items())


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


def pack(histogram: int) -> str:
    """Encode a histogram as a text; an empty one as an empty text."""
    return " ".join(f"{bucket}:{count}" for bucket, count in counts(histogram))


def unpack(text: str) -> int:
    """Decode the text of a histogram, or of several that are joined by spaces: their sum."""
    filled = [0] * BUCKETS
    for entry, times in Counter(text.split()).items():
        bucket, count = _parsed(entry)
        filled[bucket] = min(filled[bucket] + count * times, MOST)
    return int.from_bytes(struct.pack(f"<{BUCKETS}Q", *filled), "little")


@lru_cache(maxsize=10_000)  # most entries are small counts, of which there are few different ones
def _parsed(entry: str) -> tuple[int, int]:
    bucket, _, count = entry.partition(":")
    return int(bucket), int(count)


def counts(histogram: int) -> list[tuple[int, int]]:
    """List (bucket, count) of the buckets in use, in order."""
    used = -(-histogram.bit_length() // BITS)
    filled = struct.unpack(f"<{used}Q", histogram.to_bytes(BITS // 8 * used, "little"))
    return [(bucket, count) for bucket, count in enumerate(filled) if count]


def quantiles(histogram: int, wanted: Sequence[float]) -> list[float] | None:
    """Return quantiles (`wanted`: 0 to 1, ascending) in milliseconds; None if the histogram is empty.

    The quantile q of n values is the value at index floor(q * (n - 1)) in ascending order.
    """
    filled = counts(histogram)
    if not filled:
        return None
    seen = list(accumulate(count for _, count in filled))
    return [value_of(filled[bisect_right(seen, math.floor(q * (seen[-1] - 1)))][0]) for q in wanted]
