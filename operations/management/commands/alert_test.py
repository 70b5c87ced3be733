"""Send a test alert by every configured way, and report the results."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError

from operations.alerts.deliveries import send_test_alert


class Command(BaseCommand):
    """Exits with an error if a delivery failed, or if there is no recipient."""

    help = __doc__

    def handle(self, *args: Any, **options: Any) -> None:
        """Send, and print a line for each delivery."""
        deliveries = send_test_alert()
        if not deliveries:
            raise CommandError("There is no recipient: set ALERT_WEBHOOK_URL, or EMAIL_URL and ALERT_EMAILS.")
        for delivery in deliveries:
            self.stdout.write(f"{delivery}: {delivery.failure or 'sent'}")
        if any(delivery.failure for delivery in deliveries):
            raise CommandError("Not every way works.")
