"""The monitoring app."""

from django.apps import AppConfig


class MonitoringConfig(AppConfig):
    """Give the limits what they need of the records: what a month has used, and where records go."""

    name = "monitoring"

    def ready(self) -> None:
        """Install seeder and sink."""
        from accounts.limits import install
        from monitoring.ledger import month_settled, months_settled
        from monitoring.recorder import write_record

        install(seeder=month_settled, bulk_seeder=months_settled, sink=write_record)
