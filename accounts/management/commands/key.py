"""`manage.py key`: manage API keys from the command line."""

from __future__ import annotations

import json
from argparse import ArgumentTypeError
from datetime import timedelta
from decimal import Decimal, InvalidOperation
from typing import Any

from django.core.exceptions import NON_FIELD_ERRORS, ValidationError
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import transaction
from django.utils import timezone

from accounts import selectors, services
from accounts.checks import require_state_store
from accounts.explain import explain_key, explanation_text, text_table
from accounts.models import Account, ApiKey, Tier
from accounts.validators import SCOPES
from core.arguments import days, whole
from core.network import parse_address

ACTOR = "command:key"
DEFAULT_GRACE_SECONDS = 24 * 3600
LONGEST_GRACE_SECONDS = int(services.MAX_GRACE.total_seconds())
COLUMNS = ("account", "name", "tier", "masked", "state", "created_at", "last_used_at")


class Command(BaseCommand):
    """Create, list, rotate, revoke and explain API keys; set budgets for single models."""

    help = "Create, list, rotate, revoke and explain API keys; set budgets for single models."

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare a sub-command for each action, which is the method of its name."""
        names = ("create", "list", "rotate", "revoke", "budget", "explain")
        actions = parser.add_subparsers(dest="action", required=True, metavar="|".join(names))

        def add(name: str, text: str) -> CommandParser:
            action: CommandParser = actions.add_parser(name, help=text, description=text)
            action.set_defaults(run=getattr(self, name))
            action.add_argument("--json", action="store_true", help="print JSON, one object a line")
            return action

        create = add("create", "Create a key and print it, once.")
        create.add_argument("--account", required=True, help="the account; created if it does not exist")
        create.add_argument("--tier", required=True, help="the tier that sets its limits, such as free")
        create.add_argument("--name", required=True, help="the key's name, unique in its account")
        create.add_argument(
            "--scope", action="append", default=[], choices=SCOPES, help="repeatable; default: all but keys:manage"
        )
        create.add_argument("--expires-days", type=days, help="days until it expires; default: never")
        add("list", "List keys, masked.").add_argument("--account", help="only this account's keys")
        rotate = add("rotate", "Replace a key; the old one works for a grace period.")
        rotate.add_argument(
            "--grace",
            type=whole(0, LONGEST_GRACE_SECONDS),
            default=DEFAULT_GRACE_SECONDS,
            metavar="SECONDS",
            help="seconds for which the old key keeps working (default: a day)",
        )
        revoke = add("revoke", "Stop a key for good.")
        budget = add("budget", "Set a monthly budget for one model.")
        for action, account_help in (
            (rotate, "the key's account"),
            (revoke, "the key's account"),
            (budget, "the account; without --name, the budget is for all its keys together"),
        ):
            action.add_argument("--account", help=account_help)
            action.add_argument("--name", help="the key's name")
            action.add_argument("--prefix", help="or the visible part of the key, such as ak_live_AbCd")
        budget.add_argument("--model", required=True, help="the model's name or alias")
        budget.add_argument("--tokens", type=int, help="tokens a calendar month (UTC)")
        budget.add_argument("--cost", type=_money, help="US dollars a calendar month (UTC)")
        budget.add_argument("--remove", action="store_true", help="remove the budget")
        explain = add("explain", "Show whether a key would be admitted now, and why not.")
        explain.add_argument("prefix", nargs="?", metavar="PREFIX", help="the visible part of the key")
        explain.add_argument("--account", help="or the key's account")
        explain.add_argument("--name", help="and the key's name")
        explain.add_argument("--address", help="check a request from this IP address")

    def handle(self, *args: Any, **options: Any) -> None:
        """Run the chosen action; a validation error ends it with one line, each message after its field."""
        try:
            options["run"](options)
        except ValidationError as error:
            fields = error.message_dict if hasattr(error, "error_dict") else {NON_FIELD_ERRORS: error.messages}
            messages = [(field, text) for field, texts in fields.items() for text in texts]
            line = " ".join(text if field == NON_FIELD_ERRORS else f"{field}: {text}" for field, text in messages)
            raise CommandError(line) from None

    def create(self, options: dict[str, Any]) -> None:
        """Create a key, and its account if needed, and print the secret."""
        tier = Tier.objects.filter(name=options["tier"]).first()
        if tier is None:
            known = ", ".join(selectors.tier_names()) or "none yet; manage.py bootstrap makes free and premium"
            raise CommandError(f"No tier is named {options['tier']}. Tiers: {known}.")
        lasting: float | None = options["expires_days"]
        with transaction.atomic():
            account = services.account_ensure(name=options["account"], actor=ACTOR)
            names = selectors.api_key_list(account=account.name).values_list("name", flat=True)
            if options["name"] in names:
                others = ", ".join(names)
                raise CommandError(
                    f"Account {account.name} already has a key named {options['name']}. Its keys: {others}."
                )
            key, plain = services.api_key_create(
                account=account,
                tier=tier,
                name=options["name"],
                actor=ACTOR,
                scopes=options["scope"],
                expires_at=None if lasting is None else timezone.now() + timedelta(days=lasting),
            )
        self._tell(options, {"key": plain, **describe(key)}, issued(key, plain))

    def list(self, options: dict[str, Any]) -> None:
        """Print the keys, masked."""
        rows = [describe(key) for key in selectors.api_key_list(account=options["account"])]
        if options["json"]:
            for row in rows:
                self.stdout.write(json.dumps(row))
        elif rows:
            head = tuple(column.upper().replace("_AT", "").replace("_", " ") for column in COLUMNS)
            for line in text_table([head, *(tuple(str(row[column] or "never") for column in COLUMNS) for row in rows)]):
                self.stdout.write(line)
        else:
            self.stdout.write("No keys. Make one: manage.py key create --account NAME --tier free --name NAME")

    def rotate(self, options: dict[str, Any]) -> None:
        """Create a successor, print its secret, and let the old key work for the grace period."""
        old = _find_key(options)
        key, plain = services.api_key_rotate(key=old, grace=timedelta(seconds=options["grace"]), actor=ACTOR)
        replaced = f"{old} works for {options['grace']} more seconds; {key.name} replaces it.\n"
        self._tell(options, {"key": plain, **describe(key)}, replaced + issued(key, plain))

    def revoke(self, options: dict[str, Any]) -> None:
        """Revoke a key; it stops within a second."""
        key = _find_key(options)
        text = f"{key} of {key.account.name} was already revoked."
        if services.api_key_revoke(key=key, actor=ACTOR):
            text = f"Revoked {key} of {key.account.name}: it is refused everywhere within a second."
            if made := selectors.api_keys_made_by([key], at=timezone.now()):
                names = ", ".join(each.name for each in made)
                text += f"\nThe keys that it made keep working, under its limits as well: {names}."
        self._tell(options, describe(key), text)

    def budget(self, options: dict[str, Any]) -> None:
        """Set the monthly budget of a key, or of an account over all its keys, for one model."""
        tokens: int | None = options["tokens"]
        cost: Decimal | None = options["cost"]
        owner: Account | ApiKey | None
        if options["name"] or options["prefix"]:
            owner = _find_key(options)
        elif (owner := Account.objects.filter(name=options["account"]).first()) is None:
            name = options["account"]
            raise CommandError(f"No account is named {name}." if name else "Name the account: --account NAME.")
        if options["remove"] == (tokens is not None or cost is not None):
            raise CommandError("Give --tokens, --cost or both, or --remove.")
        wanted = services.BudgetFor(options["model"], tokens, cost)
        budget = services.model_budget_set(owner=owner, budget=wanted, actor=ACTOR)
        if budget is None:
            self._tell(options, None, f"{owner} has no budget of its own for {wanted.model}.")
            return
        texts = [] if tokens is None else [f"{tokens:,} tokens"]
        texts += [] if cost is None else [f"${cost.normalize():f}"]
        money = None if cost is None else f"{cost:.9f}"
        self._tell(
            options,
            {"model": budget.model, "monthly_token_budget": tokens, "monthly_cost_budget": money},
            f"{owner} may use {' and '.join(texts)} of {budget.model} a month.",
        )

    def explain(self, options: dict[str, Any]) -> None:
        """Print whether a request with the key would be admitted now, under which limits, and why not."""
        address: str | None = options["address"]
        if address is not None and parse_address(address) is None:
            raise CommandError(f"{address} is not an IP address.")
        require_state_store()
        explained = explain_key(_find_key(options), address=address)
        self._tell(options, explained.as_json(), explanation_text(explained))

    def _tell(self, options: dict[str, Any], data: dict[str, Any] | None, text: str) -> None:
        self.stdout.write(json.dumps(data) if options["json"] else text)


def issued(key: ApiKey, plain: str) -> str:
    """Return the text that shows a new key."""
    return f"Key {key.name} of {key.account.name}, tier {key.tier}. It will not be shown again:\n\n  {plain}\n"


def describe(key: ApiKey) -> dict[str, Any]:
    """Return the visible fields of a key as JSON values; times in ISO 8601, or null."""
    times = {name: getattr(key, name) for name in ("created_at", "expires_at", "revoked_at", "last_used_at")}
    return {
        "account": key.account.name,
        "name": key.name,
        "tier": key.tier.name,
        "prefix": key.prefix,
        "masked": key.masked,
        "state": key.state,
        "scopes": key.scopes,
        **{name: at and at.isoformat(timespec="seconds") for name, at in times.items()},
    }


def _find_key(options: dict[str, Any]) -> ApiKey:
    """Return the key that --prefix, or --account and --name, name; raises CommandError if it is not exactly one."""
    account, name, prefix = options["account"], options["name"], options["prefix"]
    if prefix:
        found = list(selectors.api_keys_by_prefix(prefix=prefix))
        if not found:
            raise CommandError("No key has this prefix. See manage.py key list.")
        if len(found) > 1:
            several = ", ".join(f"{key.account.name}/{key.name}" for key in found)
            raise CommandError(f"Several keys have this prefix: {several}. Use --account and --name.")
        return found[0]
    if not account or not name:
        raise CommandError("Name the key: --account NAME --name NAME, or --prefix PREFIX.")
    keys = {key.name: key for key in selectors.api_key_list(account=account)}
    if name not in keys:
        raise CommandError(f"Account {account} has no key named {name}. Its keys: {', '.join(keys) or 'none'}.")
    return keys[name]


def _money(text: str) -> Decimal:
    try:
        return Decimal(text)
    except InvalidOperation:
        raise ArgumentTypeError(f"{text} is not an amount of money") from None
