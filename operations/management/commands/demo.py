"""Make sample data to look at: accounts, keys, two months of requests, an outage, a budget that is nearly used up."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError

from accounts.checks import require_state_store
from operations.demo.services import DemoRefused, demo_make, demo_remove

ACTOR = "command:demo"


class Command(BaseCommand):
    """Refused if the sample data is there already, and in production."""

    help = __doc__

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add --remove and --force."""
        parser.add_argument("--remove", action="store_true", help="remove it, and leave all else as it is")
        parser.add_argument("--force", action="store_true", help="make it in production, too")

    def handle(self, *args: Any, **options: Any) -> None:
        """Make or remove it, and print what that was."""
        require_state_store()
        try:
            done = demo_remove(actor=ACTOR) if options["remove"] else demo_make(actor=ACTOR, force=options["force"])
        except DemoRefused as error:
            raise CommandError(str(error)) from error
        except ValidationError as error:
            raise CommandError(" ".join(error.messages)) from error
        verb = "Removed" if options["remove"] else "Made"
        self.stdout.write(f"{verb} {done.requests:,} requests of {done.accounts} accounts with {done.keys} keys.")
        if not options["remove"]:
            self.stdout.write("Look at the dashboard of the admin. To remove it all: manage.py demo --remove")
