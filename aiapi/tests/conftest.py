"""The fixtures of aiapi's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from inference.tests.fixtures import api, cast, fake, handler, log_lines, records, roomy, upstream
from tests.silent import Silent, silent_server

__all__ = ["api", "cast", "fake", "handler", "log_lines", "records", "roomy", "upstream"]


@pytest.fixture
def silent() -> Iterator[Silent]:
    """Run a Redis that never answers."""
    with silent_server() as server:
        yield server
