"""Compare the prices of deployments with the public price list (genai-prices), and take over what has changed there."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import transaction
from django.utils import timezone

from core.formats import NOTHING, price_text, quantity
from inference.models import Deployment, Price, prices_in_force
from inference.seeds import LISTED, listed_prices
from inference.services import catalog_save

#: The fields of a price that the list may have.
PARTS = (*LISTED, "per_request")
#: Those that the list does not have, which a new price keeps.
KEPT = ("per_search", "flex_factor", "priority_factor")


class Command(BaseCommand):
    """`diff` shows each difference; `update` enters the listed prices from now on, after it has asked."""

    help = __doc__

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Take what to do, and for which model."""
        parser.add_argument("action", choices=["diff", "update"])
        parser.add_argument("--model", metavar="NAME", help="of this model only, by its public name")
        parser.add_argument("--yes", action="store_true", help="do not ask")

    def handle(self, *args: Any, **options: Any) -> None:
        """Print the differences, and with `update` enter the listed prices."""
        now = timezone.now()
        deployments = Deployment.objects.select_related("model", "provider").order_by("model__public_name", "pk")
        if options["model"]:
            deployments = deployments.filter(model__public_name=options["model"])
            if not deployments:
                raise CommandError(f"No model is named {options['model']}, or it has no deployment.")
        changed, unlisted = [], 0
        for each in deployments:
            listed = {row["above_tokens"]: row for row in listed_prices(each.upstream_name, each.provider.base_url)}
            ours = {price.above_tokens: price for price in each.prices.filter(prices_in_force(now))}
            unlisted += not listed
            lines = list(differences(ours, listed)) if listed else []
            if lines:
                changed.append((each, ours, listed))
                self.stdout.write(f"{each.model} at {each}:")
                self.stdout.writelines(f"  {line}" for line in lines)
        if unlisted:
            self.stdout.write(f"Not in the list: {quantity(unlisted, 'deployment')}.")
        if not changed:
            self.stdout.write("No price differs from the list.")
        elif options["action"] == "update":
            question = f"Enter the listed prices of {quantity(len(changed), 'deployment')}, from now on? [y/N] "
            if not options["yes"] and input(question).strip().lower() not in ("y", "yes"):
                raise CommandError("Nothing was changed.")
            with transaction.atomic():
                for each, ours, listed in changed:
                    self._enter(each, ours, listed, now)
            self.stdout.write(f"Updated {quantity(len(changed), 'deployment')}.")

    def _enter(
        self, deployment: Deployment, ours: dict[int, Price], listed: dict[int, dict[str, Any]], now: datetime
    ) -> None:
        kept = {name: getattr(ours[0], name) for name in KEPT} if 0 in ours else {}
        for above in sorted(listed):
            row = Price(deployment=deployment, valid_from=now, **listed[above], **(kept if above == 0 else {}))
            catalog_save(row=row, actor="command:prices")


def differences(ours: dict[int, Price], listed: dict[int, dict[str, Any]]) -> Iterator[str]:
    """Yield a line for each price that differs. A price that falls back to another one counts as that one."""
    for above in sorted({*ours, *listed}):
        prompts = f"above {above:,} tokens, " if above else ""
        for part in PARTS:
            own = getattr(ours[above], part) if above in ours else None
            found = listed.get(above, {}).get(part)
            if own != found and not (part == "per_request" and not own and not found):
                yield f"{prompts}{part.replace('_', ' ')}: {_shown(own)} here, {_shown(found)} listed"


def _shown(amount: Decimal | None) -> str:
    return NOTHING if amount is None else price_text(amount)
