"""The roles of staff that a new installation has: groups of permissions, which superusers may change afterwards.

None includes reading logged prompts and answers, or changing staff: superusers grant these permissions one by one.
"""

from __future__ import annotations

from collections.abc import Iterable

from django.contrib.auth.models import Group, Permission
from django.db import transaction

from accounts.audit import audit_change


def _each(verbs: str, models: str) -> set[str]:
    """Return permissions such as `accounts.view_tier` of verbs and models (`app.model`), separated by spaces."""
    pairs = (name.split(".") for name in models.split())
    return {f"{app}.{verb}_{model}" for app, model in pairs for verb in verbs.split()}


CUSTOMERS = "accounts.account accounts.apikey accounts.tier accounts.modelbudget"
MODELS = "inference.provider inference.model inference.deployment inference.price"

_VIEWER = _each("view", f"{CUSTOMERS} {MODELS} monitoring.requestrecord monitoring.rollup monitoring.alert")
_EXPORT = {"monitoring.export_requestrecord"}
#: What a role is for, and its permissions.
ROLES: dict[str, tuple[str, set[str]]] = {
    "Operator": (
        "sees everything; changes accounts, keys, tiers, models, providers and prices",
        _VIEWER | _EXPORT | _each("add change delete", f"{CUSTOMERS} {MODELS}") | _each("test", "monitoring.alert")
        | _each("view", "accounts.auditentry auth.user auth.group"),
    ),
    "Support": (
        "sees everything; creates, rotates and revokes keys, and sets their limits",
        _VIEWER | _each("add change", "accounts.apikey") | _each("view", "accounts.auditentry"),
    ),
    "Finance": (
        "usage reports, statements, prices and budgets; no requests",
        _each("view", "accounts.account accounts.modelbudget inference.model inference.price monitoring.rollup"),
    ),
    "Viewer": ("sees everything, changes nothing", _VIEWER),
}  # fmt: skip


def roles_ensure(*, actor: str) -> None:
    """Create the roles that are missing, as groups. Existing ones are unchanged."""
    for name, (_, permissions) in ROLES.items():
        with transaction.atomic():
            group, is_new = Group.objects.get_or_create(name=name)
            if is_new:
                group.permissions.set(_permissions(permissions))
                audit_change(group, before=None, actor=actor)


def _permissions(names: Iterable[str]) -> list[Permission]:
    found = Permission.objects.select_related("content_type")
    wanted = set(names)
    return [each for each in found if f"{each.content_type.app_label}.{each.codename}" in wanted]
