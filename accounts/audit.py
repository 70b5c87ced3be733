"""The audit log: what changed, from what to what, and by whom; written in the transaction of the change.

An actor is `admin:NAME`, `key:ACCOUNT/NAME` or `command:NAME`. Secrets and values derived from them are never logged.
"""

from __future__ import annotations

import json
from itertools import chain
from typing import Any

from django.core.serializers.json import DjangoJSONEncoder
from django.db import models, router, transaction
from django.db.models.deletion import Collector

from accounts.models import AuditEntry, IdempotentAnswer

Values = dict[str, Any]

#: Secrets and their digests, fields that change by mere use, and those whose change has an entry of its own.
UNRECORDED_FIELDS = frozenset(
    {"password", "digest", "pepper_id", "last_used_at", "last_login", "cache_generations", "cache_generation"}
)


def audit_record(
    *, actor: str, action: str, target: models.Model, before: Values | None = None, after: Values | None = None
) -> AuditEntry:
    """Write an entry for a change made in the surrounding transaction."""
    return AuditEntry.objects.create(
        actor=actor[:200],
        action=action,
        target_type=str(target._meta.verbose_name),
        target_id=str(target.pk),
        target=str(target)[:250],
        before=before or {},
        after=after or {},
    )


def audit_event(*, actor: str, action: str, kind: str, details: Values) -> AuditEntry:
    """Write an entry for an event that changes no row but needs a responsible person, such as an export."""
    return AuditEntry.objects.create(
        actor=actor[:200], action=action, target_type=kind, target_id="", target=f"{kind}s", after=details
    )


def audited_save(instance: models.Model, *, actor: str, action: str = "") -> None:
    """Save an object and write an entry with the changed fields; without a change, write none.

    The action is `created` or `changed` unless given. Many-to-many fields are saved elsewhere; see audit_change.
    """
    with transaction.atomic():
        before = stored_values(instance)
        instance.save()
        audit_change(instance, before=before, actor=actor, action=action)


def audited_delete(instance: models.Model, *, actor: str) -> None:
    """Delete an object and all that cascades, and write an entry for each object except kept answers."""
    with transaction.atomic():
        collector = Collector(using=router.db_for_write(type(instance), instance=instance), origin=instance)
        collector.collect([instance])
        for doomed in chain.from_iterable([*collector.data.values(), *map(list, collector.fast_deletes)]):
            if not (doomed._meta.auto_created or isinstance(doomed, IdempotentAnswer)):
                audit_record(actor=actor, action="deleted", target=doomed, before=recorded_values(doomed))
        instance.delete()


def audit_change(instance: models.Model, *, before: Values | None, actor: str, action: str = "") -> AuditEntry | None:
    """Write an entry with the difference of a saved object from `before` (None: it is new).

    Without a difference, write none and return None.
    """
    after = recorded_values(instance)
    if before is None:
        return audit_record(actor=actor, action=action or "created", target=instance, after=after)
    changed = [name for name in after if after[name] != before.get(name)]
    if not changed:
        return None
    return audit_record(
        actor=actor,
        action=action or "changed",
        target=instance,
        before={name: before.get(name) for name in changed},
        after={name: after[name] for name in changed},
    )


def stored_values(instance: models.Model) -> Values | None:
    """Return the stored fields of an object and lock its row until the transaction ends; None if it is new."""
    if instance.pk is None:
        return None
    stored = type(instance)._base_manager.select_for_update().filter(pk=instance.pk).first()
    return None if stored is None else recorded_values(stored)


def recorded_values(instance: models.Model) -> Values:
    """Return an object's fields as the log stores them: plain JSON, related objects as text, no secrets."""
    values: Values = {}
    for field in chain(instance._meta.concrete_fields, instance._meta.many_to_many):
        if field.name in UNRECORDED_FIELDS or getattr(field, "primary_key", False):
            continue
        value = getattr(instance, field.name)
        if field.many_to_many:
            value = sorted(str(related) for related in value.all())
        elif isinstance(value, models.Model):
            value = str(value)
        elif isinstance(field, models.DecimalField) and value is not None:
            # As the database returns it, with all its decimal places, so that an unchanged Decimal compares equal.
            value = format(value, f".{field.decimal_places}f")
        values[field.name] = value
    plain: Values = json.loads(json.dumps(values, cls=DjangoJSONEncoder))
    return plain
