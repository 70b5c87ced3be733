"""manage.py doctor: what is wrong with an installation, a line each."""

from __future__ import annotations

from io import StringIO

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from pytest_django import Settings

pytestmark = pytest.mark.django_db


def doctor() -> str:
    """Run the command and return what it printed."""
    out = StringIO()
    call_command("doctor", stdout=out)
    return out.getvalue()


def test_it_looks_at_everything() -> None:
    told = doctor()
    for name in ("api", "database", "cache", "limits", "ingest", "llm"):
        assert f"\n{name} " in f"\n{told}"
    assert "A start would succeed" in told


def test_it_ends_with_what_would_stop_a_start(settings: Settings) -> None:
    settings.CORS_ALLOWED_ORIGINS = ["*"]
    with pytest.raises(CommandError, match=r"aiapi.E003: CORS_ALLOWED_ORIGINS holds"):
        doctor()
