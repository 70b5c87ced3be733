"""Accounts in the admin, with their keys."""

from __future__ import annotations

from typing import Any, ClassVar

from django.contrib import admin, messages
from django.db.models import Count, Q, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.utils import timezone
from django.utils.safestring import SafeString

from accounts import services
from accounts.admin.base import actor_of, change_url, found, link, moment
from accounts.admin.confirmation import Confirmation, ask, is_confirmed
from accounts.admin.keys import KeyColumns
from accounts.admin.model_budgets import ModelBudgetInline, ModelBudgetsAdmin
from accounts.admin.typed import Fieldsets, TabularInline, action, display
from accounts.admin.usage_bars import all_bars, attach_usage, bar_of
from accounts.limits.contract import LimitName
from accounts.models import Account, ApiKey
from accounts.selectors import api_keys_usable

BUDGET_FIELDS = ("monthly_token_budget", "monthly_cost_budget")
CAP_FIELDS = ("requests_per_minute", "tokens_per_minute", "concurrent_requests", "max_keys")


class KeyedAdmin(ModelBudgetsAdmin):
    """Something that keys refer to: it can't be deleted while it has any, and says so before asking."""

    #: What to do instead of deleting.
    instead = ""

    def get_actions(self, request: HttpRequest) -> dict[str, Any]:
        """Offer no deletion in bulk."""
        actions: dict[str, Any] = super().get_actions(request)
        actions.pop("delete_selected", None)
        return actions

    def delete_view(
        self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Ask and delete, unless there are keys."""
        instance = self.get_object(request, object_id)
        if instance is not None and self.has_delete_permission(request, instance) and instance.api_keys.exists():
            count = instance.api_keys.count()
            keys = "1 API key belongs" if count == 1 else f"{count:,} API keys belong"
            messages.error(request, f"{instance} can't be deleted: {keys} to it, revoked ones included. {self.instead}")
            return HttpResponseRedirect(change_url(instance))
        response: HttpResponse = super().delete_view(request, object_id, extra_context)
        return response


class KeyInline(KeyColumns, TabularInline):
    """An account's keys: to look at, and to go to."""

    model = ApiKey
    fields = readonly_fields = ("key_link", "tier", "masked", "state", "last_used")
    verbose_name_plural = "API keys"
    extra = max_num = 0
    can_delete = False
    per_page = 20
    hide_title = True

    def get_queryset(self, request: HttpRequest) -> QuerySet[ApiKey]:
        """Read keys with what their rows show."""
        return super().get_queryset(request).select_related("account", "tier").order_by("name")

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """A key is made on a page of its own, which shows it once."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """A key is changed on its own page."""
        return False

    @display(description="name")
    def key_link(self, key: ApiKey) -> SafeString:
        """Link to the key's page."""
        return link(key, key.name)


@admin.register(Account)
class AccountAdmin(KeyedAdmin):
    """Accounts."""

    list_display = ("name", "status", "keys", "tokens_this_month", "cost_this_month", "contact")
    list_filter = ("is_active",)
    search_fields = ("name", "contact")
    readonly_fields = ("status", "created", "used_now")
    inlines = (ModelBudgetInline, KeyInline)
    actions_detail = ("add_key", "clear_cache", "enable", "disable")
    empty_value_display = "none"
    instead = "Disable it instead."
    add_fieldsets: ClassVar[Fieldsets] = (
        (None, {"fields": ("name", "contact")}),
        ("Monthly budgets over all keys", {"fields": BUDGET_FIELDS}),
        ("Caps over all keys", {"fields": CAP_FIELDS}),
        ("Content", {"fields": ("logs_content",)}),
        ("Metadata", {"fields": ("metadata",), "classes": ("collapse",)}),
    )
    fieldsets: ClassVar[Fieldsets] = (
        (None, {"fields": ("status", "created")}),
        ("Used of limits and budgets", {"fields": ("used_now",)}),
        *add_fieldsets,
    )

    def write(self, instance: Any, *, actor: str) -> None:
        """Save an account."""
        services.account_save(account=instance, actor=actor)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """Count the usable keys of each account in the same query."""
        now = timezone.now()
        usable = Q(api_keys__revoked_at=None) | Q(api_keys__revoked_at__gt=now)
        usable &= Q(api_keys__expires_at=None) | Q(api_keys__expires_at__gt=now)
        number = Count("api_keys", filter=usable & Q(api_keys__isnull=False))
        counted: QuerySet[Any] = super().get_queryset(request).annotate(usable_keys=number)
        return counted

    def get_changelist_instance(self, request: HttpRequest) -> Any:
        """Read what all rows have used in one step."""
        changelist = super().get_changelist_instance(request)
        attach_usage(list(changelist.result_list))
        return changelist

    @display(description="tokens this month")
    def tokens_this_month(self, account: Account) -> SafeString:
        """Show what is used of the month's tokens."""
        return bar_of(account, LimitName.MONTHLY_TOKENS)

    @display(description="cost this month")
    def cost_this_month(self, account: Account) -> SafeString:
        """Show what is used of the month's money."""
        return bar_of(account, LimitName.MONTHLY_COST)

    @display(description="over all keys")
    def used_now(self, account: Account) -> SafeString:
        """Show what is used of every limit."""
        return all_bars(account)

    def get_inlines(self, request: HttpRequest, obj: Any) -> tuple[type[TabularInline], ...]:
        """Show budgets for models, and keys, on the page of an account that exists."""
        return self.inlines if obj else ()

    def get_actions_detail(self, request: HttpRequest, object_id: Any) -> list[Any]:
        """Offer to enable or to disable, whichever would change something."""
        account: Account | None = self.get_object(request, object_id)
        unfit = "enable" if account is not None and account.is_active else "disable"
        actions: list[Any] = super().get_actions_detail(request, object_id)
        return [item for item in actions if item.path != unfit]

    def has_add_key_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Say who may make keys. (A permission's own name in the decorator would make checks ask the database.)"""
        return request.user.has_perm("accounts.add_apikey")

    @action(description="Add key", permissions=["add_key"], icon="add", url_path="add-key")
    def add_key(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Go to the page that makes a key of this account."""
        return HttpResponseRedirect(
            f"{reverse('admin:accounts_apikey_add')}?account={found(self, request, object_id).pk}"
        )

    @action(description="Enable", permissions=["change"], icon="check", url_path="enable")
    def enable(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Let the account's keys work again, after asking."""
        return self._switch(request, found(self, request, object_id), active=True)

    @action(description="Disable", permissions=["change"], icon="block", url_path="disable")
    def disable(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Refuse all keys of the account, after asking."""
        return self._switch(request, found(self, request, object_id), active=False)

    @action(description="Clear cached answers", permissions=["change"], icon="mop", url_path="clear-cache")
    def clear_cache(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Let no cached answer of the account be found any more, after asking."""
        account: Account = found(self, request, object_id)
        if not is_confirmed(request):
            return ask(self, request, _clearing_question(account))
        services.account_clear_cache(account=account, actor=actor_of(request))
        messages.success(request, f"The cached answers of {account} are cleared: everywhere within a second.")
        return HttpResponseRedirect(change_url(account))

    @display(description="state", ordering="is_active", label={"active": "success", "disabled": "danger"})
    def status(self, account: Account) -> str:
        """Show whether its keys work."""
        return "active" if account.is_active else "disabled"

    @display(description="usable keys", ordering="usable_keys")
    def keys(self, account: Any) -> str:
        """Show how many keys could be used, and how many there may be."""
        return str(account.usable_keys) if account.max_keys is None else f"{account.usable_keys} of {account.max_keys}"

    @display(description="created")
    def created(self, account: Account) -> str:
        """Show when it was made."""
        return moment(account.created_at)

    def _switch(self, request: HttpRequest, account: Account, *, active: bool) -> HttpResponse:
        if not is_confirmed(request):
            return ask(self, request, _switch_question(account, active=active))
        services.account_set_active(account=account, active=active, actor=actor_of(request))
        done = "enabled" if active else "disabled"
        messages.success(request, f"Account {account} is {done}: everywhere within a second.")
        return HttpResponseRedirect(change_url(account))


def _clearing_question(account: Account) -> Confirmation:
    return Confirmation(
        title=f"Clear the cached answers of {account}?",
        consequences=[
            "Within a second every question of this account goes to a model again, and is billed.",
            "Of one model only: manage.py cache_clear --account NAME --model NAME.",
        ],
        submit="Clear cached answers",
        cancel_url=change_url(account),
    )


def _switch_question(account: Account, *, active: bool) -> Confirmation:
    keys = list(api_keys_usable(account=account, at=timezone.now()).order_by("name"))
    named = "1 key" if len(keys) == 1 else f"{len(keys):,} keys"
    if active:
        title, submit = f"Enable account {account}?", "Enable account"
        consequences = [f"{named} of {account} will work again within a second."]
    else:
        title, submit = f"Disable account {account}?", "Disable account"
        consequences = [
            f"{named} of {account} will get 401 within a second; calls that run now are finished.",
            "Enabling the account again makes the same keys work.",
        ]
    return Confirmation(
        title=title,
        consequences=consequences,
        submit=submit,
        affected=[f"{key}, last used: {moment(key.last_used_at)}" for key in keys],
        is_dangerous=not active,
        cancel_url=change_url(account),
    )
