"""The cast of the tests of every app: real rows, made by the services that make them in life."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from typing import Any, Unpack

from django.apps import apps
from django.conf import settings
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.utils import timezone

from accounts import services
from accounts.key_cache import build_authenticated_key, key_cache
from accounts.limits import get_limits
from accounts.limits.types import Amount, Bound, Reserved
from accounts.models import Account, ApiKey, AuditEntry, Tier
from accounts.tests.limits_fixtures import DRAFT, an_operation

ACTOR = "command:test"
PASSWORD = "correct horse battery staple"  # good enough for the validators
_numbers = count(1)
_Rows = tuple[list[Tier], list[Account], list[ApiKey], list[AuditEntry], dict[str, tuple[int, str]]]
#: The cast as it was made before: its rows, and each one's id and text by name; by the settings that keys depend on.
_casts: dict[tuple[str, ...], _Rows] = {}


@dataclass(frozen=True)
class IssuedKey:
    """A key and its text."""

    key: ApiKey
    plain: str

    @property
    def headers(self) -> dict[str, str]:
        """The header that authenticates, for Django's test client: `client.get(url, **issued.headers)`."""
        return {"HTTP_X_API_KEY": self.plain}

    def works(self) -> bool:
        """Return whether the key is accepted, as the database is now."""
        return works(self.plain)


@dataclass(frozen=True)
class Cast:
    """Everybody whom a test of an endpoint should meet."""

    owner: IssuedKey
    colleague: IssuedKey  # another key of the owner's account
    stranger: IssuedKey  # a key of another account
    revoked: IssuedKey
    expired: IssuedKey
    disabled: IssuedKey  # its account is switched off


def make_tier(name: str = "free", **fields: Any) -> Tier:
    """Return the tier of that name, made with 5 requests a minute unless said otherwise."""
    existing = Tier.objects.filter(name=name).first()
    if existing is not None and not fields:
        return existing
    tier = existing or Tier(name=name, requests_per_minute=5)
    for field, value in fields.items():
        setattr(tier, field, value)
    services.tier_save(tier=tier, actor=ACTOR)
    return tier


def make_account(name: str = "", **fields: Any) -> Account:
    """Make an account."""
    account = Account(name=name or f"account-{next(_numbers)}", **fields)
    services.account_save(account=account, actor=ACTOR)
    return account


def make_key(
    *,
    account: Account | None = None,
    tier: Tier | None = None,
    name: str = "",
    **optional: Unpack[services.KeySettings],
) -> IssuedKey:
    """Make a key; account and tier are made if they aren't given."""
    key, plain = services.api_key_create(
        account=account or make_account(),
        tier=tier or make_tier(),
        name=name or f"key-{next(_numbers)}",
        actor=ACTOR,
        **optional,
    )
    return IssuedKey(key, plain)


def make_past_key(account: Account, name: str, ended: str) -> IssuedKey:
    """Make a key whose `ended` (revoked_at or expires_at) was a minute ago."""
    issued = make_key(account=account, name=name)
    ApiKey.objects.filter(pk=issued.key.pk).update(**{ended: timezone.now() - timedelta(minutes=1)})
    issued.key.refresh_from_db()
    return issued


def make_cast() -> Cast:
    """Make the cast: accounts `acme` and `globex`, and `closed`, which is disabled.

    A process makes it once by the services; later tests get the same rows by four statements instead of 150.
    """
    if Tier.objects.exists() or Account.objects.exists() or AuditEntry.objects.exists():
        return _new_cast()
    made_under = (settings.ENVIRONMENT, *settings.API_KEY_PEPPERS)
    if made_under not in _casts:
        cast = _new_cast()
        named = {name: (issued.key.pk, issued.plain) for name, issued in vars(cast).items()}
        rows = list(Tier.objects.all()), list(Account.objects.all()), list(ApiKey.objects.all())
        _casts[made_under] = (*rows, list(AuditEntry.objects.order_by("pk")), named)
        return cast
    tiers, accounts, keys, entries, named = deepcopy(_casts[made_under])
    Tier.objects.bulk_create(tiers)
    Account.objects.bulk_create(accounts)
    ApiKey.objects.bulk_create(keys)
    AuditEntry.objects.bulk_create(entries)
    by_id = {key.pk: key for key in keys}
    for key in keys:
        key.account = next(account for account in accounts if account.pk == key.account_id)
        key.tier = next(tier for tier in tiers if tier.pk == key.tier_id)
    return Cast(**{name: IssuedKey(by_id[pk], plain) for name, (pk, plain) in named.items()})


def _new_cast() -> Cast:
    acme, closed = make_account("acme"), make_account("closed")
    cast = Cast(
        owner=make_key(account=acme, name="owner"),
        colleague=make_key(account=acme, name="colleague"),
        stranger=make_key(account=make_account("globex"), name="stranger"),
        revoked=make_past_key(acme, "revoked", "revoked_at"),
        expired=make_past_key(acme, "expired", "expires_at"),
        disabled=make_key(account=closed, name="disabled"),
    )
    services.account_set_active(account=closed, active=False, actor=ACTOR)
    return cast


def make_admin(name: str = "root", *, password: str | None = None) -> User:
    """Make a superuser; without a password (which costs a test a quarter of a second) he can't log in himself."""
    return User.objects.create_superuser(name, password=password)


def make_staff(*permissions: str, name: str = "staff") -> User:
    """Make a user who may enter the admin and has these permissions, such as `accounts.view_apikey`."""
    user = User.objects.create_user(name, is_staff=True)
    for permission in permissions:
        app, codename = permission.split(".")
        user.user_permissions.add(Permission.objects.get(content_type__app_label=app, codename=codename))
    return user


def logged_in(user: User) -> Client:
    """Return the browser of a user who has logged in."""
    client = Client()
    client.force_login(user)
    return client


def stored_text() -> str:
    """Return all that the database holds, sessions, messages and audit included: no secret may be found in it."""
    rows = (row for model in apps.get_models() for row in model._base_manager.values_list())
    return "\n".join(str(row) for row in rows)


def secret_part(plain: str) -> str:
    """Return what nobody may see of a key: its random part, without what its prefix and last characters show."""
    return plain[12:-4]


def works(plain: str) -> bool:
    """Return whether a key is accepted, as the database is now."""
    key_cache.forget()
    return key_cache.find(plain) is not None


def latest() -> AuditEntry:
    """Return the newest entry of the audit log."""
    return AuditEntry.objects.latest("pk")


def spend(issued: IssuedKey, tokens: int = 0, *, requests: int = 0, stays_open: bool = False) -> None:
    """Use a key's limits as its calls do, at 1,000 nano-dollars a token."""
    scope, limits = build_authenticated_key(issued.key, timezone.now()).limits, get_limits()
    for _ in range(requests):
        limits.admit(scope, an_operation())
    if not tokens:
        return
    operation, at, bound = an_operation(), limits.now(), Bound(Amount(tokens, tokens * 1_000))
    assert isinstance(limits.reserve(scope, operation, admitted_at=at, bound=bound, draft=DRAFT), Reserved)
    if not stays_open:
        limits.settle(scope, operation, admitted_at=at, used=bound.prompt, record=None)
