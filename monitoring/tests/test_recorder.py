"""The recorder: one row an id, the highest revision, however often and in whatever order records come."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from uuid import UUID

import pytest

from accounts.limits.records import decode_record
from accounts.tests.factories import IssuedKey, make_key
from monitoring.models import RequestRecord
from monitoring.recorder import write_record, write_records
from monitoring.tests.samples import a_record, an_operation

pytestmark = pytest.mark.django_db


@pytest.fixture
def key(db: None) -> IssuedKey:
    """Make a key."""
    return make_key()


def test_it_writes_every_field_and_changes_nothing_when_a_record_comes_again(key: IssuedKey) -> None:
    record = a_record(
        key, admitted_at=1_800_000_000_123_456, cached_tokens=5, first_token_ms=3.5, is_partial=True, is_overrun=True
    )
    for status in (200, 502, 200):
        write_record(replace(record, status=status))
    row = RequestRecord.objects.get()
    assert (row.id, row.status) == (UUID(record.id), 200)
    assert row.admitted_at == datetime.fromtimestamp(1_800_000_000, tz=UTC).replace(microsecond=123_456)
    assert (row.account_id, row.account_name) == (key.key.account_id, key.key.account.name)
    assert (row.key_id, row.key_name) == (key.key.pk, key.key.name)
    assert (row.input_tokens, row.cached_tokens, row.output_tokens) == (20, 5, 10)
    assert row.cost == Decimal("0.000025000")
    assert (row.is_partial, row.is_overrun, row.first_token_ms) == (True, True, 3.5)


@pytest.mark.parametrize("order", [(1, 2), (2, 1), (1, 2, 1, 2)])
@pytest.mark.parametrize("at_once", [False, True])
def test_it_keeps_the_highest_revision_in_whatever_order(key: IssuedKey, order: tuple[int, ...], at_once: bool) -> None:
    operation = an_operation()
    bound = a_record(key, id=operation, revision=1, usage_source="bound", cost=90)
    final = a_record(key, id=operation, revision=2, cost=7)
    records = [{1: bound, 2: final}[revision] for revision in order]
    for batch in [records] if at_once else [[record] for record in records]:
        assert write_records(batch) == 1
    row = RequestRecord.objects.get()
    assert (row.revision, row.usage_source, row.cost) == (2, "provider", Decimal("0.000000007"))


def test_it_keeps_a_cost_to_the_nano_dollar_up_to_a_million_dollars(key: IssuedKey) -> None:
    for cost in (1, 999_999_999_999_999):  # beyond that SQLite, which stores a double, would round
        write_record(a_record(key, cost=cost, input_tokens=2**53))
    costs = RequestRecord.objects.order_by("cost").values_list("cost", flat=True)
    assert list(costs) == [Decimal("0.000000001"), Decimal("999999.999999999")]


def test_it_takes_the_fields_of_the_oldest_release_and_nothing_without_one_of_them(key: IssuedKey) -> None:
    """During an upgrade older processes write records with these fields only: every other field needs a default."""
    oldest = ("label", "admitted_at", "account_id", "account_name", "key_id", "key_name", "endpoint")
    content = {name: json.loads(a_record(key).as_json())[name] for name in oldest}

    def entry(**content: object) -> dict[bytes, bytes]:
        return {b"o": an_operation().encode(), b"x": b"0", b"r": json.dumps(content).encode()}

    record = decode_record(entry(**content))
    assert {name: getattr(record, name) for name in oldest} == content
    nameless = {name: value for name, value in entry(**content).items() if name != b"o"}
    incomplete = [entry(**{name: content[name] for name in oldest if name != missing}) for missing in oldest]
    for fields in (nameless, *incomplete):
        with pytest.raises((KeyError, TypeError)):
            decode_record(fields)
