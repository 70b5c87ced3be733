"""The WSGI application that gunicorn serves."""

import os

import structlog
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.db import Error as DatabaseError

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "aiapi.settings")

application = get_wsgi_application()


def charge_interrupted_calls() -> None:
    """Write the records of calls that a dead process left open, where limits are kept in the process.

    With Redis the reservations' leases do that. A database that is away now costs nothing but the delay: the rows
    stay, for the next start.
    """
    if settings.REDIS_URL:
        return
    from accounts.journal import recover_reservations
    from monitoring.recorder import write_record

    log = structlog.get_logger(__name__)
    try:
        recovered = recover_reservations(write_record)
    except DatabaseError as error:
        log.error("reservations_not_recovered", cause=type(error).__name__)
        return
    if recovered:
        log.warning("interrupted_calls_charged", calls=recovered)


charge_interrupted_calls()
