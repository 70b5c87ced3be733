"""Connecting to a provider whose name has several addresses: within one timeout, to the first that lets us."""

from __future__ import annotations

import socket
import time
from contextlib import nullcontext
from typing import Any

import pytest

from inference.catalog import Rates, Route
from inference.tests.samples import unanswered
from inference.tests.wire import HELLO
from inference.upstream.attempts import AttemptFailed
from inference.upstream.client import Client
from inference.upstream.errors import UNREACHED
from inference.upstream.fake import FakeUpstream
from inference.upstream.transport import PooledTransport

NAME = "several.example"


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Return the addresses that names have, beside those that the system knows."""
    known: dict[str, list[str]] = {}
    resolve = socket.getaddrinfo

    def look_up(host: Any, *args: Any, **options: Any) -> list[Any]:
        return [found for address in known.get(host, [host]) for found in resolve(address, *args, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return known


def test_it_looks_a_name_up_once(monkeypatch: pytest.MonkeyPatch, fake: FakeUpstream) -> None:
    resolve, asked = socket.getaddrinfo, []

    def look_up(host: str, *args: Any, **options: Any) -> list[Any]:
        asked.append(host)
        return list(resolve("127.0.0.1" if host == NAME else host, *args, **options))

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    fake.listen()
    assert PooledTransport().reaches(f"http://{NAME}:{fake.port}/v1", 0.6)
    assert asked.count(NAME) == 1


def test_it_says_of_a_name_without_addresses_that_it_is_not_reached() -> None:
    assert not PooledTransport().reaches("http://nowhere.invalid:1/v1", 0.6)


def test_it_gives_all_addresses_of_a_name_one_timeout_together(names: dict[str, list[str]]) -> None:
    names[NAME] = ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
    with unanswered("0.0.0.0") as port:  # noqa: S104  (all addresses of this machine, and nobody can talk to it)
        began = time.monotonic()
        assert not PooledTransport().reaches(f"http://{NAME}:{port}/v1", 0.6)
        assert 0.5 < time.monotonic() - began < 1


def test_it_tells_a_name_whose_addresses_are_all_silent_for_one_that_timed_out(names: dict[str, list[str]]) -> None:
    names[NAME] = ["127.0.0.1", "127.0.0.2"]
    with unanswered("0.0.0.0") as port:  # noqa: S104
        route = Route(1, "p/m", "p", f"http://{NAME}:{port}/v1", "", (), "m", "max_tokens", 0, 1, Rates())
        with pytest.raises(AttemptFailed) as failed:
            Client().call(route, "/chat/completions", {"messages": HELLO}, seconds=0.4)
    assert (failed.value.verdict, failed.value.cause) == (UNREACHED, "connect timeout")


@pytest.mark.parametrize("is_silent", [False, True], ids=["refused", "silent"])
def test_it_goes_on_to_the_next_address(names: dict[str, list[str]], fake: FakeUpstream, is_silent: bool) -> None:
    names[NAME] = ["127.0.0.2", "127.0.0.1"]
    fake.listen()
    with unanswered("127.0.0.2", fake.port) if is_silent else nullcontext():
        assert PooledTransport().reaches(f"http://{NAME}:{fake.port}/v1", 0.6)
