"""Check the configuration and the database, then run the web server."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand
from django.db import connection

from accounts.checks import require_state_store
from aiapi.checks import require_no_problems
from inference.models import Deployment
from inference.protocols.base import count_tokens
from inference.upstream.local_model import MODEL_NAME


class Command(BaseCommand):
    """The entry point of the image and of bin/run. gunicorn alone would not run Django's system checks."""

    help = __doc__
    requires_system_checks = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Take --checked: bin/run's `prepare` has checked, in a process that gives its memory back."""
        parser.add_argument("--checked", action="store_true", help="start without checks")

    def handle(self, *args: Any, **options: Any) -> None:
        """Raise CommandError with one line for each problem, or serve until the server is stopped."""
        require_state_store()
        if not options["checked"]:
            require_no_problems(self.stderr)
        for model in Deployment.objects.exclude(upstream_name=MODEL_NAME).values_list("upstream_name", flat=True):
            count_tokens([], model=model)  # loads its encoding, for all workers: half a second, and up to 75 MB
        connection.close()
        if connection.vendor == "postgresql":
            connection.close_pool()  # type: ignore[attr-defined]  # its threads don't outlive a fork
        from aiapi.server import Server

        Server().run()
