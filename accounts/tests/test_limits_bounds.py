"""Bounds, months and records: the plain values of the limits."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accounts.limits.records import decode_record
from accounts.limits.types import SECOND, Amount, Bound, LimitName, Limits, LimitSet, Refusal, Subject, binding
from core.times import month_end, month_of, month_start


def at(moment: str) -> int:
    """Give a moment in UTC in µs."""
    return int(datetime.fromisoformat(moment).replace(tzinfo=UTC).timestamp()) * SECOND


class TestBound:
    def test_it_rounds_its_cost_up_once(self) -> None:
        bound = Bound(Amount(3, 5), output_tokens=3, output_price=1_500_000)
        assert bound.at(3) == Amount(6, 5 + 5)

    @pytest.mark.parametrize(
        "parts",
        [
            {"output_tokens": -1},
            {"output_price": -1},
            {"output_tokens": 5, "step": 2},
            {"output_tokens": 4, "minimum_output": 1, "step": 2},
            {"output_tokens": 4, "minimum_output": 5},
            {"step": 0},
            {"output_tokens": 10**10, "output_price": 10**12},
        ],
    )
    def test_it_refuses_parts_that_make_no_sense(self, parts: dict[str, int]) -> None:
        with pytest.raises(ValueError, match=r"bound|output"):
            Bound(Amount(), **parts)

    @given(
        prompt=st.builds(Amount, st.integers(0, 1000), st.integers(0, 10**9)),
        answers=st.integers(0, 500),
        step=st.integers(1, 4),
        price=st.integers(0, 10**12),
        tokens_left=st.none() | st.integers(0, 2000),
        cost_left=st.none() | st.integers(0, 10**10),
    )
    def test_it_finds_the_largest_output_that_fits(
        self, prompt: Amount, answers: int, step: int, price: int, tokens_left: int | None, cost_left: int | None
    ) -> None:
        bound = Bound(prompt, answers * step, price, minimum_output=0, step=step)
        fitting = [
            output
            for output in range(0, answers * step + 1, step)
            if (tokens_left is None or bound.at(output).tokens <= tokens_left)
            and (cost_left is None or bound.at(output).cost <= cost_left)
        ]
        assert bound.largest_output(tokens_left, cost_left) == max(fitting, default=None)


class TestMonths:
    @pytest.mark.parametrize(
        ("moment", "month"),
        [
            (at("2026-11-01"), 202611),
            (at("2026-12-01") - 1, 202611),
            (at("2026-12-31 23:59:59"), 202612),
            (at("2027-01-01"), 202701),
            (at("2028-02-29 12:00"), 202802),
        ],
    )
    def test_it_finds_the_month_of_a_moment(self, moment: int, month: int) -> None:
        assert month_of(moment) == month
        assert month_start(month) <= moment < month_end(month)

    def test_it_ends_a_month_where_the_next_begins(self) -> None:
        for month, following in ((202611, 202612), (202612, 202701), (202802, 202803)):
            assert month_end(month) == month_start(following)


class TestRefusal:
    def refusal(self, reset_at: int, *, impossible: bool = False) -> Refusal:
        subject = Subject("key", "1", Limits())
        return Refusal(LimitName.MONTHLY_COST, subject, 1, 1, 0, reset_at, impossible=impossible)

    @pytest.mark.parametrize(("reset_at", "seconds"), [(0, 1), (1, 1), (SECOND, 1), (SECOND + 1, 2), (60 * SECOND, 60)])
    def test_it_rounds_the_wait_up(self, reset_at: int, seconds: int) -> None:
        assert self.refusal(reset_at).retry_after == seconds

    def test_it_prefers_the_impossible_then_the_longest(self) -> None:
        soon, late, never = self.refusal(1), self.refusal(2), self.refusal(1, impossible=True)
        assert binding([soon, late]) is late
        assert binding([late, never, soon]) is never


class TestScope:
    @pytest.mark.parametrize(("kind", "name"), [("key", ""), ("key", "a b"), ("key", "{s1}"), ("", "1"), ("K", "1")])
    def test_it_refuses_names_that_the_store_could_confuse(self, kind: str, name: str) -> None:
        with pytest.raises(ValueError, match="not a subject"):
            Subject(kind, name, Limits())

    def test_it_shares_a_shard_with_its_account(self) -> None:
        assert LimitSet(64 * 3 + 7, ()).shard == 7

    def test_it_knows_whether_a_budget_is_set(self) -> None:
        def scope(**limits: int) -> LimitSet:
            return LimitSet(1, (Subject("key", "1", Limits()), Subject("account", "1", Limits(**limits))))

        assert not scope(requests_per_minute=1, tokens_per_minute=1, concurrent_requests=1).has_budget
        assert scope(monthly_tokens=0).has_budget
        assert scope(monthly_cost=1).has_budget


def test_it_refuses_stream_entries_that_are_no_records() -> None:
    with pytest.raises(KeyError):
        decode_record({b"other": b"1"})
