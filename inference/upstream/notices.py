"""Which breakers are open, written down for whoever looks from another process: the admin, and `manage.py watch`.

In the database, which all processes of every way to run share. A notice that can't be written is logged and done
without: it must not cost the call whose failure opened the breaker.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

import structlog
from django.db import Error as DatabaseError
from django.utils import timezone

from accounts.connections import PROMPT_SECONDS, impatient, release_connections
from accounts.outage import database_outage
from inference.models import BreakerNotice

#: Seconds after a cool-down for which others take it that nothing was answered yet: longer than any trial takes.
STILL_FAILING = timedelta(seconds=900)

log = structlog.get_logger(__name__)


def publish(deployment_id: int, seconds: float) -> None:
    """Tell others for how many seconds a breaker is open for all; 0 takes it back."""
    if database_outage.is_on:
        return
    try:
        with impatient(PROMPT_SECONDS):
            _write(deployment_id, seconds)
    except DatabaseError as error:
        log.warning("breaker_not_published", deployment_id=deployment_id, cause=type(error).__name__)
    finally:
        release_connections()


def _write(deployment_id: int, seconds: float) -> None:
    if not seconds:
        BreakerNotice.objects.filter(pk=deployment_id).delete()
        return
    notice = BreakerNotice(deployment_id=deployment_id, open_until=timezone.now() + timedelta(seconds=seconds))
    BreakerNotice.objects.bulk_create(
        [notice], update_conflicts=True, unique_fields=["deployment_id"], update_fields=["open_until"]
    )


def open_anywhere(deployment_ids: Iterable[int]) -> set[int]:
    """Return the deployments whose breaker is open in some process."""
    now = timezone.now()
    return {identifier for identifier, until in _published(deployment_ids).items() if until > now}


def failing_anywhere(deployment_ids: Iterable[int]) -> set[int]:
    """Return those as well whose breaker waits for a trial, or for its outcome: nothing has been answered since."""
    return set(_published(deployment_ids))


def _published(deployment_ids: Iterable[int]) -> dict[int, datetime]:
    going_on = BreakerNotice.objects.filter(open_until__gt=timezone.now() - STILL_FAILING)
    wanted = set(deployment_ids)
    return {pk: until for pk, until in going_on.values_list("pk", "open_until") if pk in wanted}
