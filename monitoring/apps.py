"""The monitoring app: usage records, rollups and retention."""

from __future__ import annotations

from django.apps import AppConfig


class MonitoringConfig(AppConfig):
    """Connects the limits with the records: ledgers are seeded from them, and settled calls are written to them."""

    name = "monitoring"
    verbose_name = "Overview"

    def ready(self) -> None:
        """Install the seeders and the sink of the limits."""
        from accounts.limits import install
        from monitoring.ledger import months_settled
        from monitoring.recorder import write_record

        install(seeder=months_settled, sink=write_record)
