"""Write request records to a file or to standard output, as CSV or JSON Lines."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError

from accounts.models import ApiKey
from monitoring.export import COLUMNS, ExportCommand, account_id_of, record_batches, records_within
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
        account, key, key_id = options["account"], options["key"], None
        account_id = account_id_of(account)
        if key:
            key_id = ApiKey.objects.filter(account_id=account_id or 0, name=key).values_list("pk", flat=True).first()
            if key_id is None:
                raise CommandError(
                    f"Account {account} has no key named {key}." if account else "--key needs --account."
                )
        scope = Scope(account_id, key_id, options["model"] or None, options["endpoint"] or None)
        self.export(COLUMNS, record_batches(records_within(options["begin"], options["end"], scope)), options)
