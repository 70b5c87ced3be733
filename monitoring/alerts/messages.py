"""What somebody is told: that an episode began, or that it is over and how long it lasted."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from django.utils import timezone

from monitoring.models import Alert, AlertDelivery

MINUTE, HOUR, DAY = 60, 3600, 86_400


@dataclass(frozen=True, slots=True)
class Message:
    """A line, and what there is to say."""

    title: str
    text: str


def message_of(delivery: AlertDelivery) -> Message:
    """Write what a delivery brings."""
    alert = delivery.alert
    if not delivery.is_end:
        return Message(alert.title, alert.text)
    ended = alert.ended_at or timezone.now()
    span = f"It began at {minute_of(alert.began_at)}, ended at {minute_of(ended)} and lasted {lasted(alert)}."
    return Message(f"Resolved: {alert.title}", f"This is over. {span} It was: {alert.text}")


def lasted(alert: Alert) -> str:
    """Say how long an episode lasted, or has by now: the two largest units."""
    seconds = int(((alert.ended_at or timezone.now()) - alert.began_at) / timedelta(seconds=1))
    parts = [
        (seconds // DAY, "day"),
        (seconds % DAY // HOUR, "hour"),
        (seconds % HOUR // MINUTE, "minute"),
        (seconds % MINUTE, "second"),
    ]
    first = next((place for place, (number, _) in enumerate(parts) if number), len(parts) - 1)
    said = [f"{number} {unit}{'' if number == 1 else 's'}" for number, unit in parts[first : first + 2] if number]
    return " ".join(said) or "less than a second"


def minute_of(moment: datetime) -> str:
    """Write a moment in UTC."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
