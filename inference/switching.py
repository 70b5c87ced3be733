"""Confirmation in the admin before a form switches off or removes a provider, model or deployment.

It shows what stops working, and which accounts are affected.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

from django.contrib.admin.utils import unquote
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.utils import timezone

from accounts.admin.base import Confirmation, ModelAdmin, ask, change_url, is_confirmed
from inference.models import Deployment, Model, Provider
from monitoring.rollups.queries import Scope, usage_rankings

#: The period in which an account's calls count as recent.
LATELY = timedelta(days=7)
MOST_CALLERS = 50
#: The form field that the confirmation page adds itself.
TOKEN = "csrfmiddlewaretoken"  # noqa: S105

Row = Provider | Model | Deployment


class AsksBeforeSwitchingOff(ModelAdmin):
    """Shows what a form would switch off or remove, and saves it once that is confirmed."""

    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> Any:
        """Ask for confirmation if the form needs it; otherwise show or save the form as Django does."""
        if request.method == "POST" and object_id is not None and not is_confirmed(request):
            question = self._question(request, object_id)
            if question is not None:
                return ask(self, request, question)
        return super().changeform_view(request, object_id, form_url, extra_context)

    def _question(self, request: HttpRequest, object_id: str) -> Confirmation | None:
        row = self.get_object(request, unquote(object_id))
        if row is None or not self.has_change_permission(request, row):
            return None
        off = [type(each)._default_manager.get(pk=each.pk) for each in self._switched_off(request, row)]
        if not off:
            return None
        asked_lately = callers(models_of(off))
        nobody = [] if asked_lately else ["Nobody asked there in the last seven days."]
        return Confirmation(
            title=f"Switch off {' and '.join(map(str, off))}?",
            consequences=[*consequences(off), *nobody],
            submit="Switch off",
            affected=asked_lately,
            cancel_url=change_url(row),
            hidden={name: request.POST.getlist(name) for name in request.POST if name != TOKEN},
        )

    def _switched_off(self, request: HttpRequest, row: Row) -> Iterator[Row]:
        """Yield the rows that the form, if valid, would switch off or remove; they hold the form's values."""
        form = self.get_form(request, row, change=True)(request.POST, request.FILES, instance=row)
        if form.is_valid() and _is_switched_off(form):
            yield row
        for formset, inline in self.get_formsets_with_inlines(request, row):
            prefix = formset.get_default_prefix()
            rows = formset(**self.get_formset_kwargs(request, row, inline, prefix))
            if issubclass(formset.model, Deployment) and rows.is_valid():
                yield from (each.instance for each in rows.initial_forms if _is_switched_off(each))


def _is_switched_off(form: Any) -> bool:
    cleaned = form.cleaned_data
    return bool(cleaned.get("DELETE")) or ("is_enabled" in form.changed_data and not cleaned["is_enabled"])


def models_of(off: Sequence[Row]) -> list[Model]:
    """Return the enabled models that are affected if all of `off` is switched off."""
    models = {each.pk for each in off if isinstance(each, Model)}
    models |= {each.model_id for each in _deployments_of(off)}
    return list(Model.objects.filter(pk__in=models, is_enabled=True))


def _deployments_of(off: Sequence[Row]) -> list[Deployment]:
    providers = [each.pk for each in off if isinstance(each, Provider)]
    deployments = [each.pk for each in off if isinstance(each, Deployment)]
    return list(_usable().filter(Q(provider__in=providers) | Q(pk__in=deployments)))


def _usable() -> QuerySet[Deployment]:
    return Deployment.objects.filter(is_enabled=True, provider__is_enabled=True, model__is_enabled=True)


def consequences(off: Sequence[Row]) -> list[str]:
    """Return sentences on what happens within a second if all of `off` is switched off."""
    gone = [each for each in off if isinstance(each, Model)]
    lost = _deployments_of(off)
    left = _usable().exclude(pk__in=[each.pk for each in lost]).exclude(model__in=gone)
    served = {each.model_id for each in left}
    weakened = [each for each in models_of(off) if each not in gone]
    outcomes = {
        "Within a second nobody can call {} any more: callers get 404 model_not_found.": gone,
        "Within a second nobody is left to answer for {}: callers get 502.": [
            each for each in weakened if each.pk not in served
        ],
        "{} is answered by other deployments from then on.": [each for each in weakened if each.pk in served],
        "{} is the default, for calls that name no model.": [each for each in models_of(off) if each.is_default],
    }
    sentences = [text.format(", ".join(map(str, models))) for text, models in outcomes.items() if models]
    return sentences or ["No call goes there now, so nothing stops working."]


def callers(models: Sequence[Model]) -> list[str]:
    """Return the accounts that called these models lately, with their numbers of requests, the highest first."""
    now, asked = timezone.now(), Counter[str]()
    for model in models:
        scope = Scope(model=model.public_name)
        ranked = usage_rankings(begin=now - LATELY, end=now, scope=scope, limit=MOST_CALLERS)
        for rank in ranked.accounts:
            asked[rank.account] += rank.requests
    return [f"{account}: {number:,} requests in the last seven days" for account, number in asked.most_common()]
