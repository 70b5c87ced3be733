"""Explain whether a key would be admitted now, under which limits, and why not, without counting a request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any

from django.apps import apps
from django.conf import settings
from django.utils import timezone

from accounts.key_cache import identity_of
from accounts.keys import accepted_peppers
from accounts.limit_usage import LIVE, LimitUsage, get_limit_usage
from accounts.limits.types import LIMITS
from accounts.models import ApiKey
from core.formats import utc_text
from core.network import is_within
from core.redaction import PREFIX


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a request would be refused: the status and error code that it would get, and a sentence."""

    status: int
    code: str
    text: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """The result for a request with the key now. `notes` mention what is unknown or applies to some calls only.

    `models` is None if every model is allowed. The limits have their sources.
    """

    account: str
    name: str
    key: str
    tier: str
    state: str
    reasons: list[Reason]
    limits: list[LimitUsage]
    scopes: list[str]
    models: list[str] | None
    allowed_ips: list[str]
    max_output_tokens: int
    cache_enabled: bool
    notes: list[str]

    @property
    def admitted(self) -> bool:
        """Whether there is no reason to refuse."""
        return not self.reasons

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {"admitted": self.admitted, **asdict(self), "limits": [limit.as_json() for limit in self.limits]}


def explain_key(key: ApiKey, *, address: str | None = None) -> Explanation:
    """Explain a key whose account and tier are loaded, for a call from the address (None: an allowed one)."""
    now = timezone.now()
    identity, models = identity_of(key, now), key.allowed_models
    report = get_limit_usage(identity.every_limit)
    limits = [replace(usage, source=_source(key, usage, now)) for usage in report.limits]
    reasons = [Reason(401, "invalid_api_key", text) for text in _faults(key, now)]
    if address is not None and identity.networks and not is_within(address, identity.networks):
        reasons.append(Reason(403, "address_denied", f"The key may not be used from {address}."))
    notes = []
    for each in (limit for limit in limits if limit.remaining == 0):
        code = LIMITS[each.name].error.code
        used, limit = each.shown(each.used or 0), each.shown(each.limit or 0)
        text = f"A limit of {each.holder} is reached: {each.title[0].lower()}{each.title[1:]}, {used} of {limit}."
        if each.subject.model is None:
            reasons.append(Reason(429, code, text))
        else:  # calls of other models are not refused for it
            notes.append(f"Calls of {each.subject.model} would be refused (429 {code}): {text}")
    if report.source != LIVE and identity.limits.has_budget:
        text = "The state store is down: calls under a monthly budget are refused."
        reasons.append(Reason(503, "dependency_unavailable", text))
    notes += [
        f"Calls of {name} would be refused (403 price_unknown): it has no price, and a budget in money counts them."
        for name in _unpriced_models()
        if identity.may_use_model(name) and identity.limits_for(name).has_cost_budget
    ]
    if report.source != LIVE:
        notes.append("The state store is down: the use of rates and slots is unknown.")
    if key.allowed_ips and address is None:
        notes.append("The key works from certain addresses only: enter one to test it.")
    if key.revoked_at is not None and key.revoked_at > now:
        notes.append(f"The key was replaced and works until {utc_text(key.revoked_at)}.")
    return Explanation(
        account=key.account.name,
        name=key.name,
        key=key.masked,
        tier=key.tier.name,
        state=key.state,
        reasons=reasons,
        limits=limits,
        scopes=sorted(identity.scopes),
        models=None if models is None else sorted(set(models)),
        allowed_ips=list(key.allowed_ips),
        max_output_tokens=identity.max_output_tokens,
        cache_enabled=identity.cache_enabled,
        notes=notes,
    )


def _faults(key: ApiKey, now: datetime) -> list[str]:
    """List all that makes the key itself unusable. The API reports only that the key is invalid."""
    found = []
    if key.revoked_at is not None and key.revoked_at <= now:
        found.append(f"The key was revoked at {utc_text(key.revoked_at)}.")
    if key.expires_at is not None and key.expires_at <= now:
        found.append(f"The key expired at {utc_text(key.expires_at)}.")
    if not key.account.is_active:
        found.append(f"The account {key.account.name} is disabled.")
    if key.pepper_id not in {pepper.id for pepper in accepted_peppers()}:
        found.append("The pepper that the key was stored under is no longer in API_KEY_PEPPERS.")
    if not settings.ALLOW_PLAIN_KEYS and not key.prefix.startswith(PREFIX[: len(key.prefix)]):
        found.append(f"In production only keys that begin with {PREFIX} are accepted.")
    return found


def _source(key: ApiKey, usage: LimitUsage, now: datetime) -> str:
    """Describe where the value of a limit comes from."""
    if usage.owner.startswith("account"):
        return f"account {key.account.name}"
    if usage.subject.maker:
        return f"key {usage.subject.maker}"
    if LIMITS[usage.name].is_budget:
        return "this key"
    if getattr(key, f"{usage.name}_override") is None:
        return f"tier {key.tier.name}"
    if key.overrides_until is None:
        return "this key's override"
    if now < key.overrides_until:
        return f"this key's override, until {utc_text(key.overrides_until)}"
    return f"tier {key.tier.name} (this key's override ended {utc_text(key.overrides_until)})"


def _unpriced_models() -> list[str]:
    """List the models that can be called and have no price in force."""
    deployments = apps.get_model("inference", "Deployment").objects
    usable = deployments.filter(is_enabled=True, provider__is_enabled=True, model__is_enabled=True)
    priced = usable.filter(prices__valid_from__lte=timezone.now()).values("model")
    return sorted(set(usable.exclude(model__in=priced).values_list("model__public_name", flat=True)))


def explanation_text(explained: Explanation) -> str:
    """Format an explanation for a terminal."""
    verdict = "would be admitted now." if explained.admitted else "would be refused now:"
    lines = [f"Key {explained.name} ({explained.key}) of {explained.account}, tier {explained.tier}, {verdict}"]
    lines += [f"  {reason.status} {reason.code}: {reason.text}" for reason in explained.reasons]
    rows = [("OWNER", "LIMIT", "VALUE", "USED", "LEFT", "RESETS", "FROM")]
    rows += [(each.whose, str(each.name), *each.cells("unlimited", "-", ""), each.source) for each in explained.limits]
    lines += ["", *text_table(rows), ""]
    models = "every model" if explained.models is None else ", ".join(explained.models) or "none"
    lines.append(f"Scopes: {', '.join(explained.scopes)}. Models: {models}.")
    lines.append(
        f"Addresses: {', '.join(explained.allowed_ips) or 'any'}. Output: {explained.max_output_tokens} tokens."
    )
    return "\n".join([*lines, *explained.notes])


def text_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Format rows as lines of aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
