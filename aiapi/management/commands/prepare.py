"""Migrate the database, set up what a new installation needs, and check it: all that bin/run does before it serves."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management import call_command
from django.core.management.base import BaseCommand
from django.db import connection
from django.db.migrations.recorder import MigrationRecorder

from aiapi.checks import require_no_problems


class Command(BaseCommand):
    """Called by bin/run before it starts the processes."""

    help = __doc__
    requires_system_checks = []  # they are made at the end

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add the optional output file."""
        parser.add_argument("file", nargs="?", type=Path, help="where to write the installation id")

    def handle(self, *args: Any, **options: Any) -> None:
        """Prepare the database, and write its installation id to the file, if given; raise CommandError for problems.

        The id is the time of the database's first migration, to the microsecond.
        """
        call_command("migrate", verbosity=0)
        call_command("bootstrap", stdout=self.stdout, stderr=self.stderr)
        if options["file"] is not None:
            first = MigrationRecorder(connection).migration_qs.earliest("id")
            options["file"].write_text(f"{first.applied:%Y%m%dT%H%M%S.%f}")
        require_no_problems(self.stderr)
