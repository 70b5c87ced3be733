"""The admin of accounts and tiers."""

from __future__ import annotations

from typing import Any, ClassVar

from django.contrib import admin, messages
from django.contrib.admin.options import IS_POPUP_VAR
from django.db.models import CharField, Count, F, Q, QuerySet
from django.db.models.functions import Cast
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.utils import timezone

from accounts import services
from accounts.admin.base import (
    Confirmation,
    Fieldsets,
    OverviewAdmin,
    action,
    actor_of,
    ask,
    change_url,
    column,
    display,
    found,
    is_confirmed,
)
from accounts.admin.forms import AccountForm, ModelBudgetInline, ModelBudgetsAdmin, TierForm
from accounts.admin.usage import UsedList
from accounts.key_cache import account_subject
from accounts.limits.types import BUDGET_FIELDS, LIMITS, RATE_FIELDS, LimitSet
from accounts.models import Account, ApiKey, Tier
from accounts.selectors import api_keys_usable, is_usable
from core.formats import utc_text

#: The limits of an account, two a line.
LIMIT_ROWS = (RATE_FIELDS[:2], (*RATE_FIELDS[2:], "max_keys"))
RECORDED = "The state store is down: monthly amounts come from the records; the use of other limits is unknown."


def limit_text(limit: int | None, unit: str = "") -> str:
    """Return a limit of a tier in the list, such as `60/min`."""
    return "unlimited" if limit is None else f"{limit:,}{unit}"


def state_of(account: Any) -> str:
    """Return the state of an account in the list: `active`, `disabled`, or `over budget`."""
    if not account.is_active:
        return "disabled"
    budgets = [each for each in account.usage.values() if LIMITS[each.name].is_budget and each.limit is not None]
    return "over budget" if any(each.percent >= 100 for each in budgets) else "active"


class KeyedAdmin(ModelBudgetsAdmin):
    """The admin of objects that keys refer to: they can't be deleted while they have keys."""

    #: What to do instead of deleting.
    instead = ""

    def get_actions(self, request: HttpRequest) -> dict[str, Any]:
        """Remove deletion in bulk."""
        return {name: each for name, each in super().get_actions(request).items() if name != "delete_selected"}

    def render_change_form(self, request: HttpRequest, context: Any, *args: Any, **kwargs: Any) -> HttpResponse:
        """Show the page, without the button to delete an object that has keys."""
        instance = kwargs.get("obj")
        has_keys = instance is not None and instance.api_keys.exists()
        offers = {"has_keys": has_keys, "show_delete": instance is not None and not has_keys}
        return super().render_change_form(request, {**context, **offers}, *args, **kwargs)

    def delete_view(
        self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Ask and delete; with keys, show why not instead."""
        instance = self.get_object(request, object_id)
        if instance is not None and self.has_delete_permission(request, instance) and instance.api_keys.exists():
            count = instance.api_keys.count()
            keys = "1 API key belongs" if count == 1 else f"{count:,} API keys belong"
            messages.error(request, f"{instance} can't be deleted: {keys} to it, revoked ones included. {self.instead}")
            return HttpResponseRedirect(change_url(instance))
        return super().delete_view(request, object_id, extra_context)


@admin.register(Account)
class AccountAdmin(UsedList, OverviewAdmin, KeyedAdmin):
    """The admin of accounts."""

    form = AccountForm
    prepopulated_fields: ClassVar[dict[str, Any]] = {"name": ("display_name",)}
    list_display = ("title", "status", "keys", "tokens_this_month", "cost_this_month")
    list_filter = ("is_active",)
    search_fields = ("name", "display_name", "contact")
    inlines = (ModelBudgetInline,)
    actions_detail = ("add_key", "clear_cache", "enable", "disable")
    empty_value_display = "none"
    title = column("account", str, ordering="name")
    status = column(
        "state",
        state_of,
        ordering="is_active",
        label={"active": "success", "over budget": "danger", "disabled": "danger"},
    )
    instead = "Disable it instead."
    fieldsets: ClassVar[Fieldsets] = (
        (None, {"fields": ("display_name", "name", "contact")}),
        ("Budget for all keys together", {"fields": (BUDGET_FIELDS[::-1],)}),
        ("Limits for all keys together", {"fields": LIMIT_ROWS}),
        ("Advanced", {"fields": ("logs_content", "metadata"), "classes": ("collapse",)}),
    )
    add_fieldsets: ClassVar[Fieldsets] = (
        *fieldsets[:2],
        ("Advanced", {"fields": (*LIMIT_ROWS, "logs_content", "metadata"), "classes": ("collapse",)}),
    )

    def response_add(self, request: HttpRequest, obj: Account, post_url_continue: str | None = None) -> HttpResponse:
        """Open the new account's page, where a key can be added."""
        is_popup = IS_POPUP_VAR in request.POST
        if "_save" not in request.POST or is_popup or not self.has_view_or_change_permission(request, obj):
            return super().response_add(request, obj, post_url_continue)
        messages.success(request, f"{obj} was added. Next: add a key.")
        return HttpResponseRedirect(change_url(obj))

    def write(self, instance: Any, *, actor: str) -> None:
        """Save an account."""
        services.account_save(account=instance, actor=actor)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """Count the usable keys of each account in the same query."""
        usable = is_usable(timezone.now(), "api_keys__")
        number = Count("api_keys", filter=usable & Q(api_keys__isnull=False))
        counted: QuerySet[Any] = super().get_queryset(request).annotate(usable_keys=number)
        return counted

    def limits_of(self, instance: Any) -> LimitSet:
        """Return an account's own limits."""
        return LimitSet(instance.pk, (account_subject(instance),))

    def history_of(self, request: HttpRequest, instance: Any) -> Q:
        """Add the entries of the account's keys for users who may view them."""
        own = super().history_of(request, instance)
        if not request.user.has_perm("accounts.view_apikey"):
            return own
        keys = instance.api_keys.order_by().values_list(Cast("pk", CharField()), flat=True)
        return own | Q(target_type=str(ApiKey._meta.verbose_name), target_id__in=keys)

    def get_actions_detail(self, request: HttpRequest, object_id: Any) -> list[Any]:
        """Offer only the one of enable and disable that changes something."""
        account: Account | None = self.get_object(request, object_id)
        unfit = "enable" if account is not None and account.is_active else "disable"
        return [item for item in super().get_actions_detail(request, object_id) if item.path != unfit]

    def has_add_key_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Return whether the user may create keys.

        A permission's own name in the decorator would make Django's checks query the database.
        """
        return request.user.has_perm("accounts.add_apikey")

    @action(description="Add key", permissions=["add_key"], icon="add", url_path="add-key")
    def add_key(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Redirect to the page that creates a key for this account."""
        account = found(self, request, object_id)
        return HttpResponseRedirect(f"{reverse('admin:accounts_apikey_add')}?account={account.pk}")

    @action(description="Enable", permissions=["change"], icon="check", url_path="enable")
    def enable(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Enable the account's keys, after confirmation."""
        return self._switch(request, found(self, request, object_id), active=True)

    @action(description="Disable", permissions=["change"], icon="block", url_path="disable")
    def disable(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Disable all keys of the account, after confirmation."""
        return self._switch(request, found(self, request, object_id), active=False)

    @action(description="Clear cached answers", permissions=["change"], icon="mop", url_path="clear-cache")
    def clear_cache(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Clear the account's cached answers, after confirmation."""
        account: Account = found(self, request, object_id)
        if not is_confirmed(request):
            question = Confirmation(
                title=f"Clear the cached answers of {account}?",
                consequences=[
                    "Within a second every request of this account goes to a model again, and is billed.",
                    f"For one model only: manage.py cache_clear --account {account.name} --model NAME.",
                ],
                submit="Clear cached answers",
                cancel_url=change_url(account),
            )
            return ask(self, request, question)
        services.account_clear_cache(account=account, actor=actor_of(request))
        messages.success(request, f"The cached answers of {account} are cleared: everywhere within a second.")
        return HttpResponseRedirect(change_url(account))

    @display(description="usable keys", ordering="usable_keys")
    def keys(self, account: Any) -> str:
        """Show the number of usable keys, and the maximum if there is one."""
        return str(account.usable_keys) if account.max_keys is None else f"{account.usable_keys} of {account.max_keys}"

    def _switch(self, request: HttpRequest, account: Account, *, active: bool) -> HttpResponse:
        if is_confirmed(request):
            services.account_set_active(account=account, active=active, actor=actor_of(request))
            done = "enabled" if active else "disabled"
            messages.success(request, f"Account {account} is {done}: everywhere within a second.")
            return HttpResponseRedirect(change_url(account))
        keys = list(api_keys_usable(account=account, at=timezone.now()).order_by("name"))
        named = "1 key" if len(keys) == 1 else f"{len(keys):,} keys"
        consequences = [
            f"{named} of {account} will get 401 within a second. Calls in progress are completed.",
            "Enabling the account again makes the same keys work.",
        ]
        if active:
            consequences = [f"{named} of {account} will work again within a second."]
        verb = "Enable" if active else "Disable"
        question = Confirmation(
            title=f"{verb} account {account}?",
            consequences=consequences,
            submit=f"{verb} account",
            affected=[f"{key}, last used: {utc_text(key.last_used_at)}" for key in keys],
            is_dangerous=not active,
            cancel_url=change_url(account),
        )
        return ask(self, request, question)


@admin.register(Tier)
class TierAdmin(KeyedAdmin):
    """The admin of tiers. A change reaches every key of the tier within a second."""

    form = TierForm
    list_display = ("name", "requests", "tokens", "concurrent", "output", "allowed_models", "cache_enabled", "keys")
    search_fields = ("name",)
    ordering = (F("requests_per_minute").asc(nulls_last=True), F("tokens_per_minute").asc(nulls_last=True), "name")
    requests = column("requests", lambda tier: limit_text(tier.requests_per_minute, "/min"))
    tokens = column("tokens", lambda tier: limit_text(tier.tokens_per_minute, "/min"))
    concurrent = column("at the same time", lambda tier: limit_text(tier.concurrent_requests))
    output = column("longest answer", lambda tier: limit_text(tier.max_output_tokens, " tokens"))
    allowed_models = column("models", lambda tier: ", ".join(tier.models) or "every model")
    keys = column("keys", lambda tier: tier.key_count, ordering="key_count")  # revoked ones included
    instead = "Give its keys another tier first."
    fieldsets = (
        (None, {"fields": ("name",)}),
        ("Limits of each key", {"fields": (RATE_FIELDS[:2], (*RATE_FIELDS[2:], "max_output_tokens"))}),
        ("What its keys may use", {"fields": ("models", "cache_enabled", "cache_any_temperature")}),
    )

    def write(self, instance: Any, *, actor: str) -> None:
        """Save a tier."""
        services.tier_save(tier=instance, actor=actor)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """Count each tier's keys in the same query."""
        counted: QuerySet[Any] = super().get_queryset(request).annotate(key_count=Count("api_keys"))
        return counted
