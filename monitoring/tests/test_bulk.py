"""Statements that take many lines: each sees its own lines and no others, whatever the transaction did before."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import connection, transaction

from accounts.tests.factories import Cast
from core.bulk import FEW, delete_lines, select_lines
from monitoring.models import RequestRecord
from monitoring.recorder import write_records
from monitoring.tests.samples import a_record

TABLE = RequestRecord._meta.db_table
MANY = FEW * 3


def stored(cast: Cast) -> list[tuple[Any]]:
    """Write many records and return their ids as lines."""
    write_records([a_record(cast.owner) for _ in range(MANY)])
    column = RequestRecord.objects.order_by("pk").values_list("pk", flat=True)
    return [(pk if connection.vendor == "postgresql" else pk.hex,) for pk in column]


@pytest.mark.django_db
def test_it_takes_the_lines_of_a_statement_apart_from_those_before(cast: Cast) -> None:
    lines = stored(cast)
    first, second = lines[: FEW + 10], lines[FEW + 10 :]
    with transaction.atomic(), connection.cursor() as cursor:
        assert len(select_lines(cursor, TABLE, ["id"], first, ["id"])) == len(first)
        assert set(map(tuple, select_lines(cursor, TABLE, ["id"], second, ["id"]))) == set(second)
        delete_lines(cursor, TABLE, ["id"], first)
        assert set(map(tuple, select_lines(cursor, TABLE, ["id"], lines, ["id"]))) == set(second)


@pytest.mark.django_db(transaction=True)
def test_it_leaves_the_catalogue_alone_from_its_second_time_on(cast: Cast) -> None:
    lines = stored(cast)
    files = set()
    for _ in range(3):
        with transaction.atomic(), connection.cursor() as cursor:
            assert len(select_lines(cursor, TABLE, ["id"], lines, ["id"])) == MANY
            if connection.vendor == "postgresql":  # where a table that is truncated gets another file
                cursor.execute(f"SELECT pg_relation_filenode('stage_{TABLE}_1')")
                files.add(cursor.fetchone())
    assert len(files) == (1 if connection.vendor == "postgresql" else 0)
