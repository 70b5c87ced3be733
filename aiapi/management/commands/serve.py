"""Check the configuration, database included, then become the web server."""

from __future__ import annotations

import os
import sys
from typing import Any

from django.core import checks
from django.core.management.base import BaseCommand, CommandError
from django.db import DEFAULT_DB_ALIAS, connections
from django.db import Error as DatabaseError
from django.db.migrations.executor import MigrationExecutor


class Command(BaseCommand):
    """The entry point of the image and of bin/run: gunicorn itself runs none of Django's checks."""

    help = __doc__
    requires_system_checks = []

    def handle(self, *args: Any, **options: Any) -> None:
        """Stop with one line for each mistake, or replace this process by gunicorn."""
        problems = self._problems()
        if problems:
            raise CommandError("\n".join(problems))
        executable = os.path.join(os.path.dirname(sys.executable), "gunicorn")  # noqa: PTH118, PTH120  (not resolved)
        self.stdout.flush()
        os.execv(executable, [executable, "-c", "aiapi/gunicorn_config.py", "aiapi.wsgi"])  # noqa: S606

    def _problems(self) -> list[str]:
        away = self._database_problem()
        if away:
            return [away]
        found = sorted(checks.run_checks(databases=[DEFAULT_DB_ALIAS]), key=lambda message: str(message.id))
        for message in found:
            if checks.WARNING <= message.level < checks.ERROR:
                self.stderr.write(_line(message))
        return [_line(message) for message in found if message.is_serious()]

    def _database_problem(self) -> str | None:
        connection = connections[DEFAULT_DB_ALIAS]
        try:
            executor = MigrationExecutor(connection)
            waiting = executor.migration_plan(executor.loader.graph.leaf_nodes())
        except DatabaseError:
            return "DATABASE_URL: the database can't be reached. Start it, or mend the URL."
        finally:
            connection.close()
        if waiting:
            return f"{len(waiting)} migrations are missing. Run: manage.py migrate"
        return None


def _line(message: checks.CheckMessage) -> str:
    return f"{message.id}: {message.msg} {message.hint or ''}".strip()
