"""The admin of API keys: create, show once, rotate, revoke and test.

Keys are never deleted, because records refer to them. The page "Test this key" shows whether the key would be admitted
now, under which limits, and why not.
"""

from __future__ import annotations

import secrets
from datetime import timedelta
from itertools import chain
from string import hexdigits
from typing import Any, ClassVar

from django.conf import settings
from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.core.exceptions import ValidationError
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import path, reverse
from django.utils import timezone
from django.utils.html import format_html_join
from django.utils.safestring import SafeString

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
    link,
    page,
    relative,
)
from accounts.admin.forms import (
    CUSTOM,
    ApiKeyForm,
    ModelBudgetInline,
    ModelBudgetsAdmin,
    NewKeyForm,
    RotationForm,
    TierChoiceField,
)
from accounts.admin.lists import TextFilter
from accounts.admin.usage import UsedList
from accounts.explain import explain_key
from accounts.key_cache import account_subject, key_subject
from accounts.keys import SHOWN_PREFIX
from accounts.limit_usage import usage_of_scopes
from accounts.limits.types import BUDGET_FIELDS, RATE_FIELDS, LimitName, LimitSet
from accounts.models import Account, ApiKey
from accounts.selectors import api_keys_made_by
from core.formats import NOTHING, money, price_text, quantity, utc_text
from core.network import parse_address
from core.redaction import PREFIX

STATE_BADGES = {
    "active": "success",
    "in grace": "warning",
    "expired": "info",
    "revoked": "danger",
    "disabled": "danger",
}
OVERRIDE_FIELDS = [f"{name}_override" for name in RATE_FIELDS]
#: What a key's page shows without offering a change, two columns a line.
IDENTITY_FIELDS = (("masked", "state"), ("created", "last_used"), ("revoked", "replaced_by"), ("made_by", "made"))
#: How many keys created by a key its pages list; further ones are only counted.
NAMED = 20
#: The cookie of the page that shows a new key, and the seconds within which it must be opened.
PAD, PAD_SECONDS = "issued_key", 300


def shown_state(key: ApiKey) -> str:
    """Return the state, but `in grace` for a key that will be revoked."""
    return "in grace" if key.state == "active" and key.revoked_at is not None else key.state


def cost_left(account_id: int) -> str:
    """Return what is left of an account's monthly cost budget, as a sentence; "" without a budget."""
    account = Account.objects.filter(pk=account_id).first()
    scopes = [LimitSet(account.pk, (account_subject(account),))] if account else []
    for usage in usage_of_scopes(scopes).limits:
        if usage.name == LimitName.MONTHLY_COST and usage.limit is not None and usage.remaining is not None:
            return f"{account} has {money(usage.remaining)} of {money(usage.limit)} left this month."
    return ""


class StateFilter(admin.SimpleListFilter):
    """Filter keys by their current state."""

    title = "state"
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """Return the states."""
        return [(state, state.capitalize()) for state in STATE_BADGES]

    def queryset(self, request: HttpRequest, queryset: QuerySet[ApiKey]) -> QuerySet[ApiKey]:
        """Select by the state, as shown_state defines it."""
        now = timezone.now()
        revoked, expired = Q(revoked_at__lte=now), Q(expires_at__lte=now)
        conditions = {
            "active": ~revoked & ~expired & Q(account__is_active=True, revoked_at=None),
            "in grace": ~expired & Q(account__is_active=True, revoked_at__gt=now),
            "expired": expired & ~revoked,
            "revoked": revoked,
            "disabled": ~revoked & ~expired & Q(account__is_active=False),
        }
        condition = conditions.get(self.value() or "")
        return queryset if condition is None else queryset.filter(condition)


class AccountFilter(TextFilter):
    """Filter keys by the name of their account."""

    title = "account"
    parameter_name = "account"
    placeholder = "account's slug"
    lookup = "account__name"


@admin.register(ApiKey)
class ApiKeyAdmin(UsedList, OverviewAdmin, ModelBudgetsAdmin):
    """The admin of keys. What a key has used includes the keys that it replaced."""

    form = ApiKeyForm
    list_display = ("name", "account_link", "tier", "masked", "state", "cost_this_month", "expires", "last_used")
    list_filter = (StateFilter, "tier", AccountFilter)
    list_select_related = ("account", "tier")
    search_fields = ("prefix", "name")
    search_help_text = "Beginning of a key, or a name"
    autocomplete_fields = ("account",)
    inlines = (ModelBudgetInline,)
    state = column("state", shown_state, label=STATE_BADGES)
    masked = column("key", lambda key: key.masked)
    expires = column("expires", lambda key: relative(key.expires_at), ordering="expires_at")
    last_used = column("last used", lambda key: relative(key.last_used_at), ordering="last_used_at")
    account_link = column("account", lambda key: link(key.account), ordering="account__name")
    created = column("created", lambda key: relative(key.created_at))
    replaced_by = column("replaced by", lambda key: link(key.successor) if key.successor else NOTHING)
    #: The key that created it through /keys, whose limits apply to it too.
    made_by = column("created by", lambda key: link(key.maker) if key.maker else "an operator")
    actions = ("revoke_selected",)
    actions_detail = ("test", "rotate", "revoke")
    settings_fieldsets: ClassVar[Fieldsets] = (
        ("Budget of this key", {"fields": (BUDGET_FIELDS[::-1],)}),
        ("What the key may do", {"fields": ("scopes", "models", "allowed_ips"), "classes": ("collapse",)}),
        (
            "Overrides of the tier's limits",
            {"fields": (*OVERRIDE_FIELDS, "overrides_until"), "classes": ("collapse",)},
        ),
    )
    add_fieldsets: ClassVar[Fieldsets] = (
        (None, {"fields": ("account", "name", "tier", "expires", "expires_at")}),
        *settings_fieldsets,
    )
    # Only the page of a new key has the field `expires`.
    conditional_fields: ClassVar[dict[str, str]] = {
        "expires_at": f"typeof expires == 'undefined' || expires == '{CUSTOM}'"
    }
    fieldsets: ClassVar[Fieldsets] = (
        (None, {"fields": IDENTITY_FIELDS}),
        ("Settings", {"fields": ("account", "name", "tier", "expires_at")}),
        *settings_fieldsets,
    )

    def limits_of(self, instance: Any) -> LimitSet:
        """Return a key's own limits."""
        return LimitSet(instance.account_id, (key_subject(instance, timezone.now()),))

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        """Return the form, for a new key the one with usual times of expiry."""
        form = super().get_form(request, obj, change=change, **({} if obj else {"form": NewKeyForm}), **kwargs)
        pk = request.GET.get("account", "")
        if obj is None and pk.isdecimal() and len(pk) < 10 and request.user.has_perm("accounts.view_account"):
            field, left = form.base_fields.get("monthly_cost_budget"), cost_left(int(pk))
            if field is not None and left:
                field.help_text = f"{field.help_text} {left}".strip()
        return form

    def formfield_for_foreignkey(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        """Offer tiers with their limits."""
        choice = {"form_class": TierChoiceField} if db_field.name == "tier" else {}
        return super().formfield_for_foreignkey(db_field, request, **choice, **kwargs)

    def get_urls(self) -> list[Any]:
        """Add the page that shows a new key once."""
        issued = path(
            "<int:key_id>/issued/", self.admin_site.admin_view(self.issued_view), name="accounts_apikey_issued"
        )
        return [issued, *super().get_urls()]

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        """Make the account read-only once the key exists."""
        return (*chain.from_iterable(IDENTITY_FIELDS), "account") if obj else ()

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Refuse: what a key did must stay attributable. Revoking stops it."""
        return False

    def get_actions_detail(self, request: HttpRequest, object_id: Any) -> list[Any]:
        """Remove rotation and revocation for a revoked key, and rotation for a replaced one."""
        key: ApiKey | None = self.get_object(request, object_id)
        if key is None:
            return []
        is_revoked = key.state == "revoked"
        unfit = {"rotate": is_revoked or key.successor_id is not None, "revoke": is_revoked}
        return [item for item in super().get_actions_detail(request, object_id) if not unfit.get(item.path)]

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """Show the list; shorten a key that was pasted into the search to its visible part."""
        term = request.GET.get("q", "").strip()
        if term.startswith(PREFIX) and len(term) > SHOWN_PREFIX:
            parameters = request.GET.copy()
            parameters["q"] = term[:SHOWN_PREFIX]
            return HttpResponseRedirect(f"{request.path}?{parameters.urlencode()}")
        return super().changelist_view(request, extra_context)

    def add_view(
        self, request: HttpRequest, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Show a single save button, because the secret is shown only once."""
        buttons = {"show_save_and_add_another": False, "show_save_and_continue": False}
        return super().add_view(request, form_url, {**(extra_context or {}), **buttons})

    def save_model(self, request: HttpRequest, obj: ApiKey, form: Any, change: bool) -> None:
        """Save changes, or create the key; its secret is passed only to the response of this request."""
        if change:
            services.api_key_save(key=obj, actor=actor_of(request))
        else:
            plain = services.api_key_issue(key=obj, actor=actor_of(request))
            request.issued_key = plain  # type: ignore[attr-defined]

    def response_add(self, request: HttpRequest, obj: ApiKey, post_url_continue: str | None = None) -> HttpResponse:
        """Redirect to the page that shows the new key once."""
        return self._hand_over(request, obj, request.issued_key)  # type: ignore[attr-defined]

    def _hand_over(self, request: HttpRequest, key: ApiKey, plain: str) -> HttpResponse:
        """Redirect to the page that shows a new key once, so that going back or reloading creates no other one.

        The session stores the secret combined with a one-time pad; a cookie for that page alone has the pad. Neither
        reveals anything without the other, and the first visit deletes both.
        """
        url, pad = reverse("admin:accounts_apikey_issued", args=[key.pk]), secrets.token_bytes(len(plain))
        request.session[f"{PAD}_{key.pk}"] = _combine(plain.encode(), pad).hex()
        response = HttpResponseRedirect(url)
        is_secure = bool(settings.SESSION_COOKIE_SECURE)
        response.set_cookie(
            PAD, pad.hex(), max_age=PAD_SECONDS, path=url, secure=is_secure, httponly=True, samesite="Strict"
        )
        return response

    def issued_view(self, request: HttpRequest, key_id: int) -> HttpResponse:
        """Show a new key to the session that created it, once; afterwards redirect to the key's page."""
        key: ApiKey = found(self, request, str(key_id))
        name, pad = f"{PAD}_{key.pk}", request.COOKIES.get(PAD, "")
        sealed = request.session.pop(name, "") if pad else ""  # a visit without the cookie destroys nothing
        if not sealed or len(sealed) != len(pad) or not set(pad) <= set(hexdigits):
            messages.warning(request, "A new key is shown only once. If you did not copy it, rotate the key.")
            return HttpResponseRedirect(change_url(key))
        tokens, cost = key.monthly_token_budget, key.monthly_cost_budget
        budget = [] if cost is None else [price_text(cost)]
        budget += [] if tokens is None else [f"{tokens:,} tokens"]
        facts = [
            ("Account", str(key.account)),
            ("Name", key.name),
            ("Tier", key.tier.name),
            ("Expires", utc_text(key.expires_at)),
            ("Monthly budget", " and ".join(budget) or "none"),
            *(
                ("Replaces", f"{each}, which works until {utc_text(each.revoked_at)}")
                for each in key.predecessors.all()
            ),
        ]
        context = {
            "plain": _combine(bytes.fromhex(sealed), bytes.fromhex(pad)).decode(),
            "facts": facts,
            "key_url": change_url(key),
        }
        response = page(self, request, "admin/accounts/apikey/issued.html", f"New API key {key.name}", context)
        response.delete_cookie(PAD, path=request.path, samesite="Strict")
        return response

    @action(description="Test this key", permissions=["view"], icon="rule", url_path="test")
    def test(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Show whether a request from the address of the page's form would be admitted now; nothing is counted."""
        key: ApiKey = found(self, request, object_id)
        address = request.GET.get("address", "").strip()
        is_address = not address or parse_address(address) is not None
        explained = explain_key(key, address=address if address and is_address else None)
        context = {
            "explained": explained,
            "headings": ("Limit", "Value", "Used", "Left", "Resets", "Set by"),
            "rows": [
                (f"{each.title} ({each.owner.split()[0]})", (*each.cells("no limit", NOTHING, NOTHING), each.source))
                for each in explained.limits
            ],
            "address": address,
            "problem": "" if is_address else "That is not an IP address.",
            "key_url": change_url(key),
        }
        return page(self, request, "admin/accounts/apikey/check.html", f"Test of key {key.name}", context)

    @action(description="Rotate", permissions=["change"], icon="autorenew", url_path="rotate")
    def rotate(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Create a successor, after asking for the grace period."""
        key: ApiKey = found(self, request, object_id)
        form = RotationForm(request.POST if is_confirmed(request) else None)
        if not form.is_valid():
            question = Confirmation(
                title=f"Rotate key {key.name}",
                consequences=[
                    "A new key with the same settings is created and shown once.",
                    "The old key stops working at the end of the period. If it has leaked, revoke it instead.",
                ],
                submit="Rotate key",
                affected=[_key_line(key)],
                form=form,
                is_dangerous=False,
                cancel_url=change_url(key),
            )
            return ask(self, request, question)
        grace: timedelta = form.cleaned_data["grace"]
        try:
            successor, plain = services.api_key_rotate(key=key, grace=grace, actor=actor_of(request))
        except ValidationError as error:
            messages.error(request, " ".join(error.messages))
            return HttpResponseRedirect(change_url(key))
        return self._hand_over(request, successor, plain)

    @action(description="Revoke", permissions=["change"], icon="block", url_path="revoke")
    def revoke(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Revoke one key, after confirmation."""
        key: ApiKey = found(self, request, object_id)
        asked = self._revoke(request, [key], cancel_url=change_url(key), hidden={})
        return asked or HttpResponseRedirect(change_url(key))

    @action(description="Revoke selected keys", permissions=["change"])
    def revoke_selected(self, request: HttpRequest, queryset: QuerySet[ApiKey]) -> HttpResponse | None:
        """Revoke the selected keys, after confirmation."""
        keys = list(queryset.select_related("account", "tier").order_by("account_id", "pk"))
        hidden = {  # sends the selection to this action again
            "action": ["revoke_selected"],
            "select_across": [request.POST.get("select_across", "0")],
            ACTION_CHECKBOX_NAME: request.POST.getlist(ACTION_CHECKBOX_NAME),
        }
        return self._revoke(request, keys, cancel_url=request.get_full_path(), hidden=hidden)

    @display(description="revoked")
    def revoked(self, key: ApiKey) -> str:
        """Show when the key was revoked, or will be at the end of its grace period."""
        if key.revoked_at is not None and key.revoked_at > timezone.now():
            return f"will be at {utc_text(key.revoked_at)}"
        return utc_text(key.revoked_at, NOTHING)

    @display(description="usable keys that it created")
    def made(self, key: ApiKey) -> str | SafeString:
        """Link to the usable keys, of any generation, that it created and that its limits apply to."""
        made = api_keys_made_by([key], at=timezone.now())
        return format_html_join(", ", "{}", ((link(each),) for each in made[:NAMED])) + _more(made) if made else NOTHING

    def _revoke(
        self, request: HttpRequest, keys: list[ApiKey], *, cancel_url: str, hidden: dict[str, list[str]]
    ) -> HttpResponse | None:
        """Return the confirmation; once it is confirmed, revoke the keys and return None."""
        if is_confirmed(request):
            stopped = sum(services.api_key_revoke(key=key, actor=actor_of(request)) for key in keys)
            done = f"{quantity(stopped, 'key')} revoked: refused everywhere within a second."
            messages.success(request, done if stopped else "Already revoked.")
            return None
        accounts = {key.account.name for key in keys}
        owners = f"account {accounts.pop()}" if len(accounts) == 1 else f"{len(accounts)} accounts"
        these, what = ("this key", keys[0].name) if len(keys) == 1 else ("these keys", quantity(len(keys), "key"))
        consequences = [
            f"Every request with {these} of {owners} will get 401 within a second.",
            "A revoked key can't be made valid again. To replace a key without an interruption, rotate it instead.",
        ]
        if made := api_keys_made_by(keys, at=timezone.now()):
            names = ", ".join(each.name for each in made[:NAMED]) + _more(made)
            consequences.append(f"Keys created by {these} keep working, under the same limits as before: {names}.")
        question = Confirmation(
            title=f"Revoke {what}?",
            consequences=consequences,
            submit=f"Revoke {what}",
            affected=[_key_line(key) for key in keys],
            cancel_url=cancel_url,
            hidden=hidden,
        )
        return ask(self, request, question)


def _combine(text: bytes, pad: bytes) -> bytes:
    """Combine bytes with a pad of the same length by exclusive or, which is its own inverse."""
    return bytes(one ^ other for one, other in zip(text, pad, strict=True))


def _more(made: list[ApiKey]) -> str:
    return f" and {len(made) - NAMED:,} more" if len(made) > NAMED else ""


def _key_line(key: ApiKey) -> str:
    state = shown_state(key)
    return f"{key.account} / {key.name} ({key.masked}), {state}, last used: {utc_text(key.last_used_at)}"
