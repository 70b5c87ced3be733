"""`manage.py key`: manage API keys from the command line."""

from __future__ import annotations

import json
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any

from django.core.exceptions import NON_FIELD_ERRORS, ValidationError
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import transaction
from django.utils import timezone

from accounts import selectors, services
from accounts.checks import require_state_store
from accounts.explain import explain_key, explanation_text
from accounts.models import Account, ApiKey, ModelBudget, Tier
from accounts.validators import SCOPES
from core.arguments import days, whole
from core.network import parse_address

ACTOR = "command:key"
DEFAULT_GRACE_SECONDS = 24 * 3600
LONGEST_GRACE_SECONDS = int(services.MAX_GRACE.total_seconds())
COLUMNS = ("account", "name", "tier", "masked", "state", "created_at", "last_used_at")


@dataclass(frozen=True, slots=True)
class Action:
    """A sub-command: its help, its arguments, and the method that runs it."""

    help: str
    add_arguments: Callable[[ArgumentParser], None]
    run: Callable[[Command, dict[str, Any]], None]


class Command(BaseCommand):
    """Create, list, rotate, revoke and explain API keys; set budgets for single models."""

    help = "Create, list, rotate, revoke and explain API keys; set budgets for single models."

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare a sub-command for each action."""
        subparsers = parser.add_subparsers(dest="action", required=True, metavar="|".join(ACTIONS))
        for name, action in ACTIONS.items():
            subparser = subparsers.add_parser(name, help=action.help, description=action.help)
            action.add_arguments(subparser)
            subparser.add_argument("--json", action="store_true", help="print JSON, one object a line")

    def handle(self, *args: Any, **options: Any) -> None:
        """Run the chosen action; a validation error ends it with one line."""
        try:
            ACTIONS[options["action"]].run(self, options)
        except ValidationError as error:
            raise CommandError(_in_a_line(error)) from None

    def create(self, options: dict[str, Any]) -> None:
        """Create a key, and its account if needed, and print the secret."""
        with transaction.atomic():
            key, plain = self._create(options)
        self._show_secret(key, plain, as_json=options["json"])

    def _create(self, options: dict[str, Any]) -> tuple[ApiKey, str]:
        tier = _find_tier(options["tier"])
        account = services.account_ensure(name=options["account"], actor=ACTOR)
        _require_free_name(account.name, options["name"])
        lasting: float | None = options["expires_days"]
        return services.api_key_create(
            account=account,
            tier=tier,
            name=options["name"],
            actor=ACTOR,
            scopes=options["scope"],
            expires_at=None if lasting is None else timezone.now() + timedelta(days=lasting),
        )

    def show(self, options: dict[str, Any]) -> None:
        """Print the keys, masked."""
        rows = [describe(key) for key in selectors.api_key_list(account=options["account"])]
        if options["json"]:
            for row in rows:
                self.stdout.write(json.dumps(row))
        elif rows:
            self._show_table(rows)
        else:
            self.stdout.write("No keys. Make one: manage.py key create --account NAME --tier free --name NAME")

    def rotate(self, options: dict[str, Any]) -> None:
        """Create a successor, print its secret, and let the old key work for the grace period."""
        old = _find_key(options)
        key, plain = services.api_key_rotate(key=old, grace=timedelta(seconds=options["grace"]), actor=ACTOR)
        if not options["json"]:
            self.stdout.write(f"{old} works for {options['grace']} more seconds; {key.name} replaces it.")
        self._show_secret(key, plain, as_json=options["json"])

    def revoke(self, options: dict[str, Any]) -> None:
        """Revoke a key; it stops within a second."""
        key = _find_key(options)
        done = services.api_key_revoke(key=key, actor=ACTOR)
        if options["json"]:
            self.stdout.write(json.dumps(describe(key)))
        elif done:
            self.stdout.write(f"Revoked {key} of {key.account}: it is refused everywhere within a second.")
            made = selectors.api_keys_made_by([key], at=timezone.now())
            if made:
                names = ", ".join(each.name for each in made)
                self.stdout.write(f"The keys that it made keep working, under its limits as well: {names}.")
        else:
            self.stdout.write(f"{key} of {key.account} was already revoked.")

    def budget(self, options: dict[str, Any]) -> None:
        """Set the monthly budget of a key, or of an account over all its keys, for one model."""
        owner = _find_key(options) if options["name"] or options["prefix"] else _find_account(options["account"])
        wanted = services.BudgetFor(options["model"], options["tokens"], options["cost"])
        if options["remove"] == (wanted.tokens is not None or wanted.cost is not None):
            raise CommandError("Give --tokens, --cost or both, or --remove.")
        budget = services.model_budget_set(owner=owner, budget=wanted, actor=ACTOR)
        if options["json"]:
            self.stdout.write(json.dumps(_described(budget)))
        elif budget is None:
            self.stdout.write(f"{owner} has no budget of its own for {wanted.model}.")
        else:
            self.stdout.write(f"{owner} may use {_amounts(budget)} of {budget.model} a month.")

    def explain(self, options: dict[str, Any]) -> None:
        """Print whether a request with the key would be admitted now, under which limits, and why not."""
        address: str | None = options["address"]
        if address is not None and parse_address(address) is None:
            raise CommandError(f"{address} is not an IP address.")
        require_state_store()
        explained = explain_key(_find_key(options), address=address)
        self.stdout.write(json.dumps(explained.as_json()) if options["json"] else explanation_text(explained))

    def _show_secret(self, key: ApiKey, plain: str, *, as_json: bool) -> None:
        if as_json:
            self.stdout.write(json.dumps({"key": plain, **describe(key)}))
            return
        self.stdout.write(
            f"Key {key.name} of {key.account}, tier {key.tier}. It will not be shown again:\n\n  {plain}\n"
        )

    def _show_table(self, rows: list[dict[str, Any]]) -> None:
        table = [[column.upper().replace("_AT", "").replace("_", " ") for column in COLUMNS]]
        table += [[str(row[column] or "never") for column in COLUMNS] for row in rows]
        widths = [max(len(cells[i]) for cells in table) for i in range(len(COLUMNS))]
        for cells in table:
            self.stdout.write("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())


def describe(key: ApiKey) -> dict[str, Any]:
    """Return the visible fields of a key as JSON values; times in ISO 8601, or null."""
    return {
        "account": key.account.name,
        "name": key.name,
        "tier": key.tier.name,
        "prefix": key.prefix,
        "masked": key.masked,
        "state": key.state_at(timezone.now()),
        "scopes": key.scopes,
        "created_at": _written(key.created_at),
        "expires_at": _written(key.expires_at),
        "revoked_at": _written(key.revoked_at),
        "last_used_at": _written(key.last_used_at),
    }


def _described(budget: ModelBudget | None) -> dict[str, Any] | None:
    if budget is None:
        return None
    cost = budget.monthly_cost_budget
    return {
        "model": budget.model,
        "monthly_token_budget": budget.monthly_token_budget,
        "monthly_cost_budget": None if cost is None else f"{cost:.9f}",
    }


def _amounts(budget: ModelBudget) -> str:
    tokens, cost = budget.monthly_token_budget, budget.monthly_cost_budget
    amounts = [None if tokens is None else f"{tokens:,} tokens", None if cost is None else f"${cost.normalize():f}"]
    return " and ".join(amount for amount in amounts if amount is not None)


def _written(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat(timespec="seconds")


def _in_a_line(error: ValidationError) -> str:
    """Join the messages, each with its field: "can't be blank" alone does not help."""
    if not hasattr(error, "error_dict"):
        return " ".join(error.messages)
    errors = error.message_dict.items()
    return " ".join(
        text if field == NON_FIELD_ERRORS else f"{field}: {text}" for field, texts in errors for text in texts
    )


def _find_tier(name: str) -> Tier:
    tier = Tier.objects.filter(name=name).first()
    if tier is None:
        known = ", ".join(selectors.tier_names()) or "none yet; manage.py bootstrap makes free and premium"
        raise CommandError(f"No tier is named {name}. Tiers: {known}.")
    return tier


def _require_free_name(account: str, name: str) -> None:
    names = selectors.api_key_list(account=account).values_list("name", flat=True)
    if name in names:
        raise CommandError(f"Account {account} already has a key named {name}. Its keys: {', '.join(names)}.")


def _find_account(name: str | None) -> Account:
    account = Account.objects.filter(name=name).first()
    if account is None:
        raise CommandError(f"No account is named {name}." if name else "Name the account: --account NAME.")
    return account


def _find_key(options: dict[str, Any]) -> ApiKey:
    if options["prefix"]:
        return _find_by_prefix(options["prefix"])
    if not options["account"] or not options["name"]:
        raise CommandError("Name the key: --account NAME --name NAME, or --prefix PREFIX.")
    keys = {key.name: key for key in selectors.api_key_list(account=options["account"])}
    if options["name"] not in keys:
        known = ", ".join(keys) or "none"
        raise CommandError(f"Account {options['account']} has no key named {options['name']}. Its keys: {known}.")
    return keys[options["name"]]


def _find_by_prefix(prefix: str) -> ApiKey:
    keys = list(selectors.api_keys_by_prefix(prefix=prefix))
    if not keys:
        raise CommandError("No key has this prefix. See manage.py key list.")
    if len(keys) > 1:
        found = ", ".join(f"{key.account}/{key.name}" for key in keys)
        raise CommandError(f"Several keys have this prefix: {found}. Use --account and --name.")
    return keys[0]


def _create_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--account", required=True, help="the account; created if it does not exist")
    parser.add_argument("--tier", required=True, help="the tier that sets its limits, such as free")
    parser.add_argument("--name", required=True, help="the key's name, unique in its account")
    parser.add_argument(
        "--scope", action="append", default=[], choices=SCOPES, help="repeatable; default: all but keys:manage"
    )
    parser.add_argument("--expires-days", type=days, help="days until it expires; default: never")


def _list_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--account", help="only this account's keys")


def _choice_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--account", help="the key's account")
    parser.add_argument("--name", help="the key's name")
    parser.add_argument("--prefix", help="or the visible part of the key, such as ak_live_AbCd")


def _explain_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("prefix", nargs="?", metavar="PREFIX", help="visible part of the key, such as ak_live_AbCd")
    parser.add_argument("--account", help="or the key's account")
    parser.add_argument("--name", help="and the key's name")
    parser.add_argument("--address", help="check a request from this IP address")


def _budget_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--account", help="the account; without --name, the budget is for all its keys together")
    parser.add_argument("--name", help="the key's name")
    parser.add_argument("--prefix", help="or the visible part of the key, such as ak_live_AbCd")
    parser.add_argument("--model", required=True, help="the model's name or alias")
    parser.add_argument("--tokens", type=int, help="tokens a calendar month (UTC)")
    parser.add_argument("--cost", type=_money, help="US dollars a calendar month (UTC)")
    parser.add_argument("--remove", action="store_true", help="remove the budget")


def _money(text: str) -> Decimal:
    try:
        return Decimal(text)
    except InvalidOperation:
        raise ArgumentTypeError(f"{text} is not an amount of money") from None


def _rotate_arguments(parser: ArgumentParser) -> None:
    _choice_arguments(parser)
    help_text = "seconds for which the old key keeps working (default: a day)"
    parser.add_argument(
        "--grace",
        type=whole(0, LONGEST_GRACE_SECONDS),
        default=DEFAULT_GRACE_SECONDS,
        metavar="SECONDS",
        help=help_text,
    )


ACTIONS: dict[str, Action] = {
    "create": Action("Create a key and print it, once.", _create_arguments, Command.create),
    "list": Action("List keys, masked.", _list_arguments, Command.show),
    "rotate": Action("Replace a key; the old one works for a grace period.", _rotate_arguments, Command.rotate),
    "revoke": Action("Stop a key for good.", _choice_arguments, Command.revoke),
    "budget": Action("Set a monthly budget for one model.", _budget_arguments, Command.budget),
    "explain": Action("Show whether a key would be admitted now, and why not.", _explain_arguments, Command.explain),
}
