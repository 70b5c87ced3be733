"""Write request records to a file or to standard output, as CSV or JSON Lines."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError

from accounts.models import ApiKey
from monitoring.export import COLUMNS, Selection, record_batches
from monitoring.export_command import ExportCommand, account_id_of
from monitoring.rollups.queries import Scope


class Command(ExportCommand):
    """Memory does not grow with the log; records that come in meanwhile are not in the file."""

    help = __doc__
    kind, name = "request record", "export_log"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Take which records."""
        super().add_arguments(parser)
        parser.add_argument("--key", metavar="NAME", help="of this key of the account (needs --account)")
        parser.add_argument("--model", metavar="NAME", help="of this model, by its public name")
        parser.add_argument("--endpoint", metavar="NAME", help="of this endpoint, such as chat")

    def handle(self, *args: Any, **options: Any) -> None:
        """Export."""
        scope = Scope(
            account_id=account_id_of(options["account"]),
            key_id=_key_id_of(options["account"], options["key"]),
            model=options["model"] or None,
            endpoint=options["endpoint"] or None,
        )
        selection = Selection(options["begin"], options["end"], scope)
        self.export(COLUMNS, record_batches(selection.records()), options)


def _key_id_of(account: str | None, name: str | None) -> int | None:
    if not name:
        return None
    found = ApiKey.objects.filter(account__name=account, name=name).values_list("pk", flat=True).first()
    if found is None:
        raise CommandError(f"Account {account} has no key named {name}." if account else "--key needs --account.")
    return found
