"""A call: what it holds, what it charges, and the one record that it leaves."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from accounts.key_cache import build_authenticated_key
from accounts.limits import get_limits
from accounts.limits.types import Amount, Bound, LimitsUnavailable
from accounts.tests.factories import IssuedKey, make_key, make_tier
from core.errors import ApiError, BoundExceedsLimit, ConcurrencyLimited, TokensLimited
from core.telemetry.trace import begin_trace
from inference.call import Call
from inference.prices import Rates
from inference.tests.fixtures import Records
from inference.usage import Usage

RATES = Rates(input=2_000_000, cached_input=500_000, output=10_000_000)  # 2, 0.5 and 10 nano-dollars a token
BOUND = Bound(Amount(100, 200), output_tokens=50, output_price=10_000_000, minimum_output=1)
USAGE = Usage(10, 4, 5)

Open = Callable[..., Call]


@pytest.fixture
def key(db: None) -> IssuedKey:
    """Return a key with room for one call's bound, and a little more, a minute."""
    tier = make_tier("tight", requests_per_minute=None, tokens_per_minute=400, concurrent_requests=2)
    return make_key(tier=tier)


@pytest.fixture
def opened(key: IssuedKey) -> Open:
    """Return what begins another call of the key."""

    def begin() -> Call:
        identity = build_authenticated_key(key.key, key.key.created_at)
        trace = begin_trace(None)
        admission = get_limits().admit(identity.limits, trace.id.hex)
        return Call(identity=identity, trace=trace, admission=admission, endpoint="chat")

    return begin


def standing(call: Call) -> tuple[int, int, int, int]:
    """Return what stands settled and reserved on the key: tokens settled, cost settled, tokens reserved, slots."""
    usage = get_limits().usage(call.identity.limits)[0]
    return (usage.settled.tokens, usage.settled.cost, usage.reserved.tokens, usage.slots)


def test_it_holds_the_bound_until_it_settles_what_was_used(opened: Open, records: Records) -> None:
    call = opened()
    call.reserve(BOUND)
    assert call.reserved is not None
    assert call.output_tokens == 50
    assert standing(call) == (0, 0, 150, 1)
    call.charge(USAGE, RATES, source="provider")
    call.settle(status=200)
    cost = 6 * 2 + 4 * 1 // 2 + 5 * 10
    assert standing(call) == (15, cost, 0, 0)
    (record,) = records()
    assert (record.status, record.input_tokens, record.cached_tokens, record.output_tokens) == (200, 10, 4, 5)
    assert (record.usage_source, int((record.cost or 0) * 10**9), record.is_partial) == ("provider", cost, False)
    assert call.is_recorded


def test_it_rounds_the_cost_up_once(opened: Open) -> None:
    call = opened()
    call.reserve(BOUND)
    call.charge(Usage(3, 0, 0), Rates(input=1), source="provider")
    assert call.used.cost == 1


def test_it_settles_a_call_that_used_nothing(opened: Open, records: Records) -> None:
    call = opened()
    call.reserve(BOUND)
    call.settle(status=502, error_code="upstream_failed")
    assert standing(call) == (0, 0, 0, 0)
    (record,) = records()
    assert (record.status, record.error_code, record.input_tokens, record.output_tokens) == (
        502,
        "upstream_failed",
        0,
        0,
    )


def test_it_marks_what_broke_off(opened: Open, records: Records) -> None:
    call = opened()
    call.reserve(BOUND)
    call.charge(USAGE, RATES, source="estimated")
    call.record.is_partial = True
    call.settle(status=499, error_code="client_left")
    (record,) = records()
    assert (record.usage_source, record.is_partial) == ("estimated", True)


def test_it_charges_the_bound_of_an_attempt_that_may_be_called(opened: Open, records: Records) -> None:
    call = opened()
    call.reserve(BOUND)
    call.charge_bound()
    call.settle(status=504, error_code="upstream_timeout")
    assert standing(call)[:2] == (150, 200 + 50 * 10)
    (record,) = records()
    assert (record.input_tokens, record.output_tokens, record.usage_source) == (100, 50, "bound")


def test_it_charges_a_failed_attempt_and_the_one_that_answered(opened: Open, records: Records) -> None:
    call = opened()
    call.reserve(BOUND)
    call.charge_bound()
    assert call.covers_another()
    assert standing(call)[2] == 300
    call.charge(USAGE, RATES, source="provider")
    call.settle(status=200)
    assert standing(call) == (165, 700 + 64, 0, 0)
    (record,) = records()
    assert record.usage_source == "bound"
    assert (record.input_tokens + record.output_tokens, record.output_tokens) == (165, 5)


def test_it_covers_no_attempt_that_a_limit_has_no_room_for(opened: Open) -> None:
    call, other = opened(), opened()
    call.reserve(BOUND)
    other.reserve(Bound(Amount(200, 0)))
    assert not call.covers_another()
    call.settle(status=502)
    other.settle(status=200)


def test_it_covers_another_attempt_with_less_output(opened: Open) -> None:
    call, other = opened(), opened()
    call.reserve(BOUND)
    other.reserve(Bound(Amount(130, 0)))
    assert not call.is_cut
    assert call.covers_another()
    assert (call.output_tokens, call.is_cut) == (20, True)
    call.settle(status=200)
    other.settle(status=200)


@pytest.mark.parametrize(
    ("bound", "error"),
    [
        (Bound(Amount(500, 0)), BoundExceedsLimit),
        (Bound(Amount(300, 0)), TokensLimited),
        (Bound(Amount(10, 0)), ConcurrencyLimited),
    ],
)
def test_it_says_what_a_refusal_means(opened: Open, bound: Bound, error: type[ApiError]) -> None:
    first = opened()
    first.reserve(BOUND)
    if error is ConcurrencyLimited:
        opened().reserve(Bound(Amount(10, 0)))
    call = opened()
    with pytest.raises(error):
        call.reserve(bound)
    assert call.reserved is None
    assert standing(call)[3] == (2 if error is ConcurrencyLimited else 1)


def test_it_says_when_limits_can_t_be_held(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    call = opened()

    def away(*arguments: object, **options: object) -> None:
        raise LimitsUnavailable(retry_after=7)

    monkeypatch.setattr(get_limits(), "reserve", away)
    with pytest.raises(ApiError) as refused:
        call.reserve(BOUND)
    assert (refused.value.status, refused.value.headers["Retry-After"]) == (503, "7")
    assert not call.covers_another()


def test_it_leaves_a_record_of_a_call_that_reserved_nothing(opened: Open, records: Records) -> None:
    call = opened()
    call.record.cache, call.record.usage_source = "hit", "cache"
    call.emit(status=200)
    (record,) = records()
    assert (record.status, record.cache, record.usage_source) == (200, "hit", "cache")
    assert not record.cost
    assert standing(call) == (0, 0, 0, 0)
