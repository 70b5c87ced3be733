"""The monitoring app."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from django.apps import AppConfig
from django.apps.registry import Apps
from django.db.models.signals import post_migrate


class MonitoringConfig(AppConfig):
    """Give the limits what they need of the records: what a month has used, and where records go."""

    name = "monitoring"

    def ready(self) -> None:
        """Install seeder and sink, and have every migration see to it that an older release's log has its rollups."""
        from accounts.limits import install
        from monitoring.ledger import month_settled, months_settled
        from monitoring.recorder import write_record

        install(seeder=month_settled, bulk_seeder=months_settled, sink=write_record)
        post_migrate.connect(fill_rollups, sender=self)


def fill_rollups(*, apps: Apps | None = None, **_: Any) -> None:
    """Make the rollups that an older release did not write, unless what was migrated to is a release that knew of none.

    Not a migration: those run with the tables of their time, and this reads and writes those of today. Without `apps`
    nothing was migrated: it is how `flush` calls, when it has emptied everything.
    """
    from monitoring.rollups.verify import rollups_fill

    if apps is not None:
        with suppress(LookupError):
            apps.get_model("monitoring", "Rollup")
            rollups_fill()
