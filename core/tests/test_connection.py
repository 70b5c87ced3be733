"""The connection to the store that all greenlets of a server process share, in a process that gevent has patched.

The store is this session's own, since these tests stop it and break its connections.
"""

from __future__ import annotations

import subprocess
import sys

from django.conf import settings

from tests.stores import Redis

#: What every script begins with: `wire` runs `echo` (a script that returns its argument) on the store.
BEGIN = """
from gevent import monkey; monkey.patch_all()
import time, gevent, redis
from core.redis.client import redis_client, wire_for
from core.redis.connection import is_possible
from core.redis.wire import script
wire = wire_for(redis_client(URL, connect_timeout=10, read_timeout=READ_TIMEOUT))
plain = redis.Redis.from_url(URL)
source = script(b"return ARGV[1]")
def echo(text): return wire.call(source, "k", [text]).decode()
def outcome(greenlet): return greenlet.value if greenlet.successful() else type(greenlet.exception).__name__
gevent.hub.Hub.NOT_ERROR += (redis.RedisError,)
assert is_possible() and gevent.spawn(is_possible).get()
"""


def run(code: str, url: str, *, read_timeout: float = 10) -> str:
    """Run a script in a new process that gevent has patched; return what it prints."""
    begin = BEGIN.replace("URL", repr(url)).replace("READ_TIMEOUT", str(read_timeout))
    done = subprocess.run(
        [sys.executable, "-c", begin + code],
        cwd=settings.BASE_DIR,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_it_gives_each_caller_its_own_reply(redis: Redis) -> None:
    code = """
def clients(): return len([each for each in plain.client_list() if "lib" not in each["name"]])
before = clients()
texts = [str(number) * (1 if number % 100 else 20_000) for number in range(3_000)]
assert [greenlet.get() for greenlet in [gevent.spawn(echo, text) for text in texts]] == texts
print(clients() - before)
"""
    assert int(run(code, redis.url)) < 20, "three thousand callers share a connection"


def test_it_gives_an_error_to_its_caller_alone(redis: Redis) -> None:
    code = """
wrong = script(b"return redis.call('GET')")
greenlets = [gevent.spawn(echo, str(number)) for number in range(10)]
greenlets[5] = gevent.spawn(wire.call, wrong, "k", [])
gevent.joinall(greenlets)
print([outcome(each) for each in greenlets])
"""
    expected = [str(number) for number in range(10)]
    expected[5] = "ResponseError"
    assert run(code, redis.url) == str(expected)


def test_it_drops_the_late_reply_of_a_caller_that_was_killed(redis: Redis) -> None:
    code = """
echo("first")
killed = [gevent.spawn(echo, "killed") for _ in range(5)]
gevent.sleep(0)
for each in killed: each.kill(block=False)
print([gevent.spawn(echo, str(number)).get() for number in range(5)])
"""
    assert run(code, redis.url) == str([str(number) for number in range(5)])


def test_it_connects_anew_when_the_connection_breaks(redis: Redis) -> None:
    code = """
echo("first")
greenlets = [gevent.spawn(echo, str(number)) for number in range(50)]
plain.client_kill_filter(_type="normal", skipme=True)
gevent.joinall(greenlets)
print([outcome(each) for each in greenlets] == [str(number) for number in range(50)], echo("last"))
"""
    assert run(code, redis.url) == "True last"


def test_it_gives_up_on_a_store_that_is_silent_and_comes_back_to_it(redis: Redis) -> None:
    code = """
echo("first")
plain.client_pause(1_500)
began = time.monotonic()
greenlets = [gevent.spawn(echo, "x") for _ in range(20)]
gevent.joinall(greenlets)
assert 0.1 < time.monotonic() - began < 1.5, time.monotonic() - began
gevent.sleep(1.6)
print({outcome(each) for each in greenlets}, echo("last"))
"""
    assert run(code, redis.url, read_timeout=0.2) == "{'TimeoutError'} last"


def test_it_reads_what_came_while_the_process_was_busy(redis: Redis) -> None:
    code = """
from gevent.monkey import get_original
echo("first")
greenlet = gevent.spawn(echo, "answered")
gevent.sleep(0.001)
get_original("time", "sleep")(0.6)
print(greenlet.get())
"""
    assert run(code, redis.url, read_timeout=0.2) == "answered"


def test_it_fails_all_at_once_where_nobody_listens() -> None:
    code = """
greenlets = [gevent.spawn(echo, "x") for _ in range(200)]
gevent.joinall(greenlets, timeout=20)
print({outcome(each) for each in greenlets})
"""
    assert run(code, "redis://127.0.0.1:1/0") == "{'ConnectionError'}"


def test_it_connects_anew_in_a_forked_process(redis: Redis) -> None:
    code = """
import os
echo("first")
child = os.fork()
if child == 0:
    os._exit(0 if [gevent.spawn(echo, str(number)).get() for number in range(20)] == [str(n) for n in range(20)] else 1)
assert [gevent.spawn(echo, f"parent {n}").get() for n in range(20)] == [f"parent {n}" for n in range(20)]
print(os.waitpid(child, 0)[1])
"""
    assert run(code, redis.url) == "0"
