"""Admin forms of keys, tiers and model budgets; lists are edited as lines or checkboxes instead of JSON."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, ClassVar

from django import forms
from django.core.exceptions import ValidationError
from django.db.models import DecimalField, Field, QuerySet
from django.http import HttpRequest
from django.utils import timezone
from django.utils.text import slugify
from unfold.widgets import (
    UnfoldAdminCheckboxSelectMultipleWidget,
    UnfoldAdminDecimalFieldWidget,
    UnfoldAdminRadioSelectWidget,
    UnfoldAdminTextareaWidget,
)

from accounts import services
from accounts.admin.base import AuditedAdmin, TabularInline, actor_of
from accounts.limits.types import BUDGET_FIELDS, RATE_FIELDS
from accounts.models import Account, ApiKey, ModelBudget, Tier
from accounts.services import api_key_check_max_keys
from accounts.validators import SCOPES, validate_model_names, validate_networks

if TYPE_CHECKING:
    AccountModelForm = forms.ModelForm[Account]
    TierModelForm = forms.ModelForm[Tier]
    ApiKeyModelForm = forms.ModelForm[ApiKey]
    TierModelChoiceField = forms.ModelChoiceField[Tier]
else:
    TierModelChoiceField = forms.ModelChoiceField
    AccountModelForm = TierModelForm = ApiKeyModelForm = forms.ModelForm

HOUR = 3600
GRACE_PERIODS = {
    0: "0 seconds: it stops immediately",
    HOUR: "1 hour",
    24 * HOUR: "24 hours",
    7 * 24 * HOUR: "7 days",
    30 * 24 * HOUR: "30 days",
}
NEVER, CUSTOM = "never", "custom"
#: Labels and help of limits, in place of the models' own.
LIMIT_LABELS = {
    "monthly_cost_budget": "Monthly budget in US dollars",
    "monthly_token_budget": "Monthly budget in tokens",
    **{f"{name}_override": name.replace("_", " ").capitalize() for name in RATE_FIELDS},
}
LIMIT_HELP = {
    **dict.fromkeys(BUDGET_FIELDS, "Per calendar month (UTC). Leave empty for no budget."),
    **dict.fromkeys(RATE_FIELDS[:2], "In any 60 seconds. Leave empty for no limit."),
    "concurrent_requests": "In progress at the same time. Leave empty for no limit.",
    "max_keys": "The most usable keys. Leave empty for no limit.",
    "max_output_tokens": "The longest answer that a request gets.",
    **{f"{name}_override": "Leave empty for the tier's limit." for name in RATE_FIELDS},
}
#: When a new key expires: a number of days from now, or one of the above.
EXPIRIES = {"30": "30 days", "90": "90 days", "365": "1 year", NEVER: "Never", CUSTOM: "Custom date"}


class AmountInput(UnfoldAdminDecimalFieldWidget):  # type: ignore[misc]  # unfold is untyped
    """An input of US dollars without the zeros that the database adds: 25, not 25.000000000."""

    def format_value(self, value: Any) -> Any:
        """Return the amount as people write it; what was typed is unchanged."""
        return f"{value.normalize():f}" if isinstance(value, Decimal) else super().format_value(value)


class LinesField(forms.CharField):
    """A list of strings, typed one per line or separated by commas."""

    widget = UnfoldAdminTextareaWidget

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("required", False)
        super().__init__(widget=UnfoldAdminTextareaWidget(attrs={"rows": 3}), **kwargs)
        self.empty_value: Any = []

    def prepare_value(self, value: Any) -> Any:
        """Return a list as lines; typed text is unchanged."""
        return "\n".join(value) if isinstance(value, list) else value

    def to_python(self, value: Any) -> Any:
        """Return the list, which may be empty."""
        lines = str(super().to_python(value) or "").replace(",", "\n").splitlines()
        return [line.strip() for line in lines if line.strip()]

    def has_changed(self, initial: Any, data: Any) -> bool:
        """Compare the lists, not the texts."""
        return bool((initial or []) != self.to_python(data))


class AccountForm(AccountModelForm):
    """The form of an account. The slug is made from the name if it is left empty."""

    class Meta:
        model = Account
        fields = "__all__"  # the admin's fieldsets choose
        labels: ClassVar[dict[str, str]] = {"contact": "Contact e-mail", **LIMIT_LABELS}
        help_texts: ClassVar[dict[str, str]] = {
            "name": "The name in the API, records and URLs. Leave empty to make it from the name.",
            "contact": "Budget alerts are sent to this address.",
            **LIMIT_HELP,
        }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if "name" in self.fields:  # not for users who may only view
            self.fields["name"].required = False

    def clean(self) -> dict[str, Any]:
        """Make the slug; require a name that it can be made from."""
        cleaned = super().clean() or {}
        if not cleaned.get("name") and "name" not in self.errors:
            cleaned["name"] = slugify(cleaned.get("display_name", ""))[:100]
            if not cleaned["name"]:
                self.add_error("name", "Enter a name, or a slug of letters, digits and hyphens.")
        return cleaned


class TierForm(TierModelForm):
    """The form of a tier."""

    models = LinesField(
        validators=[validate_model_names], help_text="One name per line. Leave empty to allow every model."
    )

    class Meta:
        model = Tier
        fields = "__all__"  # the admin's fieldsets choose
        help_texts: ClassVar[dict[str, str]] = LIMIT_HELP


class TierChoiceField(TierModelChoiceField):
    """A choice of a tier, with its request limit."""

    def label_from_instance(self, tier: Tier) -> str:
        """Return the tier's name and limit."""
        limit = tier.requests_per_minute
        return f"{tier} ({'no request limit' if limit is None else f'{limit:,} requests/min'})"


class ApiKeyForm(ApiKeyModelForm):
    """The form of a key, without its secret."""

    scopes = forms.MultipleChoiceField(
        required=False,
        choices=[(scope, scope) for scope in SCOPES],
        widget=UnfoldAdminCheckboxSelectMultipleWidget,
        help_text="Select none to allow all but keys:manage, which lets a key create and revoke keys of its account.",
    )
    models = LinesField(
        validators=[validate_model_names], help_text="One name per line. Leave empty to allow every model of the tier."
    )
    allowed_ips = LinesField(
        label="Allowed IPs",
        validators=[validate_networks],
        help_text="Addresses or networks, one per line, such as 192.0.2.7 or 2001:db8::/32. Leave empty to allow any.",
    )

    class Meta:
        model = ApiKey
        fields = "__all__"  # the admin's fieldsets choose
        labels: ClassVar[dict[str, str]] = LIMIT_LABELS
        help_texts: ClassVar[dict[str, str]] = {
            "name": "Unique in its account, such as the program that uses the key.",
            "expires_at": "UTC. Leave empty for a key that never expires.",
            "overrides_until": "UTC. Leave empty if the overrides never end.",
            **LIMIT_HELP,
        }

    def _post_clean(self) -> None:
        """Check the account's `max_keys` as well, so that the form shows the error."""
        super()._post_clean()  # type: ignore[misc]  # Django's own hook, not in the stubs
        if self.errors:
            return
        try:
            api_key_check_max_keys(key=self.instance)
        except ValidationError as error:
            self.add_error(None, error)


class NewKeyForm(ApiKeyForm):
    """The form of a new key, which offers usual times of expiry."""

    expires = forms.ChoiceField(
        required=False, choices=list(EXPIRIES.items()), initial=NEVER, widget=UnfoldAdminRadioSelectWidget
    )

    def clean(self) -> dict[str, Any]:
        """Set the time of expiry by the choice."""
        cleaned = super().clean() or {}
        expires = cleaned.get("expires")
        if expires == CUSTOM and cleaned.get("expires_at") is None and "expires_at" not in self.errors:
            self.add_error("expires_at", "Enter a date and a time.")
        elif expires and expires != CUSTOM:
            cleaned["expires_at"] = None if expires == NEVER else timezone.now() + timedelta(days=int(expires))
        return cleaned


class RotationForm(forms.Form):
    """How long the old key keeps working."""

    grace = forms.TypedChoiceField(
        label="The old key keeps working for",
        coerce=lambda seconds: timedelta(seconds=int(seconds)),
        choices=list(GRACE_PERIODS.items()),
        initial=24 * HOUR,
        widget=UnfoldAdminRadioSelectWidget,
    )


class ModelBudgetInline(TabularInline):
    """The model budgets of an account or a key."""

    model = ModelBudget
    fields = ("model", *BUDGET_FIELDS)
    formfield_overrides: ClassVar[dict[type[Field[Any, Any]], Any]] = {DecimalField: {"widget": AmountInput}}
    extra = 0
    per_page = 20
    hide_title = True

    def get_queryset(self, request: HttpRequest) -> QuerySet[ModelBudget]:
        """Select budgets with their owners, which are part of their names."""
        return super().get_queryset(request).select_related("account", "key")


class ModelBudgetsAdmin(AuditedAdmin):
    """Pages with model budgets, which take effect within a second."""

    formfield_overrides: ClassVar[dict[type[Field[Any, Any]], Any]] = {
        **AuditedAdmin.formfield_overrides,
        DecimalField: {"widget": AmountInput},
    }

    def get_inlines(self, request: HttpRequest, obj: Any) -> Any:
        """Hide inlines while their owner is being created."""
        return self.inlines if obj else ()

    def save_formset(self, request: HttpRequest, form: Any, formset: Any, change: bool) -> None:
        """Save and delete budgets by their services; other inlines are read-only."""
        for budget in formset.save(commit=False):
            services.model_budget_save(budget=budget, actor=actor_of(request))
        for budget in formset.deleted_objects:
            services.model_budget_delete(budget=budget, actor=actor_of(request))
