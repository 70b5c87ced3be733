"""System checks of the settings as a whole; each names the variable and the mend."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register


@register(Tags.security)
def check_secret_key(**options: Any) -> list[CheckMessage]:
    """Refuse the default or a weak SECRET_KEY in production (aiapi.E001)."""
    weak = settings.SECRET_KEY == settings.DEFAULT_SECRET_KEY or len(settings.SECRET_KEY) < 50
    if not settings.IS_PRODUCTION or not weak:
        return []
    hint = "Set it to 50 random characters: python -c 'import secrets; print(secrets.token_urlsafe(48))'"
    return [Error("SECRET_KEY is not set, or weak.", hint=hint, id="aiapi.E001")]


@register(Tags.security)
def check_allowed_hosts(**options: Any) -> list[CheckMessage]:
    """Refuse production without host names, or with any (aiapi.E002)."""
    if not settings.IS_PRODUCTION or (settings.ALLOWED_HOSTS and "*" not in settings.ALLOWED_HOSTS):
        return []
    hint = "Set it to the names under which the service is reached: ALLOWED_HOSTS=api.example.com"
    return [Error("ALLOWED_HOSTS is not set, or allows every name.", hint=hint, id="aiapi.E002")]


@register()
def check_cors_origins(**options: Any) -> list[CheckMessage]:
    """Refuse a wildcard origin: browsers would send any page's requests (aiapi.E003)."""
    if "*" not in settings.CORS_ALLOWED_ORIGINS:
        return []
    return [Error("CORS_ALLOWED_ORIGINS holds *.", hint="List the origins, with https://.", id="aiapi.E003")]


@register()
def check_variable_names(**options: Any) -> list[CheckMessage]:
    """Report variables that look like slips of known ones (aiapi.W001)."""
    return [
        Warning(f"{name} is set, but not known.", hint=f"Did you mean {known}?", id="aiapi.W001")
        for name, known in settings.ENV.near_misses()
    ]
