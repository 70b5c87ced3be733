"""The wire to Redis in a process that is at times too busy to look at its sockets."""

from typing import Any

import pytest
import redis

from core.redis.wire import DirectWire


class Connection:
    """A connection of which connecting or reading times out at first, each time after so many seconds."""

    socket_connect_timeout = 0.1
    clock = 0.0
    slow_connects: tuple[float, ...] = ()
    slow_reads: tuple[float, ...] = ()
    has_answer = True

    def __init__(self, **options: Any) -> None:
        self.connects, self.reads = list(self.slow_connects), list(self.slow_reads)

    def _step(self, times: list[float]) -> None:
        if times:
            type(self).clock += times.pop(0)
            raise redis.TimeoutError("timed out")

    def connect(self) -> None:
        self._step(self.connects)

    def send_command(self, *command: Any) -> None:
        """Send nothing."""

    def can_read(self, timeout: float) -> bool:
        assert timeout == 0
        return self.has_answer

    def read_response(self, *, disconnect_on_error: bool = True) -> str:
        self._step(self.reads)
        return "PONG"

    def disconnect(self) -> None:
        """Close nothing."""


@pytest.mark.parametrize(
    ("connects", "reads", "has_answer", "is_there"),
    [
        ((), (), True, True),
        ((0.4,), (), True, True),  # the process was late: it connects again
        ((0.1,), (), True, False),
        ((0.4, 0.1), (), True, False),
        ((), (0.2,), True, True),  # the reply came before the process looked
        ((), (0.2,), False, False),
    ],
)
def test_it_takes_a_store_for_away_only_where_the_process_itself_was_not_late(
    monkeypatch: pytest.MonkeyPatch,
    connects: tuple[float, ...],
    reads: tuple[float, ...],
    *,
    has_answer: bool,
    is_there: bool,
) -> None:
    class Own(Connection):
        slow_connects, slow_reads = connects, reads

    Own.has_answer = has_answer
    monkeypatch.setattr("core.redis.wire.monotonic", lambda: Own.clock)
    pool: Any = type("Pool", (), {"connection_class": Own, "connection_kwargs": {}})()
    wire = DirectWire(pool)
    if is_there:
        wire.ping()
    else:
        with pytest.raises(redis.TimeoutError):
            wire.ping()
