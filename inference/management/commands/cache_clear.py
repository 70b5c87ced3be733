"""Clear cached answers of an account, of a model, or of a model for an account."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any, TypeVar

from django.core.management.base import BaseCommand, CommandError
from django.db import models, transaction

from accounts.models import Account
from accounts.services import account_clear_cache
from inference.models import Model
from inference.services import model_clear_cache

ACTOR = "command:cache_clear"
Row = TypeVar("Row", bound=models.Model)


class Command(BaseCommand):
    """Clears cached answers; every worker follows within a second."""

    help = __doc__

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the account and the model."""
        parser.add_argument("--account", metavar="NAME", help="answers of this account")
        parser.add_argument("--model", metavar="NAME", help="answers of this model, by its public name")
        parser.add_argument("--all", action="store_true", help="every cached answer")

    def handle(self, *args: Any, **options: Any) -> None:
        """Clear the answers and print one sentence."""
        account, model = options["account"], options["model"]
        if options["all"] == bool(account or model):
            raise CommandError("Say which: --account, --model or both; or --all.")
        found = _find(Account, "name", account) if account else None
        with transaction.atomic():
            cleared = [_find(Model, "public_name", model)] if model else list(Model.objects.all())
            if found is not None:
                account_clear_cache(account=found, model=model or "", actor=ACTOR)
            else:
                for each in cleared:
                    model_clear_cache(model=each, actor=ACTOR)
        what = " and ".join(part for part in (account and f"account {account}", model and f"model {model}") if part)
        self.stdout.write(f"Cleared the cached answers of {what or 'all models'}: everywhere within a second.")


def _find(kind: type[Row], field: str, name: str) -> Row:
    """Return the row with a name; raises CommandError if there is none."""
    row = kind._default_manager.filter(**{field: name}).first()
    if row is None:
        raise CommandError(f"No {kind._meta.verbose_name} is named {name}.")
    return row
