"""What rows of a list have used of their limits, as bars that are read in one step for a page."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from django.http import HttpRequest
from django.template.loader import render_to_string
from django.utils.html import format_html
from django.utils.safestring import SafeString

from accounts.admin.base import AuditedAdmin, column
from accounts.limit_usage import LimitUsage, usage_of_scopes
from accounts.limits.types import LimitName, LimitSet


def usage_bar(usage: LimitUsage) -> SafeString:
    """Return the bar of a limit with the text beside it; without a limit, the text alone."""
    if usage.limit is None:
        return format_html("{}", usage.text)
    bar = {"percent": usage.percent, "text": usage.text, "title": usage.title}
    return render_to_string("admin/limit_bar.html", bar)


def month_bar(row: Any, name: LimitName) -> SafeString:
    """Return the bar of a monthly budget of a row; without a budget, what was used."""
    usage: LimitUsage | None = row.usage.get(name)
    if usage is None:
        return SafeString("unknown while the state store is down")
    return usage_bar(usage) if usage.limit is not None else SafeString(usage.rounded(usage.used))


class UsedList(AuditedAdmin):
    """A list with the columns `tokens_this_month` and `cost_this_month`; the rows' `usage` has all limits by name."""

    tokens_this_month = column("tokens this month", lambda row: month_bar(row, LimitName.MONTHLY_TOKENS))
    cost_this_month = column("cost this month", lambda row: month_bar(row, LimitName.MONTHLY_COST))

    @abstractmethod
    def limits_of(self, instance: Any) -> LimitSet:
        """Return the limits whose usage is shown, of one subject."""

    def get_changelist_instance(self, request: HttpRequest) -> Any:
        """Attach the usage of all rows in one step; while Redis is down, only that of the month."""
        changelist = super().get_changelist_instance(request)
        scopes = [self.limits_of(row) for row in changelist.result_list]
        used = usage_of_scopes(scopes).limits
        for row, scope in zip(changelist.result_list, scopes, strict=True):
            row.usage = {usage.name: usage for usage in used if usage.subject in scope.subjects}
        return changelist
