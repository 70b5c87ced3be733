"""Set up what a new installation needs: tiers, roles, provider, models, prices, the first administrator, demo keys."""

from __future__ import annotations

import secrets
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError
from django.db import transaction

from accounts.audit import audit_change
from accounts.checks import DEMO_KEYS
from accounts.models import ApiKey, Tier
from accounts.roles import roles_ensure
from accounts.services import account_ensure, api_key_import, tier_ensure
from inference.seeds import provider_seed
from operations.alerts.conditions import ENTER_PRICE, UNPRICED

#: The tiers that a new installation has.
TIERS: dict[str, dict[str, int]] = {
    "free": {"requests_per_minute": 5, "max_output_tokens": 512},
    "premium": {"requests_per_minute": 20, "max_output_tokens": 2048},
}
DEMO_ACCOUNT = "demo"
ACTOR = "command:bootstrap"


class Command(BaseCommand):
    """Idempotent. Existing rows are kept, except that the environment's provider is updated."""

    help = __doc__

    def handle(self, *args: Any, **options: Any) -> None:
        """Create what is missing and print a summary."""
        for name, limits in TIERS.items():
            tier_ensure(name=name, actor=ACTOR, **limits)
        roles_ensure(actor=ACTOR)
        try:
            seeded = provider_seed(actor=ACTOR)
        except ValidationError as error:
            raise CommandError(f"OPENAI_MODEL or OPENAI_BASE_URL: {' '.join(error.messages)}") from error
        if seeded.provider is None:
            self.stderr.write("No model provider: set OPENAI_API_KEY or OPENAI_BASE_URL, or add one in the admin.")
        else:
            self.stdout.write(f"Provider {seeded.provider} serves {', '.join(seeded.models)}.")
        for model in seeded.unpriced:
            self.stderr.write(f"Model {model} has no price. {UNPRICED} {ENTER_PRICE}")
        users = get_user_model().objects
        if not users.filter(is_superuser=True).exists():
            password = settings.ADMIN_PASSWORD or secrets.token_urlsafe(12)
            with transaction.atomic():
                user = users.create_superuser(settings.ADMIN_USERNAME, password=password)
                audit_change(user, before=None, actor=ACTOR)
            shown = "the one of ADMIN_PASSWORD" if settings.ADMIN_PASSWORD else f"{password} (shown this once)"
            self.stdout.write(f"Administrator {settings.ADMIN_USERNAME}, password {shown}.")
        if not settings.IS_PRODUCTION and not ApiKey.objects.filter(account__name=DEMO_ACCOUNT).exists():
            account = account_ensure(name=DEMO_ACCOUNT, actor=ACTOR)
            for plain, tier, name in zip(DEMO_KEYS, TIERS, ("dev", "prod"), strict=True):
                api_key_import(plain=plain, account=account, tier=Tier.objects.get(name=tier), name=name, actor=ACTOR)
            self.stdout.write("Demo keys: dev_key_123 (free), prod_key_456 (premium).")
