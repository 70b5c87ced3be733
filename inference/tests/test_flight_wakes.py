"""A flight that ends in the moment in which its followers look around: under gevent all of them wake."""

from __future__ import annotations

import os
import subprocess
import sys

from django.conf import settings

#: The loop is busy until the leader's time to end and the followers' to look around have both come; it then serves them
#: in this order, before it wakes anybody.
ENDING = """
from gevent import monkey; monkey.patch_all()
import django; django.setup()
import time, gevent
from inference import single_flight as flight
from inference.upstream.errors import Deadline

def busy():
    gevent.sleep(0.05)
    until = time.monotonic() + 0.4
    while time.monotonic() < until:
        pass

flight.WANTED_SECONDS = 0.2
shared = flight.Flight("key")
followers = [gevent.spawn(shared.outcome, flight.Wait("key", Deadline(30), 0)) for _ in range(5)]
gevent.spawn(busy)
gevent.sleep(0.1)
shared.end("the answer", None)
gevent.joinall(followers, timeout=5)
print([each.value for each in followers].count("the answer"))
"""


def test_it_wakes_all_who_look_around_while_it_ends() -> None:
    env = {**os.environ, "DJANGO_SETTINGS_MODULE": "aiapi.settings"}
    done = subprocess.run(
        [sys.executable, "-c", ENDING], env=env, cwd=settings.BASE_DIR, capture_output=True, text=True, check=False
    )
    assert done.stdout == "5\n", done.stderr
