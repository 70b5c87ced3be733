"""Whose turn it is to begin and end episodes: of several processes that watch, one at a time.

They may see different things: what is away for one of them, another may reach. Did all of them begin and end episodes,
each would end what another had just begun. So one watches, and the others stand by until it gives its turn back, or was
not heard of for so long that it must be dead.

The turn is a row and no lock of the database's: where connections are pooled, a session's locks are lost, or left in
another's hands. Its time is the database's, the same for all.
"""

from __future__ import annotations

import os
import socket
import uuid
from datetime import timedelta

from django.conf import settings
from django.db.models import Q
from django.db.models.functions import Now

from monitoring.models import WatchTurn

THE_ONE = 1
#: How long a turn lasts beyond so many rounds that never came: a round may take long where much is away.
ROUNDS, ALLOWANCE = 4, timedelta(seconds=10)


class Turn:
    """A process's claim to the turn."""

    def __init__(self) -> None:
        self.name = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"

    def take(self) -> bool:
        """Take the turn, or go on with it; False while it is another's."""
        WatchTurn.objects.get_or_create(pk=THE_ONE, defaults={"holder": "", "until": Now()})
        lasting = ALLOWANCE + timedelta(seconds=ROUNDS * settings.WATCH_SECONDS)
        free = WatchTurn.objects.filter(Q(holder__in=("", self.name)) | Q(until__lte=Now()), pk=THE_ONE)
        return bool(free.update(holder=self.name, until=Now() + lasting))

    def is_mine(self) -> bool:
        """Say whether it still is, and keep it so until the transaction ends, in which this must be asked."""
        mine = WatchTurn.objects.select_for_update().filter(pk=THE_ONE, holder=self.name)
        return mine.first() is not None

    def give_back(self) -> None:
        """Let another have it at once."""
        WatchTurn.objects.filter(pk=THE_ONE, holder=self.name).update(holder="")
