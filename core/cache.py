"""django-redis with the platform's JSON, over the connection that a process's greenlets share (core.redis.connection).

redis-py takes a connection from its pool for each command and checks it, which took a tenth of a model call's CPU time.
"""

from typing import Any

import redis
from django.conf import settings
from django_redis.serializers.base import BaseSerializer

from core.json import parse_strictly, to_json
from core.redis.availability import Availability
from core.redis.client import REDIS_PORT, server_of, state_store
from core.redis.wire import DirectWire


class CacheServer:
    """The process's wire to the server of a cache, and its availability."""

    def __init__(self, pool: Any) -> None:
        at = pool.connection_kwargs
        self._place = (None, at["path"]) if "path" in at else (at.get("host", "localhost"), at.get("port", REDIS_PORT))
        self._wire = DirectWire(pool)
        self.own_availability = Availability(self._wire.ping, name="cache")

    @property
    def availability(self) -> Availability:
        """The availability of the server: the state store's, if it is the same one."""
        is_state_store = bool(settings.REDIS_URL) and server_of(settings.REDIS_URL) == self._place
        return state_store() if is_state_store else self.own_availability

    def command(self, *command: Any) -> Any:
        """Run a command, again if its connection broke. Raises RedisError, at once while the server is down."""
        return self.availability.ask(self._wire.command, *command, attempts=1)


#: django-redis has one pool for a server, and a client for each thread.
_servers: dict[redis.ConnectionPool, CacheServer] = {}


def forget_outages() -> None:
    """Take the servers of all caches to be available, so that calls ask them again."""
    for server in _servers.values():
        server.own_availability.is_away = False


class JSONSerializer(BaseSerializer):  # type: ignore[misc]  # django-redis has no types
    """Writes cached values as JSON."""

    def dumps(self, value: Any) -> bytes:
        """Return a value as JSON."""
        return to_json(value)

    def loads(self, value: bytes) -> Any:
        """Parse a value; raises ValueError."""
        return parse_strictly(value)


class SharedRedis(redis.Redis):
    """The client. Failures are raised as RedisError."""

    @property
    def server(self) -> CacheServer:
        """The server of the client's pool."""
        pool = self.connection_pool
        return _servers.get(pool) or _servers.setdefault(pool, CacheServer(pool))

    def set(self, name: Any, value: Any, **options: Any) -> Any:  # type: ignore[override]  # fewer names
        """Set a key. With an expiry alone (`px`, milliseconds), redis-py's checks would take as long as the rest."""
        given = {option: argument for option, argument in options.items() if argument}
        if given.keys() != {"px"}:
            return super().set(name, value, **options)
        return self.execute_command("SET", name, value, "PX", given["px"])

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Run a command and return its reply as redis-py does."""
        reply = self.server.command(*args)
        callback: Any = self.response_callbacks.get(args[0])  # type: ignore[no-untyped-call]
        return reply if callback is None else callback(reply, **options)
