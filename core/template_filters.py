"""The formats of core.formats as template filters: `{% load formats %}`, then `{{ amount|money }}`."""

from __future__ import annotations

from datetime import datetime

from django import template
from django.utils import timezone

from core import formats

register = template.Library()

for each in (
    formats.count,
    formats.quantity,
    formats.money,
    formats.exact_money,
    formats.milliseconds,
    formats.duration,
    formats.percent,
    formats.utc_text,
):
    register.filter(each.__name__, each)


@register.filter
def ago(at: datetime | None) -> str:
    """Format a past time as the time since then: 42 s ago."""
    return formats.ago(at, timezone.now())


@register.filter
def lately(at: datetime) -> str:
    """Format a time of a log: 59 min ago, or 30 Nov 15:25:02."""
    return formats.lately(at, timezone.now())
