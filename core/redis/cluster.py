"""Redis Cluster: scripts run on the node that has their slot, and a client for all other commands.

If one primary is unavailable, the whole cluster counts as unavailable.

redis-py's cluster client is not used for scripts: after any timeout it looks up the whole cluster again while all other
calls wait, it allows 100 connections to a node, and its errors are not subclasses of RedisError. Here, one caller looks
up the slots for all, and only after a node has reported that a slot has moved or can't be reached.
"""

import threading
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import redis
from redis.cluster import RedisCluster
from redis.crc import key_slot
from redis.exceptions import AskError, ClusterDownError, MovedError, RedisClusterException, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError

from core.outage import Outage
from core.redis.wire import Argument, Call, DirectWire, Script

REDIRECTS = 3  # most redirects that a call follows

Address = tuple[str, int]
#: The last slot of each range, in order, and the address of the range's primary.
Slots = tuple[list[int], list[Address]]


class ClusterWire:
    """Runs each script on the cluster node that has the prefix's slot. `url` names any node of the cluster."""

    def __init__(self, url: str, options: dict[str, Any]) -> None:
        self._template: Any = redis.ConnectionPool.from_url(url, **options)
        kwargs = self._template.connection_kwargs
        self._seed: Address = (kwargs.get("host", "localhost"), int(kwargs.get("port", 6379)))
        self._wires: dict[Address, DirectWire] = {}
        self._slots: Slots = ([], [])
        self._is_stale = True
        self._lock = threading.Lock()
        self._outage = Outage()

    def call(self, script: Script, prefix: str, arguments: Sequence[Argument]) -> Any:
        """Run a script on the node that has the prefix's slot, following redirects."""
        for _ in range(REDIRECTS):
            slots = self._looked_up()
            try:
                return self._wire(_owner(slots, prefix)).call(script, prefix, arguments)
            except MovedError:
                self._forget(slots)
            except AskError as error:
                return self._wire((error.host, error.port)).call_asking(script, prefix, arguments)
            except ClusterDownError as error:
                raise RedisConnectionError("the cluster is down") from error
            except RedisConnectionError:
                self._forget(slots)
                raise
        raise RedisConnectionError("the cluster is still moving the slot")

    def call_each(self, script: Script, calls: Sequence[Call]) -> list[Any]:
        """Run a script many times, in one batch a node. If a batch fails, its calls are repeated one by one."""
        slots = self._looked_up()
        by_node: dict[Address, list[int]] = defaultdict(list)
        for number, (prefix, _) in enumerate(calls):
            by_node[_owner(slots, prefix)].append(number)
        answers: dict[int, Any] = {}
        for address, numbers in by_node.items():
            own = [calls[number] for number in numbers]
            try:
                found = self._wire(address).call_each(script, own)
            except RedisError:
                found = [self.call(script, *each) for each in own]
            answers |= zip(numbers, found, strict=True)
        return [answers[number] for number in range(len(calls))]

    def one_a_node(self, prefixes: Sequence[str]) -> Collection[str]:
        """Return one of the prefixes for each node, as the slots are distributed now."""
        slots = self._looked_up()
        return {_owner(slots, prefix): prefix for prefix in prefixes}.values()

    def ping(self) -> None:
        """Raise RedisError unless every primary reports a healthy cluster. Each account's data is on one of them."""
        slots = self._looked_up()
        try:
            self._probe_all(slots)
        except RedisError:
            self._forget(slots)  # a replica may have taken over from a failed primary
            self._probe_all(self._looked_up())

    def close(self) -> None:
        """Close all connections."""
        for wire in list(self._wires.values()):
            wire.close()

    def _probe_all(self, slots: Slots) -> None:
        for address in set(slots[1]):
            if b"cluster_state:ok" not in self._wire(address).probe(b"CLUSTER", b"INFO"):
                raise RedisConnectionError("the cluster is down")

    def _forget(self, slots: Slots) -> None:
        """Have the slots looked up again before the next call, unless they are newer than `slots`."""
        if self._slots is slots:
            self._is_stale = True

    def _looked_up(self) -> Slots:
        """Return the slots. Raises RedisConnectionError if no node knows them; during an outage at once."""
        if self._is_stale:
            with self._lock:
                if self._is_stale:
                    self._look_up()
        return self._slots

    def _look_up(self) -> None:
        if not self._outage.may_try():
            raise RedisConnectionError("the cluster is unavailable")
        for address in dict.fromkeys([*self._slots[1], self._seed]):
            try:
                found = _read_slots(self._wire(address).command(b"CLUSTER", b"SLOTS"), address)
            except RedisError:
                continue
            if found[0]:
                self._slots, self._is_stale = found, False
                self._outage.succeeded()
                return
        self._outage.failed()
        raise RedisConnectionError("the cluster is unavailable")

    def _wire(self, address: Address) -> DirectWire:
        wire = self._wires.get(address)
        if wire is None:
            options = {**self._template.connection_kwargs, "host": address[0], "port": address[1]}
            kind, most = self._template.connection_class, self._template.max_connections
            pool = redis.ConnectionPool(connection_class=kind, max_connections=most, **options)
            wire = self._wires.setdefault(address, DirectWire(pool))
        return wire


def _owner(slots: Slots, prefix: str) -> Address:
    """Return the node that has a prefix. For an unassigned slot it is the last node, which then reports the error."""
    ends, owners = slots
    return owners[min(bisect_left(ends, key_slot(prefix.encode())), len(owners) - 1)]


def _read_slots(answer: Any, asked: Address) -> Slots:
    """Parse the reply to CLUSTER SLOTS, `[first, last, [host, port, id], replicas...]`; an empty host means `asked`."""
    ranges = sorted((int(last), primary) for _, last, primary, *_ in answer)
    owners = [(host.decode() if host else asked[0], int(port)) for _, (host, port, *_) in ranges]
    return [last for last, _ in ranges], owners


class ClusterClient:
    """redis-py's cluster client, created at its first use and again after an outage of the whole cluster.

    Raises RedisConnectionError if the cluster is unavailable; during an outage at once.
    """

    def __init__(self, url: str, options: dict[str, Any]) -> None:
        self.url = url
        self.options = options
        self._made: Any = None  # redis-py's cluster client is not typed
        self._lock = threading.Lock()
        self._outage = Outage()

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of redis-py's client. Methods are wrapped to handle the loss of the whole cluster."""
        found = getattr(self._client(), name)
        return self._guarded(found) if callable(found) else found

    def close(self) -> None:
        """Close the client if it has been created."""
        if self._made is not None:
            self._made.close()

    def _client(self) -> Any:
        made = self._made
        if made is None:
            with self._lock:
                made = self._made or self._make()
        return made

    def _make(self) -> Any:
        if not self._outage.may_try():
            raise RedisConnectionError("the cluster is unavailable")
        try:
            with _cluster_errors():
                made: Any = _RedisCluster.from_url(self.url, **self.options)
        except RedisError:
            self._outage.failed()
            raise
        self._outage.succeeded()
        self._made = made
        return made

    def _guarded(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            try:
                return method(*arguments, **options)
            except _ClusterAway:
                self._made = None  # it has lost all nodes and doesn't recover by itself
                raise

        return call


class _ClusterAway(RedisConnectionError):
    """A cluster error of redis-py as a RedisError, which redis-py's own classes are not."""


class _RedisCluster(RedisCluster):
    def execute_command(self, *arguments: Any, **options: Any) -> Any:
        with _cluster_errors():
            return super().execute_command(*arguments, **options)  # type: ignore[no-untyped-call]


@contextmanager
def _cluster_errors() -> Iterator[None]:
    try:
        yield
    except RedisClusterException as error:
        raise _ClusterAway("the cluster is unavailable") from error
