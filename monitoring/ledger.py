"""Usage of a month by key, account and model budget, according to the records. Missing ledgers are seeded with it.

It is read from the rollups of days, which are written in the same transaction as the records: at most 31 rows for each
key or account, endpoint, model and outcome, whatever the number of calls.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from itertools import chain, groupby, islice
from operator import attrgetter

from django.db import connection

from accounts.limits.types import SECOND, Amount, Subject
from accounts.selectors import api_keys_counted_against
from core.times import month_end, month_start

#: Subjects in one query: the number of parameters is limited, and longer lists get slow query plans.
AT_ONCE = 1_000
#: What accounts, or keys, used by model. This is plain SQL because a key's first call of a month waits for it.
_OF_ACCOUNTS = """
    SELECT account_id, model, sum(input_tokens + output_tokens), sum(cost) FROM monitoring_rollup
    WHERE grain = 'ad' AND start >= %s AND start < %s AND account_id IN ({}) GROUP BY account_id, model
"""
#: Keys only make keys of their own account, so the index by account finds all rows.
_OF_KEYS = """
    SELECT key_id, model, sum(input_tokens + output_tokens), sum(cost) FROM monitoring_rollup
    WHERE grain = 'kd' AND start >= %s AND start < %s AND key_id IN ({})
    AND account_id IN (SELECT account_id FROM accounts_apikey WHERE id IN ({})) GROUP BY key_id, model
"""

Sums = dict[tuple[int, str | None], Amount]


def months_settled(subjects: Sequence[Subject], month: int) -> dict[Subject, Amount]:
    """Return tokens and cost (nano-dollars) of the records of keys, accounts and model budgets in a month.

    The month is in UTC (YYYYMM). At most three queries are made for each AT_ONCE of the subjects.
    """
    settled: dict[Subject, Amount] = {}
    is_of_key = attrgetter("is_of_key")
    for is_key, of_one in groupby(sorted(subjects, key=is_of_key), key=is_of_key):
        while some := list(islice(of_one, AT_ONCE)):
            sums = _sums({each.owner_id for each in some}, month, of_keys=is_key)
            settled |= {each: sums.get((each.owner_id, each.model), Amount()) for each in some}
    return settled


def _sums(owners: Collection[int], month: int, *, of_keys: bool) -> Sums:
    """Sum by (owner, None) and (owner, model). Of a key, its rotations and the keys made by them count as well."""
    counted = api_keys_counted_against(owners) if of_keys else {owner: {owner} for owner in owners}
    sums: Sums = defaultdict(Amount)
    if not counted:
        return sums
    query, lists = (_OF_KEYS, (counted, owners)) if of_keys else (_OF_ACCOUNTS, (owners,))
    query = query.format(*(", ".join(["%s"] * len(each)) for each in lists))
    begin, end = (edge(month) // (60 * SECOND) for edge in (month_start, month_end))
    with connection.cursor() as cursor:
        cursor.execute(query, [begin, end, *chain(*lists)])
        for pk, model, tokens, cost in cursor.fetchall():
            for first in counted[pk]:
                for part in (None, model):
                    sums[first, part] += Amount(int(tokens), int(cost))
    return sums
