"""The wire to Redis in a process that is at times too busy to look at its sockets."""

from typing import Any

import pytest
import redis

from core.redis.wire import DirectWire


class Connection:
    """A connection whose first steps time out, each after so many seconds; then all is well."""

    socket_connect_timeout = 0.1
    clock = 0.0
    slow: tuple[float, ...] = ()
    made = 0
    has_answer = True

    def __init__(self, **options: Any) -> None:
        self.times = list(type(self).slow)

    def _step(self) -> None:
        if self.times:
            type(self).clock += self.times.pop(0)
            raise redis.TimeoutError("timed out")

    def connect(self) -> None:
        self._step()
        type(self).made += 1

    def send_command(self, *command: Any, **options: Any) -> None:
        """Send nothing."""

    def can_read(self, timeout: float) -> bool:
        assert timeout == 0
        return self.has_answer

    def read_response(self, *, disconnect_on_error: bool = True) -> str:
        self._step()
        return "PONG"

    def disconnect(self) -> None:
        self.times = []


class Pool:
    """What a wire asks a pool."""

    def __init__(self, connection_class: type[Connection]) -> None:
        self.connection_class = connection_class
        self.connection_kwargs: dict[str, Any] = {}


@pytest.fixture
def kind(monkeypatch: pytest.MonkeyPatch) -> type[Connection]:
    """Make a class of connections by whose clock the wire measures."""

    class Own(Connection):
        pass

    monkeypatch.setattr("core.redis.wire.monotonic", lambda: Own.clock)
    return Own


def over(kind: type[Connection]) -> DirectWire:
    return DirectWire(Pool(kind))  # type: ignore[arg-type]


def test_it_connects_again_where_the_process_itself_was_late(kind: type[Connection]) -> None:
    kind.slow = (0.4,)
    assert over(kind).command(b"PING") == "PONG"
    over(kind).ping()
    assert kind.made == 2


def test_it_takes_one_that_does_not_connect_in_time_for_away(kind: type[Connection]) -> None:
    kind.slow = (0.1,)
    with pytest.raises(redis.TimeoutError):
        over(kind).command(b"PING")
    kind.slow = (0.4, 0.1)
    with pytest.raises(redis.TimeoutError):
        over(kind).command(b"PING")


@pytest.mark.parametrize("has_answer", [True, False])
def test_it_reads_a_reply_that_came_before_the_process_looked(kind: type[Connection], *, has_answer: bool) -> None:
    direct = over(kind)
    assert direct.command(b"PING") == "PONG"
    (connection,) = direct._idle
    connection.times, connection.has_answer = [0.2], has_answer
    if has_answer:
        assert direct.command(b"PING") == "PONG"
        assert list(direct._idle) == [connection]
    else:
        with pytest.raises(redis.TimeoutError):
            direct.command(b"PING")
        assert not direct._idle
