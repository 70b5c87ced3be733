"""The monitoring app: usage records, rollups and retention."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from django.apps import AppConfig
from django.apps.registry import Apps
from django.db.models.signals import post_migrate


class MonitoringConfig(AppConfig):
    """Connects the limits with the records: ledgers are seeded from them, and settled calls are written to them."""

    name = "monitoring"

    def ready(self) -> None:
        """Install the seeders and the sink of the limits, and fill missing rollups after every migration."""
        from accounts.limits import install
        from monitoring.ledger import month_settled, months_settled
        from monitoring.recorder import write_record

        install(seeder=month_settled, bulk_seeder=months_settled, sink=write_record)
        post_migrate.connect(fill_rollups, sender=self)


def fill_rollups(*, apps: Apps | None = None, **_: Any) -> None:
    """Write the rollups that an older release did not write; do nothing if the migrated state has no Rollup model.

    This is not a migration because it reads and writes the tables of the current release. `apps` is None when `flush`
    sends the signal: the tables are empty then.
    """
    from monitoring.rollups.verify import rollups_fill

    if apps is not None:
        with suppress(LookupError):
            apps.get_model("monitoring", "Rollup")
            rollups_fill()
