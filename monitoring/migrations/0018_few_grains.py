"""Keep sums by the minute, quarter hour and day only; `manage.py rebuild_rollups` adds up what the log still has."""

from django.db import migrations, models

NAME = models.CharField(blank=True, help_text="When the row was last written.", max_length=100)
HISTOGRAM = "A histogram, see monitoring.rollups.histograms."


class Migration(migrations.Migration):
    dependencies = [("monitoring", "0017_alert_kind_books")]

    operations = [
        migrations.RunSQL("DELETE FROM monitoring_rollup", migrations.RunSQL.noop),
        migrations.RemoveField("rollup", "latency"),
        migrations.RemoveField("rollup", "first_token"),
        migrations.AddField("rollup", "latency", models.TextField(blank=True, default="", help_text=HISTOGRAM), False),
        migrations.AddField(
            "rollup", "first_token", models.TextField(blank=True, default="", help_text=HISTOGRAM), False
        ),
        migrations.AlterField(
            "rollup",
            "grain",
            models.CharField(
                choices=[
                    ("pi", "Platform Minute"),
                    ("pq", "Platform Quarter"),
                    ("pd", "Platform Day"),
                    ("ad", "Account Day"),
                    ("kq", "Key Quarter"),
                    ("kd", "Key Day"),
                ],
                max_length=2,
            ),
        ),
        migrations.AlterField(
            "rollup",
            "start",
            models.IntegerField(help_text="The first minute of the period: whole minutes since 1970-01-01 00:00 UTC."),
        ),
        migrations.AlterField("rollup", "account_name", NAME),
        migrations.AlterField("rollup", "key_name", NAME.clone()),
        migrations.AlterField(
            "rollup", "unpriced", models.BigIntegerField(default=0, help_text="Requests whose cost is unknown.")
        ),
    ]
