import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    """Make the table anew: it held answers of the embedded mode alone, and for a day at most."""

    dependencies = [
        ("accounts", "0010_key_maker"),
    ]

    operations = [
        migrations.DeleteModel(name="IdempotentAnswer"),
        migrations.CreateModel(
            name="IdempotentAnswer",
            fields=[
                (
                    "name",
                    models.CharField(
                        help_text="A digest of API key and Idempotency-Key.",
                        max_length=64,
                        primary_key=True,
                        serialize=False,
                    ),
                ),
                (
                    "token",
                    models.CharField(help_text="Of the request that may finish or delete the row.", max_length=32),
                ),
                ("fingerprint", models.CharField(help_text="A digest of what was asked.", max_length=64)),
                (
                    "status",
                    models.PositiveSmallIntegerField(help_text="Empty while there is no answer yet.", null=True),
                ),
                ("headers", models.JSONField(default=dict)),
                ("body", models.BinaryField(default=b"")),
                (
                    "cost",
                    models.BigIntegerField(default=0, help_text="Nano-dollars that the answer cost when it was made."),
                ),
                ("until", models.DateTimeField(db_index=True)),
                (
                    "key",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="+", to="accounts.apikey"
                    ),
                ),
            ],
        ),
    ]
