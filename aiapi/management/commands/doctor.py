"""Check this installation: configuration, database and every other dependency."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError

from aiapi.checks import start_findings
from inference.selectors import models_without_price
from operations.alerts.conditions import ENTER_PRICE, UNPRICED
from operations.health import Health, health_report


class Command(BaseCommand):
    """Prints a line for each check. Raises CommandError if the server would not start."""

    help = __doc__
    requires_system_checks = []

    def handle(self, *args: Any, **options: Any) -> None:
        """Run and print all checks."""
        findings = start_findings()
        report = health_report()
        for name, state in report["checks"].items():
            self.stdout.write(f"{name:10} {state} {report.get('reasons', {}).get(name, '')}".rstrip())
        if report["checks"]["database"] == Health.OK:
            missing = models_without_price()
            if not missing:
                self.stdout.write(f"{'prices':10} {Health.OK}")
            for model, deployments in missing.items():
                self.stdout.write(f"{'prices':10} missing for {model} ({deployments}). {UNPRICED} {ENTER_PRICE}")
        for line in findings.warnings:
            self.stdout.write(f"warning    {line}")
        if findings.problems:
            raise CommandError("\n".join(findings.problems))
        self.stdout.write(f"A start would succeed ({Health.OK} is what every line above should say).")
