"""Histograms: quantiles within 5 %, adding up without loss, in few bytes."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring.rollups.histograms import (
    BITS,
    BUCKETS,
    LONGEST,
    bucket_of,
    counts,
    of_texts,
    one,
    pack,
    quantiles,
    unpack,
)

times = st.floats(1, LONGEST, allow_nan=False)


@given(st.lists(times, min_size=1, max_size=200), st.sampled_from([0, 0.5, 0.9, 0.95, 0.99, 1]))
def test_it_tells_quantiles_within_five_percent(values: list[float], wanted: float) -> None:
    (told,) = quantiles(sum(map(one, values)), [wanted]) or [0.0]
    really = sorted(values)[math.floor(wanted * (len(values) - 1))]
    assert abs(told - really) <= 0.05 * really


def buckets_of(most: int) -> st.SearchStrategy[list[tuple[int, int]]]:
    """Draw buckets with counts up to so many."""
    return st.lists(st.tuples(st.integers(0, BUCKETS - 1), st.integers(1, most)), unique_by=lambda pair: pair[0])


@given(st.integers(1, BITS).flatmap(lambda bits: buckets_of(2**bits - 1)))
def test_it_reads_what_it_packed(filled: list[tuple[int, int]]) -> None:
    histogram = sum(count << BITS * bucket for bucket, count in filled)
    assert unpack(pack(histogram)) == histogram
    assert list(counts(histogram)) == sorted(filled)


@given(st.lists(times), st.lists(times))
def test_it_reads_joined_texts_as_the_sum(some: list[float], more: list[float]) -> None:
    texts = [pack(sum(map(one, values))) for values in (some, more)]
    assert unpack(" ".join(texts)) == sum(map(one, some + more))


@given(st.lists(times))
def test_it_adds_up_values_that_are_written_as_texts(values: list[float]) -> None:
    assert of_texts(" ".join(map(str, values))) == sum(map(one, values))


@pytest.mark.parametrize(
    ("value", "bucket"),
    [
        *((value, 0) for value in (-1.0, 0.0, 0.3, 1.0, math.nan)),
        *((LONGEST * n, BUCKETS - 1) for n in (1, 2, math.inf)),
    ],
)
def test_it_counts_next_to_no_time_in_the_first_bucket_and_hours_in_the_last(value: float, bucket: int) -> None:
    assert bucket_of(value) == bucket
    assert bucket or quantiles(one(value), [0.5]) == [1.0]


def test_it_tells_nothing_of_an_empty_histogram() -> None:
    assert (pack(0), unpack(""), quantiles(0, [0.5])) == ("", 0, None)


def test_it_reads_a_count_that_was_stored_wrong() -> None:
    """One record too much was subtracted: the figure is wrong, and no reason to fail."""
    assert counts(unpack(f"57:{2**64 - 1} 57:1 58:2")) == [(57, 2**64 - 1), (58, 2)]
