#!/usr/bin/env python
"""Run administrative tasks of AI API: `python manage.py help` lists them."""

import os
import sys


def main() -> None:
    """Run the command in sys.argv. Invalid configuration ends it with one line that names the variable and the fix.

    So does a database that can't be reached or lacks migrations, unless --traceback is given.
    """
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "aiapi.settings")
    if sys.argv[1:2] == ["serve"]:
        from gevent import config, monkey

        config.track_greenlet_tree = False  # otherwise each greenlet keeps the call stack that spawned it
        monkey.patch_all()  # before anything imports sockets, as the settings do
    from django.core.management import execute_from_command_line

    from core.env import ConfigurationError

    try:
        import aiapi.settings  # noqa: F401  (imported here to report an error in one line, without a traceback)
    except ConfigurationError as error:
        sys.exit(f"configuration: {error}")
    if sys.argv[1:2] == ["serve"]:
        from core.telemetry.metrics_folder import make_folder

        make_folder()  # before anything imports prometheus_client
    from django.db import DatabaseError

    try:
        execute_from_command_line(sys.argv)
    except DatabaseError:
        from aiapi.checks import database_problem

        problem = None if "--traceback" in sys.argv else database_problem()
        if problem is None:
            raise
        sys.exit(f"error: {problem}")


if __name__ == "__main__":
    main()
