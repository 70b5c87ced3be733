"""The PostgreSQL backend breaks off what takes longer than its caller is patient; nobody gets what is left of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from django.db import DatabaseError, OperationalError
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.utils import ConnectionHandler
from psycopg.waiting import Ready, Wait

from core.database import current_query_timeout, query_promptly, query_timeout
from core.env import database_settings
from core.outage import Outage
from core.postgres.base import QueryTimeoutConnection
from tests.stores import Postgres

pytestmark = pytest.mark.django_db


@pytest.fixture
def handler(postgres: Postgres) -> Iterator[ConnectionHandler]:
    """Return the connections of the settings, to a database of their own, two at most."""
    handler = ConnectionHandler({"default": {}, "own": database_settings(postgres.create_database(), pool_size=2)})
    yield handler
    handler["own"].close()
    wrapper: Any = handler["own"]
    wrapper.close_pool()


@pytest.fixture
def connection(handler: ConnectionHandler) -> BaseDatabaseWrapper:
    """Return this thread's connection."""
    return handler["own"]


def run(connection: BaseDatabaseWrapper, statement: str) -> Any:
    """Run a statement, and return the first row of its answer."""
    with connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchone()


def backend(connection: BaseDatabaseWrapper) -> Any:
    """Name the server's process."""
    return run(connection, "SELECT pg_backend_pid()")


def test_it_breaks_off_a_statement_of_the_impatient_and_closes_its_connection(connection: BaseDatabaseWrapper) -> None:
    assert run(connection, "SELECT 1 FROM pg_sleep(1.5)") == (1,)
    with query_timeout(30):
        assert run(connection, "SELECT 2 FROM pg_sleep(0.5)") == (2,)
    before = backend(connection)
    began = time.monotonic()
    with query_timeout(0.3), pytest.raises(OperationalError, match="did not answer in time"):
        run(connection, "SELECT pg_sleep(60)")
    assert time.monotonic() - began < 30
    connection.close()
    assert backend(connection) != before


def test_it_waits_no_longer_for_one_of_the_pool_s_connections(
    handler: ConnectionHandler, connection: BaseDatabaseWrapper
) -> None:
    others_have, done = threading.Barrier(3, timeout=20), threading.Event()

    def take() -> None:
        own = handler["own"]
        run(own, "SELECT 1")
        others_have.wait()
        done.wait(20)
        own.close()

    threads = [threading.Thread(target=take) for _ in range(2)]
    for thread in threads:
        thread.start()
    others_have.wait()
    began = time.monotonic()
    with query_timeout(0.3), pytest.raises(OperationalError):
        run(connection, "SELECT 1")
    assert time.monotonic() - began < 4, "the pool's own patience is longer"
    done.set()
    for thread in threads:
        thread.join()
    assert run(connection, "SELECT 1") == (1,)


def test_it_replaces_all_that_was_closed_in_the_pool_within_anyone_s_patience(
    handler: ConnectionHandler, connection: BaseDatabaseWrapper, postgres: Postgres
) -> None:
    before = [backend(connection)]

    def use_another() -> None:
        before.append(backend(handler["own"]))
        handler["own"].close()

    second = threading.Thread(target=use_another)
    second.start()
    second.join(20)
    connection.close()
    with psycopg.connect(postgres.url(connection.settings_dict["NAME"]), autocommit=True) as other:
        for (process,) in before:
            other.execute("SELECT pg_terminate_backend(%s, 5000)", [process])
    assert len(set(before)) == 2
    with query_timeout(0.5):  # the pool's own check would take a second's pause after the second of them
        assert backend(connection) not in before


def test_it_counts_only_its_own_waits() -> None:
    looks: list[Ready | int] = []

    def exchange() -> Generator[Wait, Ready | int, str]:
        while len(looks) < 7:
            looks.append((yield Wait.R))
        return "answer"

    waiting = QueryTimeoutConnection._unless_silent(SimpleNamespace(), exchange(), 3)  # type: ignore[arg-type]
    assert next(waiting) is Wait.R
    for ready in (Ready.NONE, Ready.NONE, Ready.R, Ready.NONE, Ready.NONE, Ready.R):
        waiting.send(ready)
    with pytest.raises(StopIteration) as end:
        waiting.send(Ready.R)
    assert end.value.value == "answer"


def test_it_is_as_patient_as_the_least_patient_around_it() -> None:
    assert current_query_timeout() is None
    with query_timeout(2):
        with query_timeout(5):
            assert current_query_timeout() == 2
        with query_timeout(1):
            assert current_query_timeout() == 1
        assert current_query_timeout() == 2
    assert current_query_timeout() is None


def test_it_asks_promptly_and_not_at_all_what_was_away_a_moment_ago() -> None:
    outage, asked = Outage(), []

    def query() -> float | None:
        asked.append(current_query_timeout())
        if len(asked) > 1:
            raise OperationalError("gone")
        return current_query_timeout()

    assert query_promptly(query, outage, failed="not_asked") == 1
    for _ in range(3):
        with pytest.raises(DatabaseError):
            query_promptly(query, outage, failed="not_asked")
    assert len(asked) == 2
    assert outage.is_on
