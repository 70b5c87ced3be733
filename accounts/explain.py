"""Explain whether a key would be admitted now, under which limits, and why not, without counting a request."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from django.apps import apps
from django.conf import settings
from django.utils import timezone

from accounts.key_cache import AuthenticatedKey, identity_of
from accounts.keys import accepted_peppers
from accounts.limit_usage import LIVE, RECORDS, LimitUsage, UsageReport, epoch_seconds, get_limit_usage, maker_text
from accounts.limits.types import LimitName
from accounts.models import ApiKey
from core.network import is_within
from core.redaction import PREFIX

#: The limits of the tier that a key may override.
OVERRIDABLE = (LimitName.REQUESTS_PER_MINUTE, LimitName.TOKENS_PER_MINUTE, LimitName.CONCURRENT_REQUESTS)


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a request would be refused: the status and error code that it would get, and a sentence."""

    status: int
    code: str
    text: str


@dataclass(frozen=True, slots=True)
class ExplainedLimit:
    """The usage of a limit, and the source of the limit's value."""

    usage: LimitUsage
    source: str

    @property
    def is_full(self) -> bool:
        """Whether nothing is left of the limit."""
        return self.usage.remaining == 0

    @property
    def whose(self) -> str:
        """The owner, with the name of a maker and the model of a model budget."""
        subject = self.usage.subject
        return " ".join(part for part in (self.usage.owner, subject.maker, subject.model) if part)

    @property
    def fullness(self) -> str:
        """The limit, its owner and the amounts, as the end of a sentence."""
        usage, maker = self.usage, self.usage.subject.maker
        holder = maker_text(maker) if maker else f"the {usage.owner}"
        return f"{usage.name} of {holder} is full: {usage.amount(usage.used)} of {usage.amount(usage.limit)}."

    def cells(self, unlimited: str, unknown: str, never: str) -> tuple[str, str, str, str]:
        """Return limit, used, remaining and reset time as the texts of a table, with these for absent values."""
        usage = self.usage
        limit, used, remaining = (usage.amount(value) for value in (usage.limit, usage.used, usage.remaining))
        reset = None if usage.reset_at is None else datetime.fromtimestamp(epoch_seconds(usage.reset_at), tz=UTC)
        return (
            unlimited if limit is None else str(limit),
            unknown if used is None else str(used),
            unknown if remaining is None else str(remaining),
            never if reset is None else _written(reset, seconds=True),
        )


@dataclass(frozen=True, slots=True)
class Explanation:
    """The result for a request with the key now. `notes` mention what is unknown or applies to some calls only."""

    account: str
    name: str
    key: str
    tier: str
    state: str
    reasons: list[Reason]
    limits: list[ExplainedLimit]
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
        """Return plain values; `models` is null if every model is allowed."""
        limits = [{**limit.usage.as_json(), "source": limit.source} for limit in self.limits]
        return {"admitted": self.admitted, **asdict(self), "limits": limits}


def explain_key(key: ApiKey, *, address: str | None = None) -> Explanation:
    """Explain a key whose account and tier are loaded, for a call from the address (None: an allowed one)."""
    now = timezone.now()
    identity = identity_of(key, now)
    report = get_limit_usage(identity.every_limit)
    limits = [ExplainedLimit(usage, _source(key, usage, now)) for usage in report.limits]
    reasons = [*_state_reasons(key, now), *_address_reasons(identity, address), *_limit_reasons(limits)]
    if report.source == RECORDS and identity.limits.has_budget:
        text = "The state store is away: calls under a monthly budget are refused."
        reasons.append(Reason(503, "dependency_unavailable", text))
    return Explanation(
        account=key.account.name,
        name=key.name,
        key=key.masked,
        tier=key.tier.name,
        state=key.state_at(now),
        reasons=reasons,
        limits=limits,
        scopes=sorted(identity.scopes),
        models=_models(identity),
        allowed_ips=list(key.allowed_ips),
        max_output_tokens=identity.max_output_tokens,
        cache_enabled=identity.cache_enabled,
        notes=[
            *_model_notes(limits),
            *_price_notes(identity),
            *_notes(key, report, address),
        ],
    )


def _state_reasons(key: ApiKey, now: datetime) -> list[Reason]:
    """List all that makes the key itself unusable. The API reports only that the key is invalid."""
    found = []
    if key.revoked_at is not None and key.revoked_at <= now:
        found.append(f"The key was revoked at {_written(key.revoked_at)}.")
    if key.expires_at is not None and key.expires_at <= now:
        found.append(f"The key expired at {_written(key.expires_at)}.")
    if not key.account.is_active:
        found.append(f"The account {key.account.name} is disabled.")
    if key.pepper_id not in {pepper.id for pepper in accepted_peppers()}:
        found.append("The pepper that the key was stored under is no longer in API_KEY_PEPPERS.")
    if not settings.ALLOW_PLAIN_KEYS and not key.prefix.startswith(PREFIX[: len(key.prefix)]):
        found.append(f"In production only keys that begin with {PREFIX} are accepted.")
    return [Reason(401, "invalid_api_key", text) for text in found]


def _address_reasons(identity: AuthenticatedKey, address: str | None) -> list[Reason]:
    if address is None or not identity.networks or is_within(address, identity.networks):
        return []
    return [Reason(403, "address_denied", f"The key may not be used from {address}.")]


def _source(key: ApiKey, usage: LimitUsage, now: datetime) -> str:
    """Describe where the value of a limit comes from."""
    if usage.owner.startswith("account"):
        return f"account {key.account.name}"
    if usage.subject.maker:
        return f"key {usage.subject.maker}"
    if usage.name not in OVERRIDABLE:
        return "this key"
    if getattr(key, f"{usage.name}_override") is None:
        return f"tier {key.tier.name}"
    if key.overrides_until is None:
        return "this key's override"
    if now < key.overrides_until:
        return f"this key's override, until {_written(key.overrides_until)}"
    return f"tier {key.tier.name} (this key's override ended {_written(key.overrides_until)})"


def _limit_reasons(limits: list[ExplainedLimit]) -> list[Reason]:
    codes = {
        LimitName.REQUESTS_PER_MINUTE: "rate_limited",
        LimitName.TOKENS_PER_MINUTE: "tokens_limited",
        LimitName.CONCURRENT_REQUESTS: "concurrency_limited",
        LimitName.MONTHLY_TOKENS: "budget_exhausted",
        LimitName.MONTHLY_COST: "budget_exhausted",
    }
    return [
        Reason(429, codes[each.usage.name], each.fullness)
        for each in limits
        if each.is_full and each.usage.subject.model is None
    ]


def _model_notes(limits: list[ExplainedLimit]) -> list[str]:
    """List the models without budget left; calls of other models are not refused for it."""
    return [
        f"Calls of {each.usage.subject.model} would be refused (429 budget_exhausted): {each.fullness}"
        for each in limits
        if each.is_full and each.usage.subject.model is not None
    ]


def _price_notes(identity: AuthenticatedKey) -> list[str]:
    """List the key's models that a budget in money refuses, because they have no price."""
    deployments = apps.get_model("inference", "Deployment").objects
    usable = deployments.filter(is_enabled=True, provider__is_enabled=True, model__is_enabled=True)
    priced = usable.filter(prices__valid_from__lte=timezone.now()).values("model")
    unpriced = usable.exclude(model__in=priced).values_list("model__public_name", flat=True)
    return [
        f"Calls of {name} would be refused (403 price_unknown): it has no price, and a budget in money counts them."
        for name in sorted(set(unpriced))
        if identity.may_use_model(name) and identity.limits_for(name).has_cost_budget
    ]


def _models(identity: AuthenticatedKey) -> list[str] | None:
    """List the models that both tier and key allow; None: every model."""
    if not identity.tier_models and not identity.key_models:
        return None
    return sorted(name for name in identity.tier_models | identity.key_models if identity.may_use_model(name))


def _notes(key: ApiKey, report: UsageReport, address: str | None) -> list[str]:
    notes = []
    if report.source != LIVE:
        notes.append("The state store is away: the use of rates and slots is unknown.")
    if key.allowed_ips and address is None:
        notes.append("The key is restricted to addresses: give one to see whether it is allowed.")
    if key.revoked_at is not None and key.revoked_at > timezone.now():
        notes.append(f"The key was replaced and works until {_written(key.revoked_at)}.")
    return notes


def explanation_text(explained: Explanation) -> str:
    """Format an explanation for a terminal."""
    verdict = "would be admitted now." if explained.admitted else "would be refused now:"
    lines = [f"Key {explained.name} ({explained.key}) of {explained.account}, tier {explained.tier}, {verdict}"]
    lines += [f"  {reason.status} {reason.code}: {reason.text}" for reason in explained.reasons]
    lines += ["", *_table(explained.limits), ""]
    models = "every model" if explained.models is None else ", ".join(explained.models) or "none"
    lines.append(f"Scopes: {', '.join(explained.scopes)}. Models: {models}.")
    lines.append(
        f"Addresses: {', '.join(explained.allowed_ips) or 'any'}. Output: {explained.max_output_tokens} tokens."
    )
    return "\n".join([*lines, *explained.notes])


def _table(limits: list[ExplainedLimit]) -> list[str]:
    rows = [("OWNER", "LIMIT", "VALUE", "USED", "LEFT", "RESETS", "FROM")]
    rows += [(each.whose, str(each.usage.name), *each.cells("unlimited", "-", ""), each.source) for each in limits]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _written(at: datetime, *, seconds: bool = False) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC" if seconds else "%Y-%m-%d %H:%M UTC")
