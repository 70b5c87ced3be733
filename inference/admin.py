"""Providers, models, deployments and prices in the admin. Changes take effect within a second."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any, ClassVar

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.options import BaseModelAdmin
from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied
from django.db.models import BooleanField, Case, Count, Exists, ExpressionWrapper, Prefetch, Q, QuerySet, Value, When
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString
from redis.exceptions import RedisError

from accounts.admin.base import (
    AuditedAdmin,
    Confirmation,
    Fieldsets,
    StackedInline,
    TabularInline,
    action,
    actor_of,
    ask,
    change_url,
    column,
    display,
    found,
    is_confirmed,
    link,
    relative,
)
from accounts.admin.forms import LinesField
from accounts.audit import audit_event, audit_record
from core.formats import NOTHING, count, price_text, utc_text
from inference.catalog import default_model_name
from inference.models import Deployment, Model, Price, Provider, prices_in_force
from inference.prices import SERVICE_TIERS
from inference.provider_setup import MOST, PRESETS, Listing, Preset, ProviderAddForm, provider_models
from inference.selectors import recent_calls
from inference.services import catalog_delete, catalog_save, model_clear_cache, provider_add
from inference.upstream.breaker import failing
from monitoring.models import VIEW_RECORDS
from monitoring.rollups.queries import Scope, usage_rankings

PRICE_FIELDS = (
    *("above_tokens", "input_per_million", "cached_input_per_million", "cache_write_per_million"),
    *("cache_write_1h_per_million", "output_per_million", "reasoning_per_million", "per_request", "per_search"),
    *("flex_factor", "priority_factor"),
)
SHOWN_PRICES = ("begins", "state", "prompts", "input", "cached_input", "output", "others")
PRICE_LABELS = {"cache_write_1h_per_million": "Cache write for an hour, per million"}
#: The states of deployments, with the words of the dashboard; whatever is off has no colour.
STATES = {"OK": "success", "Trying: one trial call": "warning", "Down: no calls": "danger", "Secret missing": "danger"}
SECRET_BADGES = {"set": "success", "missing": "danger"}
#: The period in which an account's calls count as recent.
LATELY = timedelta(days=7)
MOST_CALLERS = 50
#: How a model is marked that answers requests which name none.
CHOSEN, INHERITED = "default", "default (set by environment)"
#: The form field that the confirmation page adds itself.
TOKEN = "csrfmiddlewaretoken"  # noqa: S105

Row = Provider | Model | Deployment


class ModelForm(forms.ModelForm):  # type: ignore[type-arg]  # generic in the stubs alone
    """The form of a model."""

    aliases = LinesField(help_text="Other names that callers can use, one per line.")


class CatalogAdmin(AuditedAdmin):
    """Saves and deletes through the catalog's services; asks before a form switches something off or removes it."""

    empty_value_display = NOTHING

    @display(description="state", ordering="is_enabled", label={"On": "success"})
    def state(self, row: Any) -> str:
        """Show whether operators have switched the row on."""
        return "On" if row.is_enabled else "Off"

    def write(self, instance: Any, *, actor: str) -> None:
        """Save a row."""
        catalog_save(row=instance, actor=actor)

    def erase(self, instance: Any, *, actor: str) -> None:
        """Delete a row."""
        catalog_delete(row=instance, actor=actor)

    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> Any:
        """Ask for confirmation if the form needs it; otherwise show or save the form as Django does."""
        if request.method == "POST" and object_id is not None and not is_confirmed(request):
            row = self.get_object(request, unquote(object_id))
            if row is not None and self.has_change_permission(request, row):
                off = [type(each)._default_manager.get(pk=each.pk) for each in self._switched_off(request, row)]
                if off:
                    hidden = {name: request.POST.getlist(name) for name in request.POST if name != TOKEN}
                    return ask(self, request, question_about(off, cancel_url=change_url(row), hidden=hidden))
        return super().changeform_view(request, object_id, form_url, extra_context)

    def _switched_off(self, request: HttpRequest, row: Row) -> Iterator[Row]:
        """Yield the rows that the form, if valid, would switch off or remove; they hold the form's values."""
        forms = [self.get_form(request, row, change=True)(request.POST, request.FILES, instance=row)]
        for formset, inline in self.get_formsets_with_inlines(request, row):
            if issubclass(formset.model, Deployment):
                prefix = formset.get_default_prefix()
                forms += formset(**self.get_formset_kwargs(request, row, inline, prefix)).initial_forms
        for form in forms:
            if form.is_valid():
                is_off = "is_enabled" in form.changed_data and not form.cleaned_data["is_enabled"]
                if is_off or form.cleaned_data.get("DELETE"):
                    yield form.instance

    def ask_first(
        self, request: HttpRequest, row: Row, title: str, text: str, submit: str, **more: Any
    ) -> HttpResponse:
        """Return the confirmation page of an action on a row."""
        return ask(self, request, Confirmation(title, [text], submit, cancel_url=change_url(row), **more))


def question_about(off: Sequence[Row], *, cancel_url: str, hidden: dict[str, list[str]]) -> Confirmation:
    """Return the question before rows are switched off: what happens within a second, and who called there lately."""
    usable = Deployment.objects.filter(is_enabled=True, provider__is_enabled=True, model__is_enabled=True)
    gone = [each for each in off if isinstance(each, Model)]
    providers, deployments = ([each.pk for each in off if isinstance(each, kind)] for kind in (Provider, Deployment))
    lost = usable.filter(Q(provider__in=providers) | Q(pk__in=deployments))
    left = usable.exclude(pk__in=[each.pk for each in lost]).exclude(model__in=gone)
    served = {each.model_id for each in left}
    affected_models = {each.pk for each in gone} | {each.model_id for each in lost}
    models = list(Model.objects.filter(pk__in=affected_models, is_enabled=True))
    weakened = [each for each in models if each not in gone]
    outcomes = {
        "Calls to {} fail within a second: 404 model_not_found.": gone,
        "Calls to {} fail within a second: 502, because no enabled deployment is left.": [
            each for each in weakened if each.pk not in served
        ],
        "Calls to {} go to other deployments within a second.": [each for each in weakened if each.pk in served],
        "Requests that name no model go to {}, the default.": [each for each in models if each.is_default],
    }
    sentences = [text.format(", ".join(map(str, each))) for text, each in outcomes.items() if each]
    now, asked = timezone.now(), Counter[str]()
    for model in models:
        scope = Scope(model=model.public_name)
        ranked = usage_rankings(begin=now - LATELY, end=now, scope=scope, limit=MOST_CALLERS, with_keys=False)
        for rank in ranked.accounts:
            asked[rank.account] += rank.requests
    unused = [] if asked else ["It had no requests in the last seven days."]
    return Confirmation(
        title=f"Switch off {' and '.join(map(str, off))}?",
        consequences=[*(sentences or ["It gets no calls now, so nothing stops working."]), *unused],
        submit="Switch off",
        affected=[
            f"{account}: {count(number)} request{'' if number == 1 else 's'} in the last seven days"
            for account, number in asked.most_common()
        ],
        cancel_url=cancel_url,
        hidden=hidden,
    )


def preset_of(request: HttpRequest) -> Preset:
    """Return the preset that the URL names."""
    return PRESETS.get(request.GET.get("preset", ""), PRESETS["other"])


@admin.register(Provider)
class ProviderAdmin(CatalogAdmin):
    """Providers."""

    list_display = ("name", "base_url", "variable", "secret", "deployment_count", "latest_calls", "state")
    add_form_template = "admin/inference/provider/add.html"
    change_form_outer_before_template = "admin/inference/provider/deployments.html"
    actions_detail = ("test_connection",)
    list_filter = ("is_enabled",)
    search_fields = ("name", "base_url")
    fieldsets = (
        (None, {"fields": ("name", "style", "base_url", "api_version", "stops_when_client_leaves", "is_enabled")}),
        ("Authentication", {"fields": ("api_key_variable", "secret", "extra_headers")}),
        (
            "Provider rate limits (all callers and servers)",
            {
                "fields": ("requests_per_minute", "tokens_per_minute", "concurrent_requests"),
                "description": "When one is reached, the next deployment is used; if there is none, callers get 503 "
                "with Retry-After.",
            },
        ),
    )

    add_fieldsets: ClassVar[Fieldsets] = (
        (None, {"fields": ("name", "base_url", "api_key_variable")}),
        (
            "Azure, extra headers, and the provider's limits",
            {
                "fields": (
                    *("style", "api_version", "extra_headers", "requests_per_minute", "tokens_per_minute"),
                    *("concurrent_requests", "stops_when_client_leaves", "is_enabled"),
                ),
                "classes": ("collapse",),
            },
        ),
    )

    def get_urls(self) -> list[Any]:
        """Add the URL that lists the models of a provider that is being added."""
        view = self.admin_site.admin_view(self.list_models)
        return [path("add/models/", view, name="inference_provider_models"), *super().get_urls()]

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **options: Any) -> Any:
        """Return the form; a new provider's has its models too."""
        options["labels"] = {"api_key_variable": "API key variable"}
        if obj is not None:
            return super().get_form(request, obj, change, **options)
        form = type("AddForm", (ProviderAddForm,), {"preset": preset_of(request)})
        return super().get_form(request, obj, change, **{**options, "form": form})

    def get_changeform_initial_data(self, request: HttpRequest) -> dict[str, Any]:
        """Return the values of the chosen preset."""
        return preset_of(request).initial

    def add_view(self, request: HttpRequest, form_url: str = "", extra_context: dict[str, Any] | None = None) -> Any:
        """Show the page that adds a provider, with presets."""
        more = {"presets": PRESETS, "preset": preset_of(request), "title": "Add provider"}
        return super().add_view(request, form_url, {**(extra_context or {}), **more, **self._line_context(request)})

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> Any:
        """Show first how the provider's deployments are."""
        page, provider = DeploymentAdmin(Deployment, self.admin_site), self.get_object(request, unquote(object_id))
        rows = page.get_queryset(request).filter(provider=provider) if page.has_view_permission(request) else []
        states = [(row, page.state(row)) for row in rows]
        recent = recent_calls() if request.user.has_perm(VIEW_RECORDS) else {}
        more = {
            "deployments": [
                (row, state, STATES.get(state, ""), recent.get((row.model.public_name, str(row))))
                for row, state in states
            ],
            "may_test": self.has_change_permission(request, provider),
        }
        return super().change_view(request, object_id, form_url, {**(extra_context or {}), **more})

    def get_list_display(self, request: HttpRequest) -> Any:
        """Leave out the calls for users who may not see requests."""
        shown = super().get_list_display(request)
        return [name for name in shown if name != "latest_calls" or request.user.has_perm(VIEW_RECORDS)]

    def get_changelist_instance(self, request: HttpRequest) -> Any:
        """Attach the latest calls of all rows in one query."""
        changelist = super().get_changelist_instance(request)
        calls = recent_calls() if "latest_calls" in changelist.list_display else {}
        for row in changelist.result_list:
            row.recent = [each for (_, name), each in calls.items() if name.partition("/")[0] == row.name]
        return changelist

    @display(description="latest calls")
    def latest_calls(self, provider: Any) -> SafeString:
        """Show how many of the latest requests a provider was asked for, and how many failed, the last one when."""
        failures = [each.last_failure.admitted_at for each in provider.recent if each.last_failure is not None]
        failed = sum(each.failed for each in provider.recent)
        calls = count(sum(each.calls for each in provider.recent))
        if not failures:
            return format_html("{}", calls)
        return format_html("{}, {} failed, the last {}", calls, count(failed), relative(max(failures)))

    def get_actions_detail(self, request: HttpRequest, object_id: Any) -> list[Any]:
        """Leave out the test of the connection: its button is on the page, and asks at once."""
        return []

    def list_models(self, request: HttpRequest) -> HttpResponse:
        """Ask the provider of the form for its models, and return their lines, or what is wrong.

        For a model that was typed in (`named`: its line), return what the public list knows, without asking.
        """
        if request.method != "POST" or not self.has_add_permission(request):
            raise PermissionDenied
        form = self.get_form(request)(request.POST)
        if named := request.GET.get("named"):
            return TemplateResponse(request, "admin/inference/provider/values.html", {"line": form.known_line(named)})
        wrong = [text for name, texts in form.errors.items() if name != "name" for text in texts]
        if wrong:
            listing = Listing(trouble=" ".join(map(str, wrong)))
        else:
            provider, listing = form.instance, provider_models(form.instance)
            details = {
                "base_url": provider.base_url,
                "variable": provider.api_key_variable,
                "answer": listing.trouble or "good",
            }
            audit_event(actor=actor_of(request), action="tested", kind="provider", details=details)
        if not listing.trouble:
            form.list_models(listing)
        context = {"form": form, "listing": listing, **self._line_context(request)}
        return TemplateResponse(request, "admin/inference/provider/lines.html", context)

    def _line_context(self, request: HttpRequest) -> dict[str, Any]:
        names = ("model", "deployment", "price")
        may = all(request.user.has_perm(f"inference.add_{name}") for name in names)
        return {"may_add_models": may, "most": MOST}

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        """Save a provider; a new one with its models."""
        if change:
            super().save_model(request, obj, form, change)
            return
        models = form.models_added() if self._line_context(request)["may_add_models"] else []
        may_change = request.user.has_perm("inference.change_model")
        provider_add(provider=obj, models=models, actor=actor_of(request), switches_on=may_change)
        if models:
            names = ", ".join(each.public_name for each in models)
            messages.success(request, f"{obj} now serves {names}. Try it in the playground.")

    def get_readonly_fields(self, request: HttpRequest, obj: Provider | None = None) -> tuple[str, ...]:
        """Make the environment's values read-only and, unless the user is a superuser, the fields that name secrets.

        A user who could pair a URL of their own with the name of a variable would receive the secret in it.
        """
        fixed = {"secret"}
        if obj is not None and obj.from_environment:
            fixed |= {"name", "style", "api_version", "base_url", "api_key_variable"}
        if not request.user.is_superuser:
            fixed |= {"api_key_variable", "extra_headers"}
            fixed |= {"base_url"} if obj is not None and obj.secret_variables else set()
        return tuple(fixed)

    def get_fieldsets(self, request: HttpRequest, obj: Provider | None = None) -> Any:
        """Return the sections, of a new provider the important ones first, and say why some fields are read-only."""
        if obj is None:
            return self.add_fieldsets
        (title, options), *others = super().get_fieldsets(request, obj)
        if obj.from_environment:
            text = (
                "Name, address and secret come from the environment: change OPENAI_BASE_URL and OPENAI_API_KEY there."
            )
        elif not request.user.is_superuser:
            text = "Only superusers can change which secret is sent to which address."
        else:
            return ((title, options), *others)
        return ((title, {**options, "description": text}), *others)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """Count deployments in the same query."""
        counted: QuerySet[Any] = super().get_queryset(request).annotate(deployment_total=Count("deployments"))
        return counted

    @action(description="Test connection", permissions=["change"], icon="cable", url_path="test-connection")
    def test_connection(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Ask the provider for its list of models, after a confirmation, and show the result."""
        provider: Provider = found(self, request, object_id)
        if not is_confirmed(request):
            text = f"This requests the list of models from {provider.base_url}, with its secret. It uses no tokens."
            title = f"Test the connection to {provider}?"
            return self.ask_first(request, provider, title, text, "Test connection", is_dangerous=False)
        listing = provider_models(provider)
        audit_record(
            actor=actor_of(request), action="tested", target=provider, after={"answer": listing.trouble or "good"}
        )
        if listing.trouble:
            messages.error(request, f"{provider}: {listing.trouble}")
        else:
            messages.success(request, f"{provider} answered. Models it offers: {len(listing.models)}.")
        return HttpResponseRedirect(change_url(provider))

    @display(description="secret", label=SECRET_BADGES)
    def secret(self, provider: Provider) -> str:
        """Show whether the secret is set on this server, never the secret itself."""
        if provider.missing_variables:
            return "missing"
        return "set" if provider.secret_variables else "none needed"

    variable = column("API key variable", lambda provider: provider.api_key_variable, ordering="api_key_variable")
    deployment_count = column("deployments", lambda provider: provider.deployment_total, ordering="deployment_total")


class DeploymentInline(TabularInline):
    """A model's deployments, in the order of routing."""

    model = Deployment
    fields = ("provider", "upstream_name", "order", "weight", "is_enabled")
    ordering = ("order", "-weight", "id")
    extra = 0
    show_change_link = True


def current_prices() -> Prefetch[Any]:
    """Return the prefetch of deployments' prices that apply now."""
    prices = Price.objects.filter(prices_in_force(timezone.now())).order_by("above_tokens")
    return Prefetch("prices", prices, to_attr="prices_in_force")


def deployment_price(deployment: Any) -> str:
    """Return the prices in force for input and output, in US dollars."""
    if not deployment.prices_in_force:
        return "no price: costs unknown"
    price = deployment.prices_in_force[0]
    return f"{price_text(price.input_per_million)} in, {price_text(price.output_per_million)} out"


def usable_of(model: Any) -> list[Any]:
    """Return the deployments of a model in the list that are on, as their providers are."""
    return [each for each in model.all_deployments if each.is_enabled and each.provider.is_enabled]


@admin.register(Model)
class ModelAdmin(CatalogAdmin):
    """Models."""

    list_display = ("public_name", "kind", "context", "served_by", "price", "answers_by_default", "state")
    list_filter = ("kind", "is_enabled")
    search_fields = ("public_name",)
    fields = ("public_name", "aliases", "kind", "context_size", "routing", "is_default", "is_enabled")
    form = ModelForm
    inlines = (DeploymentInline,)
    actions_detail = ("clear_cache",)

    @action(description="Clear cached answers", permissions=["change"], icon="mop", url_path="clear-cache")
    def clear_cache(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Clear the model's cached answers, after a confirmation."""
        model: Model = found(self, request, object_id)
        if not is_confirmed(request):
            text = (
                "Within a second, every request to this model goes to a provider again and is billed, for all accounts."
            )
            return self.ask_first(request, model, f"Clear the cached answers of {model}?", text, "Clear cached answers")
        model_clear_cache(model=model, actor=actor_of(request))
        messages.success(request, f"Cleared the cached answers of {model}. This takes effect within a second.")
        return HttpResponseRedirect(change_url(model))

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """Read the deployments of all rows, and their prices, in two additional queries."""
        deployments = Deployment.objects.select_related("provider").order_by("order", "-weight", "id")
        prefetch = Prefetch("deployments", deployments.prefetch_related(current_prices()), to_attr="all_deployments")
        another = Exists(Model.objects.filter(is_default=True, is_enabled=True))
        rows: QuerySet[Any] = super().get_queryset(request).annotate(is_another_default=another)
        return rows.prefetch_related(prefetch)

    @display(description="default", label={CHOSEN: "success", INHERITED: "success"})
    def answers_by_default(self, model: Any) -> str | None:
        """Mark the model for requests that name none: the operators' choice, or else the environment's."""
        if model.is_default:
            return CHOSEN
        is_environments = default_model_name() in (model.public_name, *model.aliases)
        return INHERITED if is_environments and model.is_enabled and not model.is_another_default else None

    context = column("context (tokens)", lambda model: count(model.context_size), ordering="context_size")

    @display(description="served by")
    def served_by(self, model: Any) -> str:
        """Show the deployments in the order of routing, and how many others are off."""
        usable = usable_of(model)
        off = len(model.all_deployments) - len(usable)
        return (", ".join(map(str, usable)) or "No deployment is on") + (f" ({off} off)" if off and usable else "")

    @display(description="price per million tokens")
    def price(self, model: Any) -> str:
        """Show the price of the deployment that is called first."""
        return next(map(deployment_price, usable_of(model)), NOTHING)


def begin_text(at: datetime) -> str:
    """Format a time in UTC; midnight is the day alone."""
    return utc_text(at).removesuffix(" 00:00 UTC")


class PriceColumns(BaseModelAdmin):  # type: ignore[type-arg]  # generic in the stubs alone
    """Prices as texts."""

    readonly_fields: ClassVar[Any] = SHOWN_PRICES

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """Find out in the same query which prices apply now."""
        in_force = ExpressionWrapper(prices_in_force(timezone.now()), BooleanField())
        rows: QuerySet[Any] = super().get_queryset(request).annotate(is_in_force=in_force)
        return rows

    model_link = column("model", lambda price: link(price.deployment.model), ordering="deployment__model__public_name")
    begins = column("valid from", lambda price: begin_text(price.valid_from), ordering="valid_from")
    input = column("input per 1M", lambda price: price_text(price.input_per_million), ordering="input_per_million")
    cached_input = column(
        "cached per 1M",
        lambda price: (
            "as input" if price.cached_input_per_million is None else price_text(price.cached_input_per_million)
        ),
    )
    output = column("output per 1M", lambda price: price_text(price.output_per_million), ordering="output_per_million")

    prompts = column("prompts", lambda price: f"above {count(price.above_tokens)}" if price.above_tokens else "all")

    @display(description="other prices")
    def others(self, price: Price) -> str:
        """Show the prices that only some providers have."""
        names = {"cache_write_per_million": "cache write", "cache_write_1h_per_million": "cache write for an hour"}
        names |= {"reasoning_per_million": "reasoning", "per_request": "each request", "per_search": "each search"}
        found = [(text, getattr(price, name)) for name, text in names.items()]
        shown = [f"{text} {price_text(value)}" for text, value in found if value is not None]
        factors = [(name, getattr(price, f"{name}_factor")) for name in SERVICE_TIERS]
        shown += [f"{name} x {factor.normalize():f}" for name, factor in factors if factor is not None]
        return ", ".join(shown) or NOTHING

    @display(description="state", label={"in force": "success", "upcoming": "info"})
    def state(self, price: Any) -> str:
        """Show whether the price applies now."""
        if price.is_in_force:
            return "in force"
        return "upcoming" if price.valid_from > timezone.now() else "past"

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Return False: prices can't be changed, because calls were billed with them; add a new price instead."""
        return False


class PriceList(PriceColumns, TabularInline):
    """A deployment's prices."""

    model = Price
    fields = SHOWN_PRICES
    ordering = ("-valid_from", "above_tokens")
    extra = 0
    can_delete = False
    per_page = 20
    verbose_name_plural = "prices in US dollars per million tokens (the latest that has started applies)"

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Return False: a price has a page of its own."""
        return False


class NewPriceInline(StackedInline):
    """The first price of a new deployment."""

    model = Price
    fields = ("valid_from", *PRICE_FIELDS)
    extra = 0
    verbose_name_plural = "price in US dollars per million tokens"

    def get_formset(self, request: HttpRequest, obj: Any = None, **options: Any) -> Any:
        """Return the formset with a label that its field's name does not make."""
        return super().get_formset(request, obj, **{"labels": PRICE_LABELS, **options})


@admin.register(Deployment)
class DeploymentAdmin(CatalogAdmin):
    """Deployments."""

    list_display = ("name", "model_link", "provider_link", "order", "weight", "price", "state")
    list_filter = ("is_enabled", "provider")
    list_select_related = ("model", "provider")
    search_fields = ("upstream_name", "model__public_name", "provider__name")
    fields = ("model", "provider", "upstream_name", "output_parameter", "order", "weight", "is_enabled")
    actions_detail = ("add_price",)

    def get_inlines(self, request: HttpRequest, obj: Any) -> Any:
        """List the prices; a new deployment can be given its first one."""
        return (PriceList,) if obj else (NewPriceInline,)

    def has_add_price_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Return whether the user may add prices."""
        return request.user.has_perm("inference.add_price")

    @action(description="Add price", permissions=["add_price"], icon="add", url_path="add-price")
    def add_price(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Redirect to the page that adds a price to this deployment."""
        deployment = found(self, request, object_id)
        return HttpResponseRedirect(f"{reverse('admin:inference_price_add')}?deployment={deployment.pk}")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """Read the state of all breakers once, and the prices of all rows in one additional query."""
        try:
            notices = failing()
        except RedisError:  # unknown while the state store is down
            notices = []
        states = (
            When(pk__in=[each.deployment_id for each in notices if each.is_open], then=Value("Down: no calls")),
            When(pk__in=[each.deployment_id for each in notices], then=Value("Trying: one trial call")),
        )
        state = Case(*states, default=Value("OK"))
        rows: QuerySet[Any] = super().get_queryset(request).annotate(breaker_state=state)
        return rows.prefetch_related(current_prices())

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> Any:
        """Name the model and the provider in the title: several models may have one name there."""
        row = self.get_object(request, unquote(object_id))
        title = {"title": f"{row.model} on {row.provider}"} if row is not None else {}
        return super().change_view(request, object_id, form_url, {**(extra_context or {}), **title})

    @display(description="state", label=STATES)
    def state(self, deployment: Any) -> str:
        """Show whether the deployment gets calls; if it is off, what was switched off."""
        kinds = {"": deployment, ": the provider is off": deployment.provider, ": the model is off": deployment.model}
        for text, row in kinds.items():
            if not row.is_enabled:
                return f"Off{text}"
        if deployment.breaker_state == "OK" and deployment.provider.missing_variables:
            return "Secret missing"
        return str(deployment.breaker_state)

    name = column("name at the provider", lambda row: row.upstream_name, ordering="upstream_name")
    model_link = column("model", lambda row: link(row.model), ordering="model__public_name")
    provider_link = column("provider", lambda row: link(row.provider), ordering="provider__name")

    @display(description="price per million tokens")
    def price(self, deployment: Any) -> str:
        """Show the prices in force."""
        return deployment_price(deployment)


class TimeFilter(admin.SimpleListFilter):
    """Shows past prices only if asked for."""

    title = "time"
    parameter_name = "time"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """Return the choices beside current and upcoming prices."""
        return [("past", "Past"), ("all", "All")]

    def choices(self, changelist: Any) -> Iterator[Any]:
        """Name the choice that is made without the filter."""
        unfiltered, *others = super().choices(changelist)
        yield {**unfiltered, "display": "Current and upcoming"}
        yield from others

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Select by the time."""
        is_past = Q(is_in_force=False, valid_from__lte=timezone.now())
        return {"past": queryset.filter(is_past), "all": queryset}.get(self.value() or "", queryset.exclude(is_past))


@admin.register(Price)
class PriceAdmin(PriceColumns, CatalogAdmin):
    """All prices: past, current and future."""

    list_display = ("deployment", "model_link", "prompts", "begins", "state", "input", "cached_input", "output")
    list_filter = (TimeFilter, "deployment__provider", "deployment__model")
    ordering = ("deployment__model__public_name", "deployment", "-valid_from", "above_tokens")
    list_select_related = ("deployment__provider", "deployment__model")
    search_fields = ("deployment__upstream_name", "deployment__model__public_name")
    autocomplete_fields = ("deployment",)
    fields = ("deployment", "valid_from", *PRICE_FIELDS)

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **options: Any) -> Any:
        """Return the form with a label that its field's name does not make."""
        return super().get_form(request, obj, change, **{"labels": PRICE_LABELS, **options})

    def get_fields(self, request: HttpRequest, obj: Price | None = None) -> Any:
        """Return the form's fields; a price that exists can't be changed, and is shown as text."""
        return ("deployment", *SHOWN_PRICES) if obj else self.fields
