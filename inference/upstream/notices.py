"""Which deployments fail, written down for whoever looks from another process: the admin, and `manage.py watch`.

In the database, which all processes of every way to run share. A notice that can't be written is logged and done
without: it must not cost the call whose failure opened the breaker. The process that wrote it renews it while the
deployment goes on failing, and takes it back when it answers; that of a process that has ended counts for
STILL_FAILING.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import structlog
from django.db import Error as DatabaseError
from django.db.models import F, Q, QuerySet, Value
from django.db.models.functions import Greatest
from django.utils import timezone

from accounts.connections import PROMPT_SECONDS, impatient, release_connections
from accounts.outage import database_outage
from inference.models import BreakerNotice

#: For how long a deployment counts as failing that nobody has found failing since: longer than any trial takes.
STILL_FAILING = timedelta(seconds=900)

#: Tells others of a deployment: see publish.
Publish = Callable[[int, float | None, str], None]

log = structlog.get_logger(__name__)


def publish(deployment_id: int, seconds: float | None, cause: str = "") -> None:
    """Tell others that a deployment fails, why, and for how many seconds no call goes there (0: the next is a trial).

    None: it answers again.
    """
    if database_outage.is_on:
        return
    try:
        with impatient(PROMPT_SECONDS):
            if seconds is None:
                BreakerNotice.objects.filter(pk=deployment_id).delete()
            else:
                _write(deployment_id, seconds, cause)
    except DatabaseError as error:
        log.warning("breaker_not_published", deployment_id=deployment_id, cause=type(error).__name__)
    finally:
        release_connections()


def _write(deployment_id: int, seconds: float, cause: str) -> None:
    """Renew a notice, or begin one."""
    now = timezone.now()
    told = {"open_until": now + timedelta(seconds=seconds), "seen_at": now, "cause": cause[:100]}
    # Another process may keep its calls away for longer.
    renewed = {**told, "open_until": Greatest(F("open_until"), Value(told["open_until"]))}
    if not failing().filter(pk=deployment_id).update(**renewed):
        BreakerNotice.objects.bulk_create(
            [BreakerNotice(deployment_id=deployment_id, since=now, **told)],
            update_conflicts=True,
            unique_fields=["deployment_id"],
            update_fields=["since", *told],
        )


def failing() -> QuerySet[BreakerNotice]:
    """Select the deployments that fail: no call goes there, or the next is a trial, or one is on its way."""
    now = timezone.now()
    return BreakerNotice.objects.filter(Q(seen_at__gt=now - STILL_FAILING) | Q(open_until__gt=now))
