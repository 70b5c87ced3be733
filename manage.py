#!/usr/bin/env python
"""Run administrative tasks of AI API: `python manage.py help` lists them."""

import os
import sys


def main() -> None:
    """Run the command in sys.argv."""
    load(serves=sys.argv[1:2] == ["serve"])
    run(*sys.argv[1:])


def load(*, serves: bool) -> None:
    """Load the settings, for a process that `serves` with gevent and a folder for its metrics.

    Invalid configuration ends the process with one line that names the variable and the fix.
    """
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "aiapi.settings")
    if serves:
        patch()
    from core.env import ConfigurationError

    try:
        from aiapi import settings  # imported here to report an error in one line, without a traceback
    except ConfigurationError as error:
        sys.exit(f"configuration: {error}")
    if serves:
        from core.telemetry.metrics_folder import make_folder

        make_folder()  # before anything imports prometheus_client
    # Django REST framework and unfold import these for features without a use here: 10 MB.
    traces = settings.OTEL_EXPORTER_OTLP_ENDPOINT or settings.OTEL_EXPORTER_OTLP_TRACES_ENDPOINT
    is_postgres = settings.DATABASES["default"]["ENGINE"] == "core.postgres"
    for name, is_needed in (("requests", traces), ("psycopg", is_postgres)):
        if not is_needed:
            sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # None: it can't be imported


def patch() -> None:
    """Let gevent patch the standard library, before anything imports sockets, as the settings do."""
    from gevent import config, monkey

    config.track_greenlet_tree = False  # otherwise each greenlet keeps the call stack that spawned it
    monkey.patch_all()


def run(*arguments: str) -> None:
    """Run a command.

    A database that can't be reached or lacks migrations ends the process with one line, unless --traceback is given.
    """
    from django.core.management import execute_from_command_line
    from django.db import DatabaseError

    try:
        execute_from_command_line(["manage.py", *arguments])
    except DatabaseError:
        from aiapi.checks import database_problem

        problem = None if "--traceback" in arguments else database_problem()
        if problem is None:
            raise
        sys.exit(f"error: {problem}")


if __name__ == "__main__":
    main()
